"""What a task has read: the labels of everything that was delivered to it, and the labelled text itself, as prints.

Text waits here until its call is over, or until somebody asks what goes out: what was delivered is always known then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from runner.stream.layers import Layers
from runner.stream.shingles import READ, Match, Shingles

_AGAIN = 4 << 10  # at most, of a line that was only begun when what stood before it was remembered


class Reading:
    """One task's. `key` is the task's own."""

    def __init__(self, key: bytes) -> None:
        self.labels: set[str] = set()
        self.left_out = 0  # bytes of labelled results beyond what is kept of one
        self._shingles = Shingles(key)
        self._waiting: dict[Heard, None] = {}
        self._going: Iterator[None] | None = None  # what is being remembered, by whoever asks next

    def __bool__(self) -> bool:
        return bool(self._shingles or self._waiting or self._going)

    @property
    def forgotten(self) -> int:
        """Pieces of labelled text that are not known again when they go out."""
        return self._shingles.forgotten + self.left_out

    def match(self, opened: Layers) -> Match:
        """What a text has in common with all that was delivered up to now."""
        for _ in self.remembering():
            pass
        return self._shingles.match(opened)

    def remembering(self, call: str = "") -> Iterator[None]:
        """Remember what waits, of one call or of all, a few milliseconds at a time."""
        while True:
            if self._going is None:
                heard = next((each for each in self._waiting if call in ("", each.call)), None)
                if heard is None:
                    return
                del self._waiting[heard]
                self._going = self._shingles.keeping(heard.call, heard.given, heard.take())
            try:
                next(self._going)
            except StopIteration:
                self._going = None
            else:
                yield

    def wait(self, heard: Heard) -> None:
        """It has text that is not remembered yet."""
        self._waiting[heard] = None


class Heard:
    """Hears what is delivered of one call (`runner.stream.filters.Listener`). `given` are labels that all of its text
    carries: that is remembered, as much of it as fits. Labels that were only found in it are the task's, and patterns
    find them again."""

    def __init__(self, reading: Reading, call: str, given: frozenset[str]) -> None:
        self._reading = reading
        self.call = call
        self.given = given
        self._text = bytearray()  # what is not remembered yet
        self._room = READ
        self._place = ""

    def heard(self, place: str, data: bytes, labels: Collection[str]) -> None:
        """This is delivered next."""
        self._reading.labels.update(labels)
        if not self.given:
            return
        self._reading.labels |= self.given
        if place != self._place and self._text:
            self._text += b"\n"
        self._place = place
        self._reading.left_out += max(0, len(data) - self._room)
        if self._room:
            self._text += data[: self._room]
            self._room = max(0, self._room - len(data))
            self._reading.wait(self)

    def take(self) -> bytes:
        """What is to be remembered. The line that it ends in stays: the rest of its record may follow."""
        text = bytes(self._text)
        begun = text.rfind(b"\n") + 1
        del self._text[: max(begun, len(text) - _AGAIN)]
        return text
