"""One request under way: its output as it comes, the credit it owes, its stdin credit, its end.

State only. `core.Core` changes it; the predicates say what a caller may wait for.
"""

from __future__ import annotations

import base64
from collections import deque
from typing import Any

from runner.client.errors import CallError, refused
from runner.wire import agent

QUEUED, GATHERED, DROPPED = range(3)  # what becomes of output: iterated, kept whole, not wanted


class Exchange:
    """A number of ours until its last answer; number 0 while nothing was sent."""

    __slots__ = (
        "answer",
        "call",
        "cancels",
        "chunks",
        "error",
        "handed",
        "keyed",
        "left",
        "number",
        "output",
        "owed",
        "replayed",
        "room",
        "stdin_credit",
        "window",
    )

    def __init__(self, *, window: int = 0, output: int = QUEUED, cancels: bool = True, keyed: bool = False) -> None:
        self.number = 0
        self.call = ""  # the daemon's id, once accepted
        self.replayed = False
        self.keyed = keyed  # has an idempotency key: repeating it is safe
        self.cancels = cancels  # whether the call ends when nobody follows it any more
        self.answer: Any = None  # the last one: Result, Tools or TaskEnded
        self.error: CallError | None = None
        self.output = output
        self.chunks: deque[agent.Output] = deque()
        self.window = window  # asked for; then what holds
        self.room = 0  # what the daemon may still send
        self.handed = 0  # the size of the chunk that the consumer looks at
        self.owed = 0  # consumed, and not granted again yet
        self.stdin_credit = 0
        self.left: dict[str, bytes] = {}  # stream → base64 that makes no group of four yet

    def ended(self) -> bool:
        """Whether the last answer, or the loss of it, is here."""
        return self.answer is not None or self.error is not None

    def accepted(self) -> bool:
        """Whether the call has an id, or ended without."""
        return bool(self.call) or self.answer is not None or self.error is not None

    def readable(self) -> bool:
        """Whether there is output to take, or never will be."""
        return bool(self.chunks) or self.answer is not None or self.error is not None

    def writable(self) -> bool:
        """Whether stdin may be sent, or never will be."""
        return self.stdin_credit > 0 or self.answer is not None or self.error is not None

    def accepted_call(self) -> str:
        """The daemon's id for the call. Raises the refusal."""
        if self.error is not None and not self.call:
            raise self.error
        return self.call

    def last_answer(self, kind: type) -> Any:
        """The last answer, of this kind. Raises the refusal, or `Interrupted` and `Unavailable` when it was lost."""
        if self.error is not None:
            raise self.error
        if not isinstance(self.answer, kind):
            raise refused("protocol", "the daemon answered a question with something else")
        return self.answer

    def gathered(self) -> tuple[bytes, bytes]:
        """stdout and stderr as far as they were kept."""
        if len(self.chunks) == 1 and not self.chunks[0].encoding:
            (piece,) = self.chunks
            return (b"", piece.data) if piece.stream == "stderr" else (piece.data, b"")
        return self._whole("stdout"), self._whole("stderr")

    def _whole(self, stream: str) -> bytes:
        text = b"".join([piece.data for piece in self.chunks if piece.stream == stream and not piece.encoding])
        binary = b"".join([piece.data for piece in self.chunks if piece.stream == stream and piece.encoding])
        return text + decoded(binary)[0] if binary else text


def decoded(data: bytes) -> tuple[bytes, bytes]:
    """What base64 stands for, and what of it makes no group of four yet. Raises `CallError` (protocol) for anything
    else."""
    whole = len(data) - len(data) % 4
    try:
        return base64.b64decode(data[:whole], validate=True), data[whole:]
    except ValueError:
        raise refused("protocol", "the daemon sent output that is not base64 and said it was") from None
