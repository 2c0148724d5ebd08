"""What follows a head: read from a stream in bounded pieces, by exactly one of three framings.

Chunks are decoded and framed anew, so no byte of a sender's framing ever reaches the other side. From a sandbox they
are taken strictly (no extensions, no trailers); servers do send both, so theirs are skipped.
"""

from __future__ import annotations

import re

from runner.egress.head import CHUNKED, UNTIL_CLOSE, Syntax, end_of
from runner.egress.link import PIECE, Stream

_STRICT = re.compile(rb"([0-9A-Fa-f]{1,15})\Z")
_LENIENT = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\Z")
_LINE = 4096  # of a chunk's head, or of a trailer
_TRAILERS = 64


class Cut(Exception):
    """The sender ended before its message did."""


class Inlet:
    """A stream with what was read of it ahead."""

    def __init__(self, stream: Stream, ahead: bytes = b"") -> None:
        self.stream = stream
        self._held = bytearray(ahead)

    @property
    def waiting(self) -> bool:
        """Whether bytes were read that nobody has taken."""
        return bool(self._held)

    async def arrived(self) -> bool:
        """Wait for a byte; False when the stream ends instead."""
        return bool(self._held) or await self._more()

    async def head(self, maximum: int) -> bytes:
        """A head with its empty line; b"" when the stream ends before it. Raises `Syntax` when it cannot become one,
        `Cut` when it ends half-way."""
        looked = 0
        while True:
            if self._held and not 0x41 <= self._held[0] <= 0x5A:
                raise Syntax("it does not begin as HTTP does")
            end = end_of(self._held, looked)
            if end > maximum or (not end and len(self._held) > maximum):
                raise Syntax(f"the head is longer than {maximum} bytes")
            if end:
                return self._take(end)
            looked = len(self._held)
            if not await self._more():
                if self._held:
                    raise Cut("the head is cut")
                return b""

    async def line(self) -> bytes:
        """A line without its CRLF."""
        looked = 0
        while (end := self._held.find(b"\n", looked)) < 0:
            looked = len(self._held)
            if looked > _LINE:
                break
            if not await self._more():
                raise Cut("the body is cut")
        if not 0 < end <= _LINE or self._held[end - 1] != 0x0D or self._held.find(b"\r", 0, end) != end - 1:
            raise Syntax("a chunk's line is too long, or does not end in CRLF")
        return self._take(end + 1)[:-2]

    async def some(self, maximum: int) -> bytes:
        """At most `maximum` bytes; b"" at the end."""
        if self._held:
            return self._take(min(maximum, len(self._held)))
        return await self.stream.read(min(maximum, PIECE))

    def rest(self) -> bytes:
        """Everything that was read ahead."""
        return self._take(len(self._held))

    def _take(self, count: int) -> bytes:
        taken = bytes(self._held[:count])
        del self._held[:count]
        return taken

    async def _more(self) -> bool:
        data = await self.stream.read(PIECE)
        self._held += data
        return bool(data)


class Body:
    """The pieces of one body."""

    def __init__(self, inlet: Inlet, length: int, *, strict: bool) -> None:
        self._inlet = inlet
        self._chunked = length == CHUNKED
        self._endless = length == UNTIL_CLOSE
        self._left = 0 if length < 0 else length  # of the message, or of the current chunk
        self._begun = False
        self._line = _STRICT if strict else _LENIENT
        self._trailers = 0 if strict else _TRAILERS
        self.over = length == 0

    async def read(self) -> bytes:
        """The next piece; b"" once the body is over. Raises `Cut` or `Syntax` when it never will be whole."""
        if self.over:
            return b""
        if self._endless:
            data = await self._inlet.some(PIECE)
            self.over = not data
            return data
        if self._chunked and not self._left and not await self._next_chunk():
            return b""
        data = await self._inlet.some(self._left)
        if not data:
            raise Cut("the body is cut")
        self._left -= len(data)
        self.over = not self._chunked and not self._left
        return data

    async def _next_chunk(self) -> bool:
        """Whether there is one."""
        if self._begun and await self._inlet.line():
            raise Syntax("a chunk is longer than it says")
        self._begun = True
        line = self._line.match(await self._inlet.line())
        if line is None:
            raise Syntax("a chunk does not begin with its length alone")
        self._left = int(line[1], 16)
        if self._left:
            return True
        for _ in range(self._trailers + 1):
            if not await self._inlet.line():
                self.over = True
                return False
        raise Syntax("there are trailers, or too many")


def chunk(data: bytes) -> bytes:
    """One chunk of a body; of nothing, its end."""
    return b"%x\r\n%b\r\n" % (len(data), data)
