"""What a filter of output is. Pure: bytes in, bytes out, bounded memory, no clock of its own."""

from __future__ import annotations

from collections import Counter
from typing import Literal, Protocol

Name = Literal["stdout", "stderr"]
Out = list[tuple[Name, bytes]]  # what may go on, in order; no piece is empty

SHORT_MS = 3  # what is only perhaps the beginning of something common, such as a trailing word, is held this long
LONG_MS = 200  # the real beginning of a secret or of a pattern is held this long (issue: released within 200 ms)


class Stage(Protocol):
    """One filter of one call's output, both streams together.

    What goes on does not depend on how the output was cut into pieces, as long as no `pause` comes between. Everything
    up to the last byte that can begin a match goes on at once; the rest waits for more, a pause or the end.
    """

    counts: Counter[str]  # what was found: rule → how often; an issued secret counts as `secret:NAME`
    labels: set[str]  # labels of everything found, whatever was done about it

    def take(self, stream: Name, data: bytes) -> Out:
        """More of one stream."""

    def pause(self, quiet_ms: int) -> Out:
        """Nothing came for so many milliseconds: what need not wait longer than that."""

    def close(self) -> Out:
        """The call is over: everything that waited."""

    @property
    def waits_ms(self) -> int:
        """The shortest quiet after which `pause` lets something go; 0 when nothing waits."""
