"""Heads: one reading or none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.egress.head import (
    CHUNKED,
    UNTIL_CLOSE,
    Syntax,
    end_of,
    end_to_end,
    parse_request,
    parse_response,
    render,
)

GOOD = b"GET http://h/ HTTP/1.1\r\nHost: h\r\n\r\n"


def request(*lines: bytes, first: bytes = b"GET http://h/ HTTP/1.1", host: bool = True) -> bytes:
    return b"\r\n".join((first, *((b"Host: h",) if host else ()), *lines, b"", b""))


def response(*lines: bytes, first: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join((first, *lines, b"", b""))


def test_a_plain_request_is_read() -> None:
    head = parse_request(
        request(b"X-A:  b\t", b"Content-Length: 5", b"Expect: 100-continue", b"connection: close, X-A"), 100
    )
    assert (head.method, head.target, head.length, head.keep, head.expect) == ("GET", "http://h/", 5, False, True)
    assert head.header(b"x-a") == b"b"
    assert end_to_end(head.headers) == [(b"host", b"h"), (b"content-length", b"5")]


def test_what_is_for_one_hop_or_for_a_proxy_is_not_passed_on() -> None:
    lines = (
        *(b"Proxy-Authorization: Basic eDp5", b"Proxy-Connection: keep-alive", b"Keep-Alive: 5", b"TE: trailers"),
        *(b"Trailer: X", b"Connection: X-Secret, upgrade", b"X-Secret: 1", b"Upgrade: websocket", b"Accept: */*"),
    )
    head = parse_request(request(*lines), 100)
    assert head.upgrade == "websocket"
    assert end_to_end(head.headers) == [(b"host", b"h"), (b"accept", b"*/*")]


BAD_REQUESTS = {
    "obs-fold": request(b"A: b", b" c"),
    "obs-fold with a tab": request(b"A: b", b"\tc"),
    "fold on the first line": request(b" A: b", host=False),
    "space before the colon": request(b"A : b"),
    "tab before the colon": request(b"A\t: b"),
    "no colon": request(b"A"),
    "empty name": request(b": b"),
    "name with a space": request(b"A B: c"),
    "name with a slash": request(b"A/B: c"),
    "name that is not ASCII": request(b"\xc3\xa4: c"),
    "NUL in a value": request(b"A: b\0c"),
    "NUL in a name": request(b"A\0: b"),
    "bare CR in a value": request(b"A: b\rc"),
    "bare CR before the end": request(b"A: b\r"),
    "vertical tab": request(b"A: b\x0bc"),
    "DEL": request(b"A: b\x7f"),
    "escape": request(b"A: \x1b[31m"),
    "two hosts": request(b"Host: h"),
    "two hosts that differ": request(b"hOST: g"),
    "no host": request(host=False),
    "CL and TE": request(b"Content-Length: 3", b"Transfer-Encoding: chunked"),
    "TE and CL": request(b"Transfer-Encoding: chunked", b"Content-Length: 3"),
    "two lengths": request(b"Content-Length: 3", b"Content-Length: 3"),
    "two lengths that differ": request(b"Content-Length: 3", b"Content-Length: 4"),
    "a list of lengths": request(b"Content-Length: 3, 3"),
    "signed length": request(b"Content-Length: +3"),
    "negative length": request(b"Content-Length: -3"),
    "hexadecimal length": request(b"Content-Length: 0x3"),
    "length with a space": request(b"Content-Length: 3 3"),
    "length with an underscore": request(b"Content-Length: 1_0"),
    "empty length": request(b"Content-Length:"),
    "length past 64 bits": request(b"Content-Length: 18446744073709551617"),
    "length in other digits": request("Content-Length: ٣".encode()),
    "TE twins": request(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "TE twins, one unknown": request(b"Transfer-Encoding: chunked", b"Transfer-Encoding: cow"),
    "TE list": request(b"Transfer-Encoding: gzip, chunked"),
    "TE chunked twice": request(b"Transfer-Encoding: chunked, chunked"),
    "TE identity": request(b"Transfer-Encoding: identity"),
    "TE with a parameter": request(b"Transfer-Encoding: chunked;q=1"),
    "TE quoted": request(b'Transfer-Encoding: "chunked"'),
    "TE with a vertical tab": request(b"Transfer-Encoding: \x0bchunked"),
    "TE folded": request(b"Transfer-Encoding:", b" chunked"),
    "TE in HTTP/1.0": request(b"Transfer-Encoding: chunked", first=b"GET http://h/ HTTP/1.0"),
    "two authorizations": request(b"Authorization: a", b"Authorization: b"),
    "two upgrades": request(b"Connection: upgrade", b"Upgrade: a", b"Upgrade: b"),
    "upgrade without connection": request(b"Upgrade: websocket"),
    "upgrade in HTTP/1.0": request(b"Upgrade: a", b"Connection: upgrade", first=b"GET http://h/ HTTP/1.0"),
    "another expectation": request(b"Expect: 200-ok"),
    "connection hides the host": request(b"Connection: host"),
    "connection hides the length": request(b"Connection: close, content-length", b"Content-Length: 3"),
    "connection hides the coding": request(b"Connection: Transfer-Encoding", b"Transfer-Encoding: chunked"),
    "connection is no list": request(b"Connection: a b"),
    "two spaces": request(first=b"GET  http://h/ HTTP/1.1"),
    "tab in the request line": request(first=b"GET\thttp://h/ HTTP/1.1"),
    "space in the target": request(first=b"GET http://h/ b HTTP/1.1"),
    "space at the end": request(first=b"GET http://h/ HTTP/1.1 "),
    "no version": request(first=b"GET http://h/"),
    "HTTP/0.9": request(first=b"GET http://h/ HTTP/0.9"),
    "HTTP/1.2": request(first=b"GET http://h/ HTTP/1.2"),
    "HTTP/2.0": request(first=b"PRI * HTTP/2.0"),
    "http in lower case": request(first=b"GET http://h/ http/1.1"),
    "empty method": request(first=b" http://h/ HTTP/1.1"),
    "method with a colon": request(first=b"GE:T http://h/ HTTP/1.1"),
    "endless method": request(first=b"A" * 33 + b" http://h/ HTTP/1.1"),
    "target with a NUL": request(first=b"GET http://h/\0 HTTP/1.1"),
    "target that is not ASCII": request(first="GET http://h/ä HTTP/1.1".encode()),
    "too many fields": request(*(b"A: b" for _ in range(100))),
}


@pytest.mark.parametrize("raw", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_a_request_with_two_readings_is_none(raw: bytes) -> None:
    assert parse_request(GOOD, 100).target == "http://h/"
    with pytest.raises(Syntax):
        parse_request(raw, 100)


BAD_RESPONSES = {
    "CL and TE": response(b"Content-Length: 3", b"Transfer-Encoding: chunked"),
    "two lengths": response(b"Content-Length: 3", b"Content-Length: 4"),
    "TE twins": response(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "TE list": response(b"Transfer-Encoding: gzip, chunked"),
    "TE in HTTP/1.0": response(b"Transfer-Encoding: chunked", first=b"HTTP/1.0 200 OK"),
    "fold": response(b"A: b", b" c"),
    "bare CR": response(b"A: b\rc"),
    "NUL": response(b"A: \0"),
    "space before the colon": response(b"A : b"),
    "no status": response(first=b"HTTP/1.1 OK"),
    "four digits": response(first=b"HTTP/1.1 2000 OK"),
    "status 099": response(first=b"HTTP/1.1 099 OK"),
    "HTTP/2": response(first=b"HTTP/2 200"),
    "ICY": response(first=b"ICY 200 OK"),
    "control in the reason": response(first=b"HTTP/1.1 200 O\x1bK"),
    "too many fields": response(*(b"A: b" for _ in range(101))),
}


@pytest.mark.parametrize("raw", BAD_RESPONSES.values(), ids=BAD_RESPONSES)
def test_a_response_with_two_readings_is_none(raw: bytes) -> None:
    assert parse_response(response(b"Content-Length: 3"), "GET", 100).length == 3
    with pytest.raises(Syntax):
        parse_response(raw, "GET", 100)


@pytest.mark.parametrize(
    ("raw", "method", "length", "keep"),
    [
        (response(b"Content-Length: 7"), "GET", 7, True),
        (response(b"Content-Length: 7"), "HEAD", 0, True),
        (response(b"Content-Length: 7", first=b"HTTP/1.1 304 Not Modified"), "GET", 0, True),
        (response(first=b"HTTP/1.1 204 No Content"), "GET", 0, True),
        (response(b"Transfer-Encoding: Chunked"), "GET", CHUNKED, True),
        (response(), "GET", UNTIL_CLOSE, False),
        (response(b"Connection: close", b"Content-Length: 1"), "GET", 1, False),
        (response(b"Content-Length: 1", first=b"HTTP/1.0 200 OK"), "GET", 1, False),
        (response(b"Content-Length: 1", b"Connection: keep-alive", first=b"HTTP/1.0 200 OK"), "GET", 1, True),
        (response(first=b"HTTP/1.1 103 Early Hints"), "GET", 0, True),
        (response(b"Content-Length: 0", first=b"HTTP/1.1 200"), "GET", 0, True),
    ],
)
def test_the_end_of_a_body_is_known(raw: bytes, method: str, length: int, keep: bool) -> None:
    found = parse_response(raw, method, 100)
    assert (found.length, found.keep) == (length, keep)


def test_the_end_of_a_head_is_two_whole_line_ends() -> None:
    assert end_of(GOOD + b"rest") == len(GOOD)
    assert end_of(GOOD[:-1]) == 0
    for wrong in (b"GET / HTTP/1.1\n\n", b"GET / HTTP/1.1\r\nA: b\n\r\n", b"GET / HTTP/1.1\r\n\n", b"A\n\r\nB"):
        with pytest.raises(Syntax):
            end_of(wrong)


def test_what_is_written_is_one_line_each() -> None:
    assert render(b"GET / HTTP/1.1", [(b"a", b"b")]) == b"GET / HTTP/1.1\r\na: b\r\n\r\n"
    for first, headers in (
        (b"GET / HTTP/1.1\r\nx: y", []),
        (b"GET / HTTP/1.1", [(b"a", b"b\r\nc: d")]),
        (b"GET / HTTP/1.1", [(b"a\r\nb", b"c")]),
        (b"GET / HTTP/1.1", [(b"a", b"b\0")]),
    ):
        with pytest.raises(Syntax):
            render(first, headers)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    raw = b"GET http://h/ HTTP/1.1\r\nHost: h\r\n" + data + b"\r\n\r\n"
    try:
        head = parse_request(raw, 100)
    except Syntax:
        return
    written = render(b"GET / HTTP/1.1", end_to_end(head.headers))
    again = parse_request(written, 100)
    assert end_to_end(again.headers) == end_to_end(head.headers)
