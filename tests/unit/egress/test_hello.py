"""The first words of TLS: read as OpenSSL writes them, refused as soon as they are anything else."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.egress.hello import Hello, NotAHello, parse_hello, second_hello


def hello(name: str | None = "api.example.test", version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes:
    """What OpenSSL says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(inward, outward, server_hostname=name).do_handshake()
    return outward.read()


def record(body: bytes, kind: int = 22) -> bytes:
    return bytes((kind, 3, 1)) + len(body).to_bytes(2, "big") + body


def message(extensions: bytes | None, *, session: bytes = b"", suites: bytes = b"\x13\x01") -> bytes:
    body = (
        b"\x03\x03" + bytes(32) + bytes((len(session),)) + session + len(suites).to_bytes(2, "big") + suites + b"\1\0"
    )
    if extensions is not None:
        body += len(extensions).to_bytes(2, "big") + extensions
    return b"\x01" + len(body).to_bytes(3, "big") + body


def extension(kind: int, value: bytes) -> bytes:
    return kind.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value


def sni(*names: bytes, kind: int = 0) -> bytes:
    listed = b"".join(bytes((kind,)) + len(name).to_bytes(2, "big") + name for name in names)
    return extension(0, len(listed).to_bytes(2, "big") + listed)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_name_that_openssl_asks_for_is_read(version: ssl.TLSVersion) -> None:
    said = hello(version=version)
    assert parse_hello(said) == Hello("api.example.test", len(said))
    assert parse_hello(said + b"\x14\x03\x03\0\1\1") == Hello("api.example.test", len(said))
    assert parse_hello(hello(None, version)) == Hello("", len(hello(None, version)))


def test_a_hello_comes_in_any_pieces_and_records() -> None:
    said = hello()
    assert all(parse_hello(said[:end]) is None for end in range(len(said)))
    body = said[5:]
    split = record(body[:1]) + record(body[1:40]) + record(body[40:])
    assert parse_hello(split) == Hello("api.example.test", len(split))


GOOD = record(message(sni(b"a.test")))
BAD = {
    "plain HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "SSL 2": b"\x80\x2e\x01\x00\x02",
    "an alert": record(b"\2\0", 21),
    "application data": record(b"x" * 20, 23),
    "a ServerHello": record(b"\2" + message(sni(b"a.test"))[1:]),
    "an empty record": record(b""),
    "a record too long": b"\x16\x03\x01\x40\x01",
    "a hello too long": record(b"\1\0\x40\x01"),
    "two messages in a record": record(message(sni(b"a.test")) + b"\1"),
    "two names": record(message(sni(b"a.test", b"b.test"))),
    "server_name twice": record(message(sni(b"a.test") + sni(b"a.test"))),
    "an extension twice": record(message(sni(b"a.test") + extension(23, b"") * 2)),
    "another kind of name": record(message(sni(b"a.test", kind=1))),
    "an empty name": record(message(sni(b""))),
    "an empty list": record(message(extension(0, b"\0\0"))),
    "no list": record(message(extension(0, b""))),
    "a list too long": record(message(extension(0, b"\0\x09\0\0\3abc"))),
    "a list too short": record(message(extension(0, b"\0\5\0\0\3abc"))),
    "a name that is not ASCII": record(message(sni(b"\xc3\xa4.test"))),
    "an encrypted hello": record(message(sni(b"a.test") + extension(0xFE0D, b"\0" * 10))),
    "a session id too long": record(message(sni(b"a.test"), session=b"s" * 33)),
    "half a suite": record(message(sni(b"a.test"), suites=b"\x13\x01\x13")),
    "no suite": record(message(sni(b"a.test"), suites=b"")),
    "extensions cut": record(message(b"\0\0\0\x20abc")),
    "bytes after the extensions": record(b"\1\0\0\x2e" + message(b"")[4:] + b"abc"),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_anything_else_is_no_hello(data: bytes) -> None:
    assert parse_hello(GOOD) == Hello("a.test", len(GOOD))
    with pytest.raises(NotAHello):
        parse_hello(data)


def test_a_second_hello_is_seen_and_nothing_else_is_taken_for_one() -> None:
    changed = b"\x14\x03\x03\0\1\1"
    assert second_hello(GOOD) == 0
    assert second_hello(changed + GOOD) == len(changed)
    assert [second_hello(data) for data in (b"", b"\x16\x03\x03\0\x04", changed, changed[:3])] == [-2] * 4
    assert second_hello(record(b"\x10" + b"k" * 40)) == -1  # a key exchange of TLS 1.2
    assert second_hello(record(b"d" * 9, 23)) == -1
    assert second_hello(changed + record(b"d" * 9, 23)) == -1
    assert second_hello(b"\x15") == -1
    with pytest.raises(NotAHello):
        second_hello(changed * 3 + GOOD)


@given(st.binary(max_size=120))
def test_any_bytes_are_a_hello_not_yet_one_or_none(data: bytes) -> None:
    for said in (data, GOOD[:9] + data, GOOD[:48] + data):
        try:
            found = parse_hello(said)
        except NotAHello:
            continue
        assert found is None or found.size <= len(said)
