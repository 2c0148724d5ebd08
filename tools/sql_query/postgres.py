"""PostgreSQL: asyncpg speaks the protocol on a connection that egress tunnels; the credential is the broker's.

One statement is what the extended protocol carries. A read is a READ ONLY transaction that is rolled back. That is no
wall against a role that may do more (COPY … TO PROGRAM, functions of extensions): give the credential a role that may
do no more than it should.
"""

import asyncio
import os
import re
import ssl
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg

from runner.guest.beneath import ToolError
from runner.guest.outward import context, tunnel

URL, PASSWORD, USERNAME = "DATABASE_URL", "DATABASE_PASSWORD", "DATABASE_PASSWORD_USERNAME"
_SERVER = re.compile(r"([a-z0-9.-]+)(?::([0-9]{1,5}))?/([A-Za-z0-9_-]{1,63})\Z")
_CONNECT_S = 20
# Types that go in and come out as PostgreSQL writes them, so that JSON can hold them and nothing is lost.
_AS_TEXT = frozenset(
    (
        *("numeric", "money", "uuid", "json", "jsonb", "xml", "date", "time", "timetz", "timestamp", "timestamptz"),
        *("interval", "inet", "cidr", "macaddr", "bytea", "bit", "varbit"),
    )
)


class _Loop(asyncio.SelectorEventLoop):
    """Whatever is dialled from here, egress dials: by name, and only where it allows that."""

    async def create_connection(self, protocol_factory, host=None, port=None, **options):
        held = tunnel(host, port)
        held.setblocking(False)
        return await super().create_connection(protocol_factory, sock=held, **options)


def query(server, *, sql, params, write, limit, timeout):
    """Columns, rows, whether there are more, and how many rows changed (None for a read). Raises `ToolError`."""
    where = _where(server)
    loop = _Loop()
    try:
        return loop.run_until_complete(_query(where, sql, params, write, limit, timeout))
    except ToolError:
        raise
    except (asyncpg.QueryCanceledError, TimeoutError):
        raise ToolError(f"the statement took longer than {timeout} s and was cancelled", "timeout") from None
    except asyncpg.ReadOnlySQLTransactionError as error:
        raise ToolError(f"sql: {error}: this reads only, unless mode is write", "denied") from None
    except asyncpg.InvalidAuthorizationSpecificationError:
        raise ToolError(f"{where['host']}: the server does not take this tool's credential", "credential") from None
    except asyncpg.PostgresError as error:
        raise ToolError(f"sql: {_told(error)}", "sql") from None
    except ssl.SSLCertVerificationError as error:
        raise ToolError(f"{where['host']}: its certificate is not trusted: {error.verify_message}", "tls") from None
    except (asyncpg.InterfaceError, ValueError, OverflowError) as error:
        raise ToolError(f"sql: {str(error)[:1000]}", "sql") from None
    except OSError as error:
        raise ToolError(f"{where['host']}: the connection broke ({type(error).__name__})", "connection") from None
    finally:
        loop.close()


async def _query(where, sql, params, write, limit, seconds):
    settings = {
        "application_name": "toolrunner",
        "default_transaction_read_only": "off" if write else "on",
        "statement_timeout": str(seconds * 1000),
        "idle_in_transaction_session_timeout": "60000",
    }
    connection = await asyncpg.connect(
        **where, timeout=_CONNECT_S, command_timeout=seconds + 5, server_settings=settings, statement_cache_size=0
    )
    try:
        transaction = connection.transaction(readonly=not write)
        await transaction.start()
        statement = await connection.prepare(sql)
        types = (*statement.get_parameters(), *(each.type for each in statement.get_attributes()))
        as_text = _AS_TEXT & {each.name.removesuffix("[]") for each in types if each.schema == "pg_catalog"}
        for name in as_text:
            await connection.set_type_codec(name, schema="pg_catalog", encoder=str, decoder=str, format="text")
        if as_text:
            statement = await connection.prepare(sql)
        columns = [each.name for each in statement.get_attributes()]
        if columns:
            cursor = await statement.cursor(*params)
            rows = [tuple(row) for row in await cursor.fetch(limit + 1)]
        else:
            rows = await statement.fetch(*params)
        status = (statement.get_statusmsg() or "").split()
        if write:
            await transaction.commit()
        else:
            await transaction.rollback()
    finally:
        connection.terminate()
    told = write and len(status) > 1 and status[-1].isdigit()  # of rows that come back the server tells no number
    return columns, rows[:limit], len(rows) > limit, int(status[-1]) if told else None


def _where(server):
    """What to connect to and as whom: the operator's secret, and the call's `server` where that leaves it open."""
    found = _SERVER.match(server) if server else None
    if server and (found is None or int(found[2] or 5432) > 65535):
        raise ToolError("server: not host[:port]/database", "server")
    asked = {"host": found[1], "port": int(found[2] or 5432), "database": found[3]} if found else {}
    if URL in os.environ:
        return _by_url(_secret(URL), asked)
    if PASSWORD not in os.environ or USERNAME not in os.environ:
        reason = f"this tool has no credential: its manifest delivers neither {URL}, nor {PASSWORD} with a username"
        raise ToolError(f"{reason} (copy tools/sql_query and add [[secrets]])", "credential")
    if not asked:
        raise ToolError("server: needed, because the credential names none", "server")
    return {**asked, "user": os.environ[USERNAME], "password": _secret(PASSWORD), "ssl": context()}


def _by_url(url, asked):
    """postgresql://user:password@host:port/database?sslmode=…; TLS with a name that is checked, unless it says less."""
    parts = urlsplit(url)
    named = {"host": parts.hostname, "port": parts.port or 5432, "database": unquote(parts.path.lstrip("/"))}
    if parts.scheme not in ("postgresql", "postgres") or not all(named.values()) or not parts.username:
        raise ToolError(f"{URL} is not postgresql://user:password@host:port/database", "credential")
    if asked and asked != named:
        raise ToolError("server: is not the one of this tool's credential: leave it out", "server")
    mode = parse_qs(parts.query).get("sslmode", ["verify-full"])[0]
    if mode not in ("disable", "prefer", "verify-full"):
        raise ToolError(
            f"{URL}: sslmode is disable, prefer (TLS where the server offers it) or verify-full", "credential"
        )
    return {
        **named,
        "user": unquote(parts.username),
        "password": unquote(parts.password or ""),
        "ssl": {"disable": False, "prefer": "prefer", "verify-full": context()}[mode],
    }


def _secret(variable):
    """A secret's value: of the variable (delivery env), or of the file that it names (delivery file)."""
    value = os.environ[variable]
    if value.startswith("/run/tools/secrets/"):
        with open(value, encoding="utf-8") as file:
            return file.read().strip()
    return value


def _told(error):
    """What the server says: its message, and the hint and the place that it gives."""
    parts = [str(error)[:1000]]
    for name in ("detail", "hint"):
        if getattr(error, name, None):
            parts.append(f"{name}: {str(getattr(error, name))[:500]}")
    return "; ".join(parts)
