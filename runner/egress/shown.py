"""A request's body on its way past gate, which looks for what may not leave before any of it does.

Its beginning is shown with the question whether the request may go at all; what follows, piece by piece. The end of
what was seen stays here until more is, or the body is over: a record that comes a few bytes at a time has then not left
in part when it is known for what it is.
"""

from __future__ import annotations

from typing import Final, Protocol

from runner.destination import Destination
from runner.egress.body import Body
from runner.egress.calls import Gate, Readable
from runner.egress.head import Request
from runner.egress.refusals import Stop
from runner.wire.egress import Answer

FIRST: Final = 64 << 10  # bytes of the beginning; a piece later is at most as long
HELD: Final = 4 << 10  # of what was seen last: a record of a few hundred letters, in base64 of base64


class Whose(Protocol):
    """The call that a request is of."""

    id: str
    gate: Gate


class Asking(Protocol):
    """A request as the sandbox put it: `runner.egress.transfer.Asked`."""

    @property
    def head(self) -> Request:
        """What was sent."""

    @property
    def where(self) -> Destination:
        """Where to."""

    @property
    def path(self) -> str:
        """Canonical."""

    @property
    def query(self) -> str:
        """With its question mark."""


class Pieces(Protocol):
    """A body: `Body` itself where nobody looks at it."""

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""

    async def read(self) -> bytes:
        """The next piece; b"" once the body is over."""


class Forbidden(Stop):
    """Gate's no: it has written the entry itself. `late`: the destination has seen the beginning."""

    def __init__(self, answer: Answer, *, late: bool = False) -> None:
        rule = answer.rule
        part = "token" if rule.startswith("token:") else f"policy {rule}" if rule else "policy"
        reason = answer.reason or "token or policy forbids it"
        super().__init__("denied", reason, part=part, next_step=answer.next_step, late=late)


class Shown:
    """The body of one request. `read` gives nothing that gate has not let pass."""

    def __init__(self, body: Body, call: Whose, request: int) -> None:
        self._body = body
        self._call = call
        self._request = request
        self._cleared = b""
        self._held = bytearray()

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""
        return self._body.over and not self._held and not self._cleared

    async def begin(self, asked: Asking) -> Readable:
        """What gate is shown before it decides. What it then allows may go."""
        while len(self._held) < FIRST and (piece := await self._body.read()):
            self._held += piece
        data = bytes(self._held)
        self._clear()
        line = f"{asked.head.method} {asked.where.host}{asked.path}{asked.query}\n".encode()
        fields = b"\n".join(name + b": " + value for name, value in asked.head.headers)
        return Readable(line + fields, data, self._body.over)

    async def read(self) -> bytes:
        """The next piece. Raises `Forbidden`, and what reading a body raises."""
        while not self._cleared and not self.over:
            piece = await self._body.read()
            answer = await self._call.gate.look(self._call.id, self._request, piece, last=self._body.over)
            if not answer.allowed:
                raise Forbidden(answer, late=True)
            self._held += piece
            self._clear()
        cleared, self._cleared = self._cleared, b""
        return cleared

    def _clear(self) -> None:
        """Let go of all but the end of it."""
        keep = 0 if self._body.over else HELD
        if len(self._held) > keep:
            end = len(self._held) - keep
            self._cleared = bytes(self._held[:end])
            del self._held[:end]
