"""What is handed to gate of a response that a rule says to keep: exactly what the sandbox gets, without credentials.

The filter for echoed credentials comes first, so a response that repeats one is cut before its end and never whole.
What is compressed cannot be searched: it is not kept where a credential went with the request.
"""

from __future__ import annotations

from typing import Final, Protocol

from runner.egress.head import Headers, Response, end_to_end, render

_PIECE = 64 << 10  # gathered before gate is asked: it answers every piece
# A session of the tool's with the destination is in them; the tool gets them, the store does not.
PRIVATE: Final = frozenset(
    {
        *(b"set-cookie", b"set-cookie2", b"cookie", b"authorization", b"www-authenticate", b"authentication-info"),
        *(b"proxy-authenticate", b"proxy-authorization", b"proxy-authentication-info"),
    }
)
_PLAIN = frozenset({b"", b"identity"})


class Keeper(Protocol):
    """Gate, as far as it keeps."""

    async def keep(self, call: str, request: int, data: bytes) -> bool:
        """The next piece; whether more is wanted. Raises `Stop` (unavailable) when gate is gone."""


class Recording:
    """The response of one request."""

    def __init__(self, gate: Keeper, call: str, request: int) -> None:
        self._gate = gate
        self._call = call
        self._request = request
        self._held = bytearray()
        self._wanted = False
        self.problem = ""
        self.whole = False

    def begin(self, response: Response, *, secret: bool) -> None:
        """The head. `secret` says that a credential went with the request."""
        coded = [value.strip().lower() for name, value in response.headers if name == b"content-encoding"]
        if secret and not _PLAIN.issuperset(coded):
            self.problem = "it is compressed, so it cannot be searched for the credential that went with the request"
            return
        self._wanted = True
        self._held += render(b"HTTP/1.1 %d %b" % (response.status, response.reason), kept(response.headers))

    async def add(self, data: bytes) -> None:
        """The next piece of the body."""
        if self._wanted:
            self._held += data
            if len(self._held) >= _PIECE:
                await self._flush()

    async def end(self) -> None:
        """The response was passed on to its last byte."""
        if self._wanted:
            await self._flush()
            self.whole = self._wanted

    async def _flush(self) -> None:
        self._wanted = await self._gate.keep(self._call, self._request, bytes(self._held))
        self._held.clear()


def kept(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers that are kept: end to end, and no credentials. The body is kept without its transfer's framing."""
    return [(name, value) for name, value in end_to_end(headers) if name not in PRIVATE]
