"""What a TLS client says first: the name it wants to reach (RFC 8446 §4.1.2, RFC 6066 §3). Pure.

Read only to compare that name with the one that was judged; TLS itself stays with the two ends. Everything that is
not a whole, well-formed ClientHello is refused: a server may be more lenient than we are.
"""

from __future__ import annotations

from typing import NamedTuple

MAX_HELLO = 16 << 10  # with post-quantum key shares they are 2 KiB; resumption and padding add a few
_RECORD = 5  # type, version, length
_CHANGE_CIPHER, _HANDSHAKE, _CLIENT_HELLO = 20, 22, 1
_SERVER_NAME, _ENCRYPTED_HELLO = 0, 0xFE0D
_MAX_RECORD = 16 << 10


class NotAHello(Exception):
    """These bytes are no ClientHello that we pass on; the text says why."""


class _Cursor:
    """Reads length-prefixed parts; never past the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) != count:
            raise NotAHello("a length does not fit")
        self._at += count
        return part

    def vector(self, width: int) -> bytes:
        return self.take(int.from_bytes(self.take(width), "big"))

    def over(self) -> bool:
        return self._at == len(self._data)


class Hello(NamedTuple):
    """A ClientHello: the name it asks for, "" for none, and how many bytes it took."""

    name: str
    size: int


def parse_hello(data: bytes) -> Hello | None:
    """The hello that `data` begins with; None while it is not whole. Raises `NotAHello`."""
    found = _message(data)
    return None if found is None else Hello(_name(found[0]), found[1])


def second_hello(data: bytes) -> int:
    """Where a second ClientHello begins in what a client sends after its first (RFC 8446 §4.1.4: when the server asked
    for another key share); -1 when what comes is none, -2 while that cannot be told. Raises `NotAHello`."""
    at = 0
    while len(data) >= at + _RECORD + 1:
        if data[at] == _HANDSHAKE:
            return at if data[at + _RECORD] == _CLIENT_HELLO else -1
        if data[at] != _CHANGE_CIPHER or data[at + 3 : at + _RECORD] != b"\0\1":
            return -1
        at += _RECORD + 1  # TLS 1.3 puts one before its second flight, for the eyes of middle boxes
        if at > 2 * (_RECORD + 1):
            raise NotAHello("there are too many change_cipher_spec records")
    if len(data) > at and data[at] not in (_HANDSHAKE, _CHANGE_CIPHER):
        return -1
    return -2


def _message(data: bytes) -> tuple[bytes, int] | None:
    """The hello's body out of one or more records, and their size; None while it is not whole."""
    body, at = b"", 0
    while at < len(data):
        head = data[at : at + _RECORD]
        if head[0] != _HANDSHAKE or (len(head) > 1 and head[1] != 3):
            raise NotAHello("this is not TLS")
        if len(head) < _RECORD:
            break
        length = int.from_bytes(head[3:5], "big")
        if not 0 < length <= _MAX_RECORD:
            raise NotAHello("a record's length is impossible")
        body += data[at + _RECORD : at + _RECORD + length]
        at += _RECORD + length
        if body and body[0] != _CLIENT_HELLO:
            raise NotAHello("the first message is not a ClientHello")
        if len(body) >= 4:
            needed = 4 + int.from_bytes(body[1:4], "big")
            if needed > MAX_HELLO:
                raise NotAHello(f"the ClientHello is longer than {MAX_HELLO} bytes")
            if len(body) >= needed:
                if len(body) > needed:
                    raise NotAHello("something follows the ClientHello in its record")
                return body[4:], at
    return None


def _name(message: bytes) -> str:
    hello = _Cursor(message)
    hello.take(2 + 32)  # version, random
    if len(hello.vector(1)) > 32:
        raise NotAHello("the session id is too long")
    suites = hello.vector(2)
    if not suites or len(suites) % 2:
        raise NotAHello("the cipher suites are no list")
    if not hello.vector(1):
        raise NotAHello("there is no compression method")
    if hello.over():
        return ""  # TLS 1.2 may leave the extensions out
    extensions = _Cursor(hello.vector(2))
    if not hello.over():
        raise NotAHello("bytes follow the extensions")
    seen: set[int] = set()
    found = ""
    while not extensions.over():
        kind = int.from_bytes(extensions.take(2), "big")
        value = extensions.vector(2)
        if kind in seen:
            raise NotAHello("an extension comes twice")
        seen.add(kind)
        if kind == _ENCRYPTED_HELLO:
            raise NotAHello("the server's name is encrypted (ECH), so it cannot be compared with the one allowed")
        if kind == _SERVER_NAME:
            found = _host(value)
    return found


def _host(value: bytes) -> str:
    listed = _Cursor(value)
    names = _Cursor(listed.vector(2))
    if not listed.over() or names.take(1) != b"\0":
        raise NotAHello("server_name holds something else than a host name")
    name = names.vector(2)
    if not names.over() or not name:
        raise NotAHello("server_name does not hold exactly one name")
    try:
        return name.decode("ascii")
    except UnicodeDecodeError:
        raise NotAHello("the server's name is not ASCII") from None
