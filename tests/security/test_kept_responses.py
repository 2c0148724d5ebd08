"""Cassettes at the proxy: a kept response is what the sandbox got, without credentials, or it is not kept at all."""

from __future__ import annotations

import gzip
import socket
from typing import Literal

import pytest
from outside import DEADLINE_S, NAME, Outside, drained, rule, talk

from runner.wire import egress as wire

KEY = "rnr-" + "k" * 32
VALUE = b"sk-live-0123456789abcdef"
CLOSE = "Connection: close\r\n"


def answering(outside: Outside, *answers: bytes) -> int:
    """A server that answers each request with the next of these."""
    left = list(answers)

    def serve(connection: socket.socket) -> None:
        while left:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                data = connection.recv(1)
                if not data:
                    return
                head += data
            connection.sendall(left.pop(0))

    return outside.origin(serve).port


def opened(outside: Outside, port: int, *, keep: bool = True, injected: bool = False) -> int:
    key = wire.Injection(name="key", placeholder=KEY, value=VALUE, rules=("api",), places=("header:authorization",))
    return outside.open(
        rule(port=port, protocol="http", keep=keep), profile=(rule(port=port, protocol="http"),),
        injections=(key,) if injected else (),
    )  # fmt: skip


def get(outside: Outside, listener: int, port: int, *more: str) -> tuple[bytes, wire.Ended]:
    lines = "".join(f"{line}\r\n" for line in more)
    before = len(outside.gate.of(wire.Ended))
    got = talk(listener, f"GET http://{NAME}:{port}/x HTTP/1.1\r\nHost: {NAME}:{port}\r\n{CLOSE}{lines}\r\n".encode())
    outside.wait(lambda: len(outside.gate.of(wire.Ended)) > before)
    return got, outside.gate.of(wire.Ended)[-1]


def kept(outside: Outside, request: int = 1) -> bytes:
    return b"".join(data for number, data in outside.gate.kept if number == request)


PLAIN = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nSet-Cookie: sid=1\r\nWWW-Authenticate: x\r\n"
    b"Content-Length: 5\r\n\r\nhello"
)
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"


def test_where_a_rule_says_so_and_nowhere_else(outside: Outside) -> None:
    port = answering(outside, PLAIN)
    got, ended = get(outside, opened(outside, port, keep=False), port)
    assert got.endswith(b"hello")
    assert (ended.status, ended.whole, outside.gate.kept) == (200, False, [])


def test_it_is_what_the_sandbox_got_without_cookies(outside: Outside) -> None:
    port = answering(outside, PLAIN)
    got, ended = get(outside, opened(outside, port), port)
    assert b"set-cookie: sid=1" in got.lower()  # its twin: the tool gets everything
    assert kept(outside) == b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello"
    assert (ended.whole, ended.unkept) == (True, "")


def test_the_body_is_kept_without_its_framing(outside: Outside) -> None:
    port = answering(outside, CHUNKS)
    _, ended = get(outside, opened(outside, port), port)
    assert kept(outside) == b"HTTP/1.1 200 OK\r\n\r\nhello"
    assert ended.whole


def test_much_of_it_comes_in_pieces_until_gate_wants_no_more(outside: Outside) -> None:
    body = bytes(range(256)) * 2000
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    port = answering(outside, answer, answer)
    listener = opened(outside, port)
    got, ended = get(outside, listener, port)
    assert got.endswith(body)
    assert kept(outside).partition(b"\r\n\r\n")[2] == body
    assert len(outside.gate.kept) > 2
    assert ended.whole
    outside.gate.kept.clear()
    outside.gate.wanted = 1
    got, ended = get(outside, listener, port)
    assert got.endswith(body)  # the tool's answer does not depend on it
    assert not ended.whole
    assert len(outside.gate.kept) == 2  # the one that was too much was the last


def test_one_that_ends_too_soon_is_not_whole(outside: Outside) -> None:
    port = answering(outside, PLAIN.replace(b"Length: 5", b"Length: 50"))
    _, ended = get(outside, opened(outside, port), port)
    assert (ended.whole, ended.code) == (False, "upstream")


def test_a_response_that_repeats_a_credential_is_never_whole(outside: Outside) -> None:
    body = b"your key is " + VALUE + b" indeed"
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    port = answering(outside, answer, PLAIN)
    listener = opened(outside, port, injected=True)
    got, ended = get(outside, listener, port, f"Authorization: Bearer {KEY}")
    assert VALUE not in got + kept(outside)
    assert (ended.whole, ended.code, ended.secrets) == (False, "injection", ("key",))
    got, ended = get(outside, listener, port, f"Authorization: Bearer {KEY}")
    assert got.endswith(b"hello")
    assert ended.whole
    assert VALUE not in kept(outside, 2)


def test_what_cannot_be_searched_for_the_credential_is_not_kept(outside: Outside) -> None:
    body = gzip.compress(b"your key is " + VALUE)
    coded = b"Content-Encoding: identity\r\nContent-Encoding: gzip\r\n"
    answer = b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (coded, len(body)) + body
    port = answering(outside, answer, answer)
    listener = opened(outside, port, injected=True)
    _, ended = get(outside, listener, port, f"Authorization: Bearer {KEY}")
    assert not ended.whole
    assert "compressed" in ended.unkept
    assert outside.gate.kept == []
    _, ended = get(outside, listener, port)  # its twin, with which no credential went
    assert ended.whole
    assert kept(outside, 2).endswith(body)


def test_a_call_that_ends_leaves_nothing_whole(outside: Outside) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        drained(connection)

    port = outside.origin(serve).port
    listener = opened(outside, port)
    with socket.create_connection(("127.0.0.1", listener), timeout=DEADLINE_S) as sock:
        sock.sendall(f"GET http://{NAME}:{port}/x HTTP/1.1\r\nHost: {NAME}:{port}\r\n\r\n".encode())
        seen = b""
        while not seen.endswith(b"half"):
            seen += sock.recv(4096)
        outside.end()
    (ended,) = outside.gate.of(wire.Ended)
    assert (ended.whole, ended.code) == (False, "interrupted")


@pytest.mark.parametrize("record", ["digest", "path"])
def test_a_refusal_is_told_as_rules_record_paths(outside: Outside, record: Literal["digest", "path"]) -> None:
    port = answering(outside)
    listener = outside.open(
        rule(port=port, protocol="http", methods=("POST",)), rule("else", "else.test", record=record),
        profile=(rule(port=port, protocol="http"),),
    )  # fmt: skip
    talk(listener, f"GET http://{NAME}:{port}/secret HTTP/1.1\r\nHost: {NAME}:{port}\r\n{CLOSE}\r\n".encode())
    (told,) = outside.gate.of(wire.Refused)
    assert (told.request.path, told.request.record, told.code) == ("/secret", record, "egress")
