"""OAuth 2.0: against an authorization server made with another library than the client, over TLS, through a proxy."""

from __future__ import annotations

import http.server
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, unquote_plus

import oauthlib.oauth2 as server_side
import pytest
from credential_servers import Authority, Relay
from oauthlib.oauth2.rfc6749.grant_types.client_credentials import ClientCredentialsGrant

from runner.broker.providers.http import Network
from runner.broker.providers.oauth import OAuth
from runner.broker.providers.provider import Wish
from runner.config import OAuthProvider, OAuthSecret
from runner.errors import RunnerError

FULL, READ = Wish(read=False, ttl_s=60.0), Wish(read=True, ttl_s=60.0)
CLIENT, SECRET, SUBJECT = "broker", "client-secret:with+odd&characters", "token-of-a-person"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"


class Rules(server_side.RequestValidator):
    """Who may have which token. `tokens` are those in force, with what they were given for."""

    def __init__(self) -> None:
        self.tokens: dict[str, dict[str, Any]] = {}
        self.requests: list[dict[str, Any]] = []
        self.change: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.status = 0

    def authenticate_client(self, request: Any, *_: Any, **__: Any) -> bool:
        import base64

        given = request.headers.get("Authorization", "")
        if given.startswith("Basic "):
            name, _, secret = base64.b64decode(given[6:]).decode().partition(":")
            name, secret = unquote_plus(name), unquote_plus(secret)
            how = "basic"
        else:
            name, secret, how = request.client_id, request.client_secret, "post"
        request.client = type("Client", (), {"client_id": name})
        self.requests.append({"how": how, **dict(request.decoded_body)})
        return (name, secret) == (CLIENT, SECRET)

    def validate_grant_type(self, client_id: str, grant_type: str, *_: Any, **__: Any) -> bool:
        return grant_type in ("client_credentials", EXCHANGE)

    def get_default_scopes(self, *_: Any, **__: Any) -> list[str]:
        return ["orders.read"]

    def validate_scopes(self, client_id: str, scopes: list[str], *_: Any, **__: Any) -> bool:
        return set(scopes) <= {"orders.read", "orders.write"}

    def save_bearer_token(self, token: dict[str, Any], request: Any, *_: Any, **__: Any) -> None:
        self.tokens[token["access_token"]] = {"scope": set(token["scope"].split()), "grant": request.grant_type}

    def revoke_token(self, token: str, *_: Any, **__: Any) -> None:
        self.tokens.pop(token, None)


class Exchange(ClientCredentialsGrant):
    """RFC 8693 in the server's own framework: what differs is the subject."""

    def validate_token_request(self, request: Any) -> None:
        wanted = {"subject_token_type": "urn:ietf:params:oauth:token-type:access_token", "subject_token": SUBJECT}
        body = dict(request.decoded_body)
        if not self.request_validator.authenticate_client(request):
            raise server_side.InvalidClientError(request=request)
        if any(body.get(name) != value for name, value in wanted.items()):
            raise server_side.InvalidGrantError(request=request)
        if body.get("audience") != "https://orders.test":
            raise server_side.OAuth2Error(request=request)
        self.validate_scopes(request)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, authority: Authority) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.socket = authority.server().wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.rules = Rules()
        self.endpoint = server_side.BackendApplicationServer(
            self.rules, token_generator=lambda _: secrets.token_hex(16)
        )
        self.endpoint.grant_types[EXCHANGE] = Exchange(self.rules, refresh_token=False)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up, or does not like the certificate, is no news."""


class Answering(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        kind = self.endpoint_response(body)
        heads, text, status = kind
        if status == 200 and text:
            changed = self.server.rules.change(json.loads(text))
            text = changed if isinstance(changed, str) else json.dumps(changed)
        self.send_response(self.server.rules.status or status)
        for name, value in heads.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def endpoint_response(self, body: str) -> tuple[dict[str, str], str, int]:
        endpoint, url = self.server.endpoint, f"{self.server.url}{self.path}"
        if self.path == "/token":
            found = endpoint.create_token_response(url, "POST", body, dict(self.headers))
        else:
            parse_qs(body, strict_parsing=True)
            found = server_side.RevocationEndpoint(self.server.rules).create_revocation_response(
                url, "POST", body, dict(self.headers)
            )
        return found[0], found[1] or "", found[2]

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(authority: Authority) -> Iterator[Server]:
    with Server(authority) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


SECRETS = {
    "orders": OAuthSecret(scope="orders.read orders.write", read_scope="orders.read"),
    "plain": OAuthSecret(),
    "person": OAuthSecret(scope="orders.read", audience="https://orders.test", subject_token="subject"),
    "stranger": OAuthSecret(scope="orders.read", audience="https://orders.test", subject_token="wrong"),
    "admin": OAuthSecret(scope="admin"),
}
HELD = {"client": SECRET, "subject": SUBJECT, "wrong": "token-of-nobody", "bad": "another-client-secret"}


def provider(server: Server, network: Network, **options: Any) -> OAuth:
    settings = {"client_id": CLIENT, "client_secret": "client", "revocation_endpoint": f"{server.url}/revoke"} | options
    config = OAuthProvider(token_endpoint=f"{server.url}/token", secrets=SECRETS, **settings)
    return OAuth("idp", config, network, lambda name: HELD[name].encode())


def refused(work: Callable[..., Any], *arguments: Any) -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        work(*arguments)
    assert caught.value.refused.code == "unavailable"
    return caught.value


@pytest.mark.parametrize("how", ["basic", "post"])
def test_a_token_for_each_call_dead_when_it_is_revoked(
    server: Server, network: Network, relay: Relay, how: str
) -> None:
    idp = provider(server, network, client_auth=f"client_secret_{how}")
    first, second = idp.issue("orders", FULL), idp.issue("orders", FULL)
    tokens = [bytes(each.secret.value).decode() for each in (first, second)]
    assert tokens[0] != tokens[1]
    assert set(tokens) == set(server.rules.tokens)
    assert first.ttl_s == 3600
    assert not first.renewable
    idp.revoke(first.handle)
    assert set(server.rules.tokens) == {tokens[1]}
    idp.revoke(first.handle)  # unknown by now, and that is no error
    assert {each["how"] for each in server.rules.requests} == {how}
    assert {line.split()[0] for line in relay.asked} == {"CONNECT"}
    assert tokens[0] not in repr(first)


def test_a_tool_that_only_reads_gets_a_token_that_can_only_read(server: Server, network: Network) -> None:
    idp = provider(server, network)
    reach = {}
    for wish in (FULL, READ):
        issued = idp.issue("orders", wish)
        reach[issued.reach] = server.rules.tokens[issued.secret.value.decode()]["scope"]
    assert reach == {"full": {"orders.read", "orders.write"}, "read": {"orders.read"}}
    assert idp.issue("plain", READ).reach == "full"  # nothing narrower is configured


def test_a_token_is_exchanged_for_a_persons(server: Server, network: Network) -> None:
    idp = provider(server, network)
    issued = idp.issue("person", FULL)
    assert server.rules.tokens[issued.secret.value.decode()]["grant"] == EXCHANGE
    asked = server.rules.requests[-1]
    assert asked["subject_token"] == SUBJECT
    assert asked["requested_token_type"] == "urn:ietf:params:oauth:token-type:access_token"
    assert "invalid_grant" in refused(idp.issue, "stranger", FULL).refused.reason


def test_without_a_revocation_endpoint_a_token_has_no_handle(server: Server, network: Network) -> None:
    issued = provider(server, network, revocation_endpoint="").issue("orders", FULL)
    assert (issued.handle, issued.ttl_s) == ("", 3600)


def test_what_the_server_refuses_is_said_by_its_own_code_and_no_more(server: Server, network: Network) -> None:
    assert "invalid_scope" in refused(provider(server, network).issue, "admin", FULL).refused.reason
    error = refused(provider(server, network, client_secret="bad").issue, "orders", FULL)
    assert "invalid_client" in error.refused.reason
    assert HELD["bad"] not in str(error)
    assert provider(server, network).issue("orders", FULL).secret.value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda answer: answer | {"scope": "orders.read orders.write"}, "further than"),
        (lambda answer: answer | {"scope": 5}, "further than"),
        (lambda answer: answer | {"token_type": "mac"}, "no bearer token"),
        (lambda answer: answer | {"expires_in": -1}, "no bearer token"),
        (lambda answer: answer | {"access_token": "short"}, "shorter than 8"),
        (lambda answer: answer | {"access_token": ["a"]}, "no text"),
        (lambda answer: {}, "no bearer token"),
        (lambda answer: [], "that is no token"),
        (lambda answer: "<html>", "that is no token"),
        (lambda answer: {"error": "a-canary-in-an-error"}, "an error it has no name for"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for(
    server: Server, network: Network, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    idp = provider(server, network)
    server.rules.change = change
    error = refused(idp.issue, "orders", READ)
    assert said in error.refused.reason
    assert "canary" not in str(error)
    server.rules.change = lambda answer: answer
    assert idp.issue("orders", READ).secret.value


def test_a_token_that_reaches_too_far_is_taken_back(server: Server, network: Network) -> None:
    idp = provider(server, network)
    server.rules.change = lambda answer: answer | {"scope": "orders.read orders.write"}
    refused(idp.issue, "orders", READ)
    assert server.rules.tokens == {}


@pytest.mark.parametrize(("status", "again"), [(500, True), (503, True), (403, False)])
def test_a_server_that_fails(server: Server, network: Network, status: int, again: bool) -> None:
    idp = provider(server, network)
    issued = idp.issue("orders", FULL)
    server.rules.status = status
    error = refused(idp.issue, "orders", FULL)
    assert str(status) in error.refused.reason
    assert error.refused.retryable is again
    assert str(status) in refused(idp.revoke, issued.handle).refused.reason
    server.rules.status = 0
    idp.revoke(issued.handle)


def test_a_certificate_of_another_authority(server: Server, relay: Relay, tmp_path: Any) -> None:
    other = Network(trust=Authority(tmp_path, "another").pem, proxy=relay.url)
    error = refused(provider(server, other).issue, "orders", FULL)
    assert "certificate" in error.refused.reason
    assert server.rules.requests == []  # nothing was said to it


def test_egress_that_refuses(server: Server, network: Network, relay: Relay) -> None:
    relay.refuse = True
    assert "egress" in refused(provider(server, network).issue, "orders", FULL).refused.reason
    relay.refuse = False
    assert provider(server, network).issue("orders", FULL).secret.value


def test_no_variable_of_the_environment_is_another_way(
    server: Server, authority: Authority, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Relay() as closed:
        nowhere = closed.url
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, relay.url)
    idp = provider(server, Network(trust=authority.pem, proxy=nowhere))
    assert "cannot be reached" in refused(idp.issue, "orders", FULL).refused.reason
    assert relay.asked == []


def test_a_token_cannot_be_renewed(server: Server, network: Network) -> None:
    idp = provider(server, network)
    assert "not renewed" in refused(idp.renew, idp.issue("orders", FULL).handle, 60.0).refused.reason
