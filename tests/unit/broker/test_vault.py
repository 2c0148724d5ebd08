"""Vault and OpenBao: against a real OpenBao server and the database it makes roles in, through a proxy."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from credential_servers import Authority, Bao, Postgres, Relay, free_port

from runner.broker.providers import http
from runner.broker.providers.http import Network
from runner.broker.providers.provider import Wish
from runner.broker.providers.vault import Vault
from runner.config import VaultProvider, VaultSecret
from runner.errors import RunnerError

FULL, READ = Wish(read=False, ttl_s=60.0), Wish(read=True, ttl_s=60.0)
KEY = "api-key-of-the-application"


@pytest.fixture(scope="session")
def server(bao: Bao) -> Bao:
    """KV v2 at secret/ (as the development mode has it), one-time passwords at ssh/, an AppRole that may use both."""
    bao.api("POST", "secret/data/apps/orders", data={"api_key": "an older one"})
    bao.api("POST", "secret/data/apps/orders", data={"api_key": KEY, "user": "orders", "short": "1234567", "n": 5})
    bao.api("POST", "secret/data/apps/gone", data={"api_key": KEY})
    bao.api("DELETE", "secret/data/apps/gone")
    bao.api("POST", "sys/mounts/ssh", type="ssh")
    bao.api("POST", "ssh/roles/otp", key_type="otp", default_user="somebody", cidr_list="127.0.0.0/8")
    policy = (
        'path "secret/data/apps/*" { capabilities = ["read"] }\npath "ssh/creds/*" { capabilities = ["update"] }\n'
        'path "database/creds/*" { capabilities = ["read"] }\npath "sys/leases/*" { capabilities = ["update"] }'
    )
    bao.api("POST", "sys/policies/acl/broker", policy=policy)
    bao.api("POST", "sys/auth/approle", type="approle")
    bao.api("POST", "auth/approle/role/broker", token_policies=["broker"], token_ttl="10m", token_max_ttl="1h")
    return bao


@pytest.fixture(scope="session")
def database(server: Bao, postgres: Postgres) -> Bao:
    """Roles that live while their lease does."""
    server.api("POST", "sys/mounts/database", type="database")
    server.api(
        "POST",
        "database/config/orders",
        plugin_name="postgresql-database-plugin",
        allowed_roles="*",
        connection_url=f"postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{postgres.port}/postgres",
        username="root",
        password=postgres.password,
    )
    assert postgres.accepts("root", postgres.password, "create table orders (number int)")
    create = "create role \"{{name}}\" with login password '{{password}}' valid until '{{expiration}}'; "
    for role, rights in (("rw", "select, insert"), ("ro", "select")):
        server.api(
            "POST",
            f"database/roles/orders-{role}",
            db_name="orders",
            creation_statements=[create + f'grant {rights} on orders to "{{{{name}}}}";'],
            default_ttl="2m",
            max_ttl="10m",
        )
    return server


SECRETS = {
    "orders": VaultSecret(path="apps/orders", engine="kv2", field="api_key"),
    "user": VaultSecret(path="apps/orders", engine="kv2", field="api_key", username="user"),
    "short": VaultSecret(path="apps/orders", engine="kv2", field="short"),
    "number": VaultSecret(path="apps/orders", engine="kv2", field="n"),
    "absent": VaultSecret(path="apps/orders", engine="kv2", field="nothing"),
    "missing": VaultSecret(path="apps/missing", engine="kv2", field="api_key"),
    "gone": VaultSecret(path="apps/gone", engine="kv2", field="api_key"),
    "forbidden": VaultSecret(path="elsewhere/x", engine="kv2", field="api_key"),
    "otp": VaultSecret(path="ssh/creds/otp", field="key", username="username", data={"ip": "127.0.0.1"}),
    "badfield": VaultSecret(path="ssh/creds/otp", field="nothing", data={"ip": "127.0.0.1"}),
    "db": VaultSecret(path="database/creds/orders-rw", read_path="database/creds/orders-ro", username="username"),
    "static": VaultSecret(path="secret/data/apps/orders", field="api_key"),
}


@pytest.fixture
def vault(server: Bao, relay: Relay) -> Vault:
    """Logged in as the broker would be: by role and secret id."""
    role = server.api("GET", "auth/approle/role/broker/role-id")["data"]["role_id"]
    secret = server.api("POST", "auth/approle/role/broker/secret-id")["data"]["secret_id"]
    config = VaultProvider(address=server.address, role_id=role, secret_id="approle-secret", secrets=SECRETS)
    return Vault(
        "vault", config, Network(trust=server.authority, proxy=relay.url), {"approle-secret": secret.encode()}.get
    )  # type: ignore[arg-type]


def refused(work: Callable[..., Any], *arguments: Any) -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        work(*arguments)
    assert caught.value.refused.code == "unavailable"
    return caught.value


def test_a_version_of_a_kept_secret(vault: Vault, relay: Relay) -> None:
    issued = vault.issue("orders", FULL)
    assert issued.secret.value == KEY.encode()
    assert (issued.secret.version, issued.handle, issued.ttl_s) == ("2", "", None)
    both = vault.issue("user", FULL)
    assert both.secret.fields == {"username": b"orders", "password": KEY.encode()}
    assert KEY not in repr(issued) + repr(both.secret)
    assert {line.split()[0] for line in relay.asked} == {"CONNECT"}  # nothing went another way


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("short", "shorter than 8"),
        ("number", "no text `n`"),
        ("absent", "no text `nothing`"),
        ("missing", "nothing at the configured path"),
        ("gone", "nothing at the configured path"),
        ("forbidden", "refused the broker (403)"),
        ("static", "no text `api_key`"),
    ],
)
def test_what_cannot_be_had_is_said_in_our_words(vault: Vault, name: str, said: str) -> None:
    error = refused(vault.issue, name, FULL)
    assert said in error.refused.reason
    assert not error.refused.retryable
    assert "permission denied" not in str(error)  # the server's
    assert vault.issue("orders", FULL).secret.value == KEY.encode()


def test_a_one_time_password_is_good_until_it_is_revoked(vault: Vault, server: Bao) -> None:
    first, second = vault.issue("otp", FULL), vault.issue("otp", FULL)
    assert first.handle.startswith("ssh/creds/otp/")
    assert first.secret.value != second.secret.value
    assert second.secret.fields["username"] == b"somebody"

    def good(otp: bytearray) -> bool:
        try:
            return server.api("POST", "ssh/verify", otp=otp.decode())["data"]["username"] == "somebody"
        except AssertionError:
            return False

    vault.revoke(second.handle)
    assert not good(second.secret.value)
    assert good(first.secret.value)
    vault.revoke(second.handle)  # once more: the end is the same
    vault.revoke(first.handle)
    assert server.leases("ssh/creds/otp") == []


def test_a_lease_whose_answer_cannot_be_used_is_undone(vault: Vault, server: Bao) -> None:
    assert "no text" in refused(vault.issue, "badfield", FULL).refused.reason
    assert server.leases("ssh/creds/otp") == []


def test_a_role_of_a_database_lives_as_long_as_its_lease(vault: Vault, database: Bao, postgres: Postgres) -> None:
    issued = vault.issue("db", FULL)
    user, password = (issued.secret.fields[name].decode() for name in ("username", "password"))
    assert issued.renewable
    assert issued.ttl_s is not None
    assert 100 < issued.ttl_s <= 120
    assert postgres.accepts(user, password, "insert into orders values (1)")
    assert 200 < vault.renew(issued.handle, 240.0) <= 240
    assert postgres.accepts(user, password)
    vault.revoke(issued.handle)
    assert not postgres.accepts(user, password)
    assert postgres.accepts("root", postgres.password)
    assert "ended" in refused(vault.renew, issued.handle, 60.0).refused.reason


def test_a_tool_that_only_reads_gets_a_role_that_can_only_read(vault: Vault, database: Bao, postgres: Postgres) -> None:
    able = {}
    for wish in (FULL, READ):
        issued = vault.issue("db", wish)
        user, password = (issued.secret.fields[name].decode() for name in ("username", "password"))
        assert postgres.accepts(user, password, "select * from orders")
        able[issued.reach] = postgres.accepts(user, password, "insert into orders values (2)")
        vault.revoke(issued.handle)
    assert able == {"full": True, "read": False}
    assert vault.issue("orders", READ).reach == "full"  # nothing narrower is configured


def test_a_login_that_was_taken_back_is_made_anew(vault: Vault, server: Bao) -> None:
    vault.issue("orders", FULL)
    token = vault._token
    vault.issue("orders", FULL)
    assert vault._token == token  # kept
    server.api("POST", "auth/token/revoke", token=token)
    assert vault.issue("orders", FULL).secret.value == KEY.encode()
    assert vault._token != token


def test_a_lease_is_not_asked_for_with_a_login_that_ends_before_it(vault: Vault, server: Bao) -> None:
    vault.issue("orders", FULL)
    token = vault._token
    issued = vault.issue("otp", Wish(read=False, ttl_s=601.0))
    assert vault._token != token
    assert issued.ttl_s is not None
    assert issued.ttl_s <= 600  # it ends with the login, whatever the engine says
    vault.revoke(issued.handle)


def test_a_wrong_secret_id_is_refused(vault: Vault) -> None:
    vault._credential = lambda name: b"00000000-0000-0000-0000-000000000000"
    assert vault.issue  # the fixture works: every other test uses it
    assert "400" in refused(vault.issue, "orders", FULL).refused.reason


def with_token(server: Bao, network: Network, address: str = "", **options: Any) -> Vault:
    config = VaultProvider(address=address or server.address, token="token", secrets=SECRETS, **options)
    return Vault("vault", config, network, lambda name: server.token.encode())


def test_a_token_of_a_file_will_do(server: Bao, relay: Relay) -> None:
    provider = with_token(server, Network(trust=server.authority, proxy=relay.url))
    assert provider.issue("orders", FULL).secret.value == KEY.encode()


def test_a_server_that_egress_does_not_let_it_reach(server: Bao, relay: Relay) -> None:
    provider = with_token(server, Network(trust=server.authority, proxy=relay.url))
    relay.refuse = True
    error = refused(provider.issue, "orders", FULL)
    assert "egress does not let" in error.refused.reason
    assert "daemon.destinations" in error.refused.next_step
    relay.refuse = False
    provider.issue("orders", FULL)


def test_without_egress_there_is_no_other_way(server: Bao, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "*")  # what would make requests dial by itself
    provider = with_token(server, Network(trust=server.authority, proxy=f"http://127.0.0.1:{free_port()}"))
    error = refused(provider.issue, "orders", FULL)
    assert "cannot be reached" in error.refused.reason
    assert error.refused.retryable


def test_a_certificate_of_another_authority(server: Bao, relay: Relay, authority: Authority) -> None:
    provider = with_token(server, Network(trust=authority.pem, proxy=relay.url))
    assert "certificate" in refused(provider.issue, "orders", FULL).refused.reason


@contextmanager
def hostile(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that answers each connection in its own way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()

        def serve() -> None:
            listener.settimeout(0.05)
            while not over.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                connection.settimeout(20)
                with connection:
                    try:
                        connection.recv(1 << 16)
                        answer(connection)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        over.set()
        thread.join()


def _dribble(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"x: y\r\n")
        threading.Event().wait(0.05)


def _body(data: bytes, head: bytes = b"") -> Callable[[socket.socket], None]:
    heads = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + head
    return lambda connection: connection.sendall(heads + b"content-length: %d\r\n\r\n" % len(data) + data)


@pytest.mark.parametrize(
    ("answer", "said", "again"),
    [
        (_dribble, "no answer within 0.5 s", True),
        (lambda connection: connection.recv(1), "no answer within 0.5 s", True),
        (lambda connection: None, "cannot be reached", True),
        (lambda connection: connection.sendall(b"SSH-2.0-x\r\n"), "cannot be reached", True),
        (
            lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"),
            "cannot be reached",
            True,
        ),
        (lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n{}"), "cannot be reached", True),
        (_body(b"[" * (http.MAX_ANSWER + 1)), "longer than", False),
        (_body(b"[" * 100_000), "nested too deep", False),
        (_body(b"[]"), "without `data`", False),
        (_body(b'{"data":{"data":{"api_key":"' + b"x" * 40_000 + b'"},"metadata":{}}}'), "no text", False),
        (_body(b'{"data":{"data":{"api_key":"\\ud800aaaaaaaa"},"metadata":{}}}'), "not Unicode", False),
        (lambda c: c.sendall(b"HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n"), "answered 503", True),
        (lambda c: c.sendall(b"HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n"), "answered 500", True),
        (lambda c: c.sendall(b"HTTP/1.1 307 x\r\nlocation: /v1/y\r\ncontent-length: 0\r\n\r\n"), "redirects", False),
    ],
)
def test_a_hostile_or_slow_server_is_a_refusal(
    server: Bao, relay: Relay, answer: Callable[[socket.socket], None], said: str, again: bool
) -> None:
    with hostile(answer) as address:
        provider = with_token(server, Network(proxy=relay.url), address, timeout_s=0.5)
        error = refused(provider.issue, "orders", FULL)
        assert said in error.refused.reason
        assert error.refused.retryable is again
    with hostile(_body(b'{"data":{"data":{"api_key":"12345678"},"metadata":{"version":1}}}')) as address:
        provider = with_token(server, Network(proxy=relay.url), address, timeout_s=5.0)
        assert provider.issue("orders", FULL).secret.value == b"12345678"


def test_a_server_that_did_nothing_is_asked_once_more(server: Bao, relay: Relay) -> None:
    answers = iter(
        (
            lambda c: c.sendall(b"HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n"),
            _body(b'{"data":{"data":{"api_key":"12345678"},"metadata":{"version":1}}}'),
        )
    )
    with hostile(lambda connection: next(answers)(connection)) as address:
        provider = with_token(server, Network(proxy=relay.url), address)
        assert provider.issue("orders", FULL).secret.value == b"12345678"


def test_what_may_have_been_made_is_not_asked_for_again(server: Bao, relay: Relay) -> None:
    """The server read the request and hung up: a second one could make a second credential."""
    count = 0

    def once(connection: socket.socket) -> None:
        nonlocal count
        count += 1

    with hostile(once) as address:
        refused(with_token(server, Network(proxy=relay.url), address).issue, "db", FULL)
    assert count == 1
