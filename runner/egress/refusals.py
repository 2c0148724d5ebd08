"""What a tool is told when egress does not let something pass: short, plain, and what would have been allowed. Pure.

A refusal is an answer of this proxy and says so in a header of its own, so that it is not taken for the destination's.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from runner.egress.head import REFUSED, render

_encoder = msgspec.json.Encoder()


_LATE = frozenset({"upstream", "timeout", "budget", "interrupted"})  # these may come after something was sent


class Row(NamedTuple):
    """What a code means on the wire."""

    status: int
    title: str
    next_step: str


CODES: dict[str, Row] = {
    "syntax": Row(400, "Bad Request", "send it in the one form that every parser reads alike"),
    "egress": Row(403, "Forbidden", "ask for the missing rule, or leave the request out; a retry will not help"),
    "denied": Row(403, "Forbidden", "token or policy forbids it; a retry will not help"),
    "name": Row(403, "Forbidden", "ask the tunnel's own name for its TLS, and no other"),
    "injection": Row(403, "Forbidden", "put the placeholder only where the manifest binds the credential"),
    "budget": Row(403, "Forbidden", "the call has used up what the rule lets it move"),
    "rate": Row(429, "Too Many Requests", "wait, then retry"),
    "busy": Row(429, "Too Many Requests", "close connections, then retry"),
    "upstream": Row(502, "Bad Gateway", "the destination did not answer as it should; a later try may help"),
    "timeout": Row(504, "Gateway Timeout", "a later try may help"),
    "interrupted": Row(503, "Service Unavailable", "the call is over"),
    "unavailable": Row(503, "Service Unavailable", "a part of the daemon is missing; a later try may help"),
}


class Stop(Exception):
    """A request goes no further. `part` is which part decided; nothing here is secret."""

    def __init__(
        self, code: str, reason: str, *, part: str = "", missing: str = "", next_step: str = "", late: bool = False
    ) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        self.part = part or code
        self.missing = missing
        self.late = late or code in _LATE  # something may have been sent
        self.next_step = next_step or CODES[code].next_step

    def answer(self, *, body: bool = True) -> bytes:
        """The whole response, after which the connection is closed."""
        row = CODES[self.code]
        told = {
            "title": "refused by egress; the destination has seen nothing of it"
            if not self.late
            else "egress could not carry this",
            "status": row.status,
            "code": self.code,
            "part": self.part,
            "detail": self.reason,
            "next": self.next_step,
        }
        if self.missing:
            told["missing"] = self.missing
        text = msgspec.json.format(_encoder.encode(told), indent=2) + b"\n"
        head = render(
            b"HTTP/1.1 %d %b" % (row.status, row.title.encode()),
            [
                (b"Content-Type", b"application/problem+json"),
                (b"Content-Length", b"%d" % len(text)),
                (REFUSED, self.code.encode()),
                (b"Cache-Control", b"no-store"),
                (b"Connection", b"close"),
            ],
        )
        return head + text if body else head
