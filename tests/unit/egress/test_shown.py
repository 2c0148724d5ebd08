"""Gate sees every byte of a readable request before any of it goes on, and its no stops the rest."""

from __future__ import annotations

import socket

import pytest
from outside import NAME, Outside, drained, refused, rule, talk

from runner.egress.shown import FIRST, HELD
from runner.wire import egress as wire

pytestmark = pytest.mark.root
NO = wire.Answer(number=0, allowed=False, rule="customer-data", reason="it is a customer's", next_step="leave it out")
MARK = b"Ada Lovelace, C-10294"


class Taken:
    """A server that notes what it gets of a request and answers once it has the whole."""

    def __init__(self, outside: Outside, size: int) -> None:
        self.origin = outside.origin(lambda connection: self.serve(connection, size))
        self.got = bytearray()

    def serve(self, connection: socket.socket, size: int) -> None:
        while not self.got.partition(b"\r\n\r\n")[1] or len(self.got.partition(b"\r\n\r\n")[2]) < size:
            data = connection.recv(65536)
            if not data:
                return
            self.got += data
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def post(port: int, body: bytes, *, more: str = "", size: int = -1) -> bytes:
    length = len(body) if size < 0 else size
    head = (
        f"POST http://{NAME}:{port}/a%20b?q=1 HTTP/1.1\r\nHost: {NAME}:{port}\r\nContent-Length: {length}\r\n{more}\r\n"
    )
    return head.encode() + body


def opened(outside: Outside, server: Taken) -> int:
    return outside.open(rule(port=server.origin.port, protocol="http"))


def test_line_fields_and_body_are_shown_with_the_question(outside: Outside) -> None:
    server = Taken(outside, len(MARK))
    answer = talk(opened(outside, server), post(server.origin.port, MARK, more="X-Note: hello\r\n"), half_close=True)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert server.got.endswith(MARK)
    (readable,) = outside.gate.read
    assert readable.head.startswith(f"POST {NAME}/a%20b?q=1\n".encode())
    assert b"\nx-note: hello" in readable.head
    assert (readable.body, readable.last) == (MARK, True)
    assert not outside.gate.looked


def test_what_gate_denies_is_never_dialled(outside: Outside) -> None:
    server = Taken(outside, len(MARK))
    outside.gate.decide = lambda _: NO
    told = refused(talk(opened(outside, server), post(server.origin.port, MARK)))
    assert (told["code"], told["part"]) == ("denied", "policy customer-data")
    assert "has seen nothing" in told["title"]
    assert server.origin.dialled == 0


def test_what_follows_is_shown_before_it_goes_on(outside: Outside) -> None:
    body = b"x" * (3 * FIRST) + MARK
    server = Taken(outside, len(body))
    answer = talk(opened(outside, server), post(server.origin.port, body), half_close=True)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert server.got.endswith(body)
    first = outside.gate.read[0]
    assert not first.last
    assert len(first.body) >= FIRST
    assert first.body + b"".join(data for _, data, _ in outside.gate.looked) == body
    assert [last for _, _, last in outside.gate.looked] == [False] * (len(outside.gate.looked) - 1) + [True]


def test_a_piece_that_is_denied_does_not_leave_nor_what_stood_before_it(outside: Outside) -> None:
    body = b"x" * (3 * FIRST) + MARK
    server = Taken(outside, len(body))
    outside.gate.judge = lambda data: NO if MARK in data else wire.Answer(number=0, allowed=True)
    told = refused(talk(opened(outside, server), post(server.origin.port, body)))
    assert told["code"] == "denied"
    assert "has seen nothing" not in told["title"]
    sent = bytes(server.got).partition(b"\r\n\r\n")[2]
    assert MARK not in sent
    assert len(sent) <= len(body) - len(MARK) - HELD
    (ended,) = outside.wait(lambda: outside.gate.of(wire.Ended))
    assert (ended.code, ended.reason) == ("denied", "it is a customer's")


def test_bytes_that_come_one_by_one_are_held_until_more_was_seen(outside: Outside) -> None:
    """Of a record that dribbles nothing has left when it is known."""
    body = b"x" * (FIRST + HELD)
    server = Taken(outside, len(body) + len(MARK))
    seen = bytearray()

    def judge(data: bytes) -> wire.Answer:
        seen.extend(data)
        return NO if seen.endswith(MARK) else wire.Answer(number=0, allowed=True)

    outside.gate.judge = judge
    port = opened(outside, server)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(post(server.origin.port, body, size=len(body) + len(MARK) + 100))
        outside.wait(lambda: outside.gate.read and len(outside.gate.read[0].body) + len(seen) == len(body))
        for at in range(len(MARK)):
            outside.wait(lambda at=at: not at or seen.endswith(MARK[:at]))
            sock.sendall(MARK[at : at + 1])
        assert refused(drained(sock))["code"] == "denied"
    sent = bytes(server.got).partition(b"\r\n\r\n")[2]
    assert set(sent) == {ord("x")}


def test_chunks_are_shown_too(outside: Outside) -> None:
    server = Taken(outside, 1)
    head = f"POST http://{NAME}:{server.origin.port}/ HTTP/1.1\r\nHost: {NAME}:{server.origin.port}\r\n"
    text = head.encode() + b"Transfer-Encoding: chunked\r\n\r\n5\r\nAda L\r\n7\r\novelace\r\n0\r\n\r\n"
    assert talk(opened(outside, server), text, half_close=True).startswith(b"HTTP/1.1 200 ")
    assert (outside.gate.read[0].body, outside.gate.read[0].last) == (b"Ada Lovelace", True)


def test_a_body_that_is_cut_or_broken_is_no_question(outside: Outside) -> None:
    server = Taken(outside, 1)
    port = opened(outside, server)
    told = refused(talk(port, post(server.origin.port, b"short", size=100), half_close=True))
    assert told["code"] == "interrupted"
    assert not outside.gate.asked
    assert server.origin.dialled == 0


def test_whoever_waits_for_100_gets_it_before_gate_is_asked(outside: Outside) -> None:
    server = Taken(outside, len(MARK))
    port = opened(outside, server)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(post(server.origin.port, b"", more="Expect: 100-continue\r\n", size=len(MARK)))
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        assert not outside.gate.asked
        sock.sendall(MARK)
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_the_daemons_own_requests_are_shown_to_nobody(outside: Outside) -> None:
    server = Taken(outside, len(MARK))
    port = outside.open(rule(port=server.origin.port, protocol="http"), blind=True)
    assert talk(port, post(server.origin.port, MARK), half_close=True).startswith(b"HTTP/1.1 200 ")
    assert outside.gate.read == [(b"", b"", True)]
