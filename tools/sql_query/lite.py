"""SQLite: the file is opened beneath the workspace, and an authoriser lets a statement read or change that alone."""

import os
import sqlite3
import stat
import time
from contextlib import suppress

from runner.guest.beneath import ToolError

_ALWAYS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
# Neither may a statement reach another file (ATTACH, which every VACUUM is too) nor load code.
_NEVER = {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH}
_FUNCTIONS = {"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit"}
_PRAGMAS = {
    *("table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list"),
    *("database_list", "user_version", "schema_version", "integrity_check", "quick_check", "page_count", "page_size"),
    *("encoding", "compile_options", "function_list", "collation_list", "foreign_key_check", "application_id"),
}
_MODULES = {"fts5", "rtree", "geopoly", "json_each", "json_tree", "generate_series"}
_STEPS = 10_000  # of SQLite's machine between two looks at the clock
_LONGEST = 64 << 20  # bytes of one value or statement
_PAGE = 500  # rows at a time


def query(place, *, sql, params, write, limit, timeout):
    """Columns, rows, whether there are more, and how many rows changed (None for a read). Raises `ToolError`."""
    held = place.open(os.O_RDWR | os.O_CREAT if write else os.O_RDONLY)
    try:
        if not stat.S_ISREG(os.fstat(held).st_mode):
            raise ToolError(f"{place.shown}: not a regular file", "not_a_file")
        connection = _connect(place, held, write)
        try:
            return _run(connection, sql, params, write, limit, time.monotonic() + timeout)
        except sqlite3.Error as error:
            raise _failed(error, timeout) from None
        except (sqlite3.Warning, OverflowError, ValueError) as error:
            raise ToolError(f"sql: {error}", "sql") from None
        finally:
            connection.close()
    finally:
        os.close(held)


def _connect(place, held, write):
    """A connection to the very file that was opened beneath the workspace: SQLite opens by name, and a name can be
    swapped, so what it has opened is compared."""
    before = _opened(held)
    name = os.readlink(f"/proc/self/fd/{held}")
    quoted = name.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    try:
        connection = sqlite3.connect(
            f"file:{quoted}?mode={'rw' if write else 'ro'}", uri=True, isolation_level=None, timeout=5
        )
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.Error as error:
        raise ToolError(f"{place.shown}: {error}", "sqlite") from None
    if _opened(held) == before:
        connection.close()
        raise ToolError(f"{place.shown}: was replaced while it was opened", "replaced")
    for setting in ("temp_store = MEMORY", "trusted_schema = OFF", f"query_only = {'OFF' if write else 'ON'}"):
        connection.execute(f"PRAGMA {setting}")
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
    return connection


def _opened(held):
    """How many descriptors of this process are of the file that `held` is of."""
    known, count = os.fstat(held), 0
    for each in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own is closed by now
            found = os.fstat(int(each))
            count += (found.st_dev, found.st_ino) == (known.st_dev, known.st_ino)
    return count


def _run(connection, sql, params, write, limit, deadline):
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
    connection.set_authorizer(_authorizer(write))
    before = connection.total_changes
    cursor = connection.execute(sql, params)
    columns = [each[0] for each in cursor.description or ()]
    rows = cursor.fetchmany(limit)
    more = cursor.fetchone() is not None
    while write and more and cursor.fetchmany(_PAGE):  # a statement that changes and returns is carried to its end
        pass
    cursor.close()
    if connection.in_transaction:  # of a BEGIN: nothing can follow it
        connection.set_authorizer(None)
        connection.rollback()
    return columns, rows, more, connection.total_changes - before if write else None


def _authorizer(write):
    def decide(action, first, second, database, trigger):
        if action in _ALWAYS:
            return sqlite3.SQLITE_OK
        if action in _NEVER:
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_FUNCTION:
            return sqlite3.SQLITE_DENY if (second or "").lower() in _FUNCTIONS else sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_PRAGMA:
            named = (first or "").lower() in _PRAGMAS
            asks = second is None or (first or "").lower() not in {"user_version", "schema_version", "application_id"}
            return sqlite3.SQLITE_OK if named and asks else sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_CREATE_VTABLE:
            return sqlite3.SQLITE_OK if write and (second or "").lower() in _MODULES else sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK if write else sqlite3.SQLITE_DENY

    return decide


def _failed(error, timeout):
    text = str(error)[:1000]
    if text == "interrupted":
        return ToolError(f"the statement took longer than {timeout} s and was cancelled", "timeout")
    if text in ("not authorized", "authorization denied") or "prohibited" in text or "readonly" in text:
        reason = "not allowed: this reads only, unless mode is write; ATTACH, extensions and most PRAGMAs never are"
        return ToolError(f"sql: {text}: {reason}", "denied")
    return ToolError(f"sql: {text}", "sql")
