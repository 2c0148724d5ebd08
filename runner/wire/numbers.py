"""The numbers a client has used on one connection, in bounded memory: ranges, not a set.

A client that counts upwards needs one range for a million calls. One that jumps needs a range per gap, and
`MAX_RANGES` bounds what a hostile one can cost (256 KiB).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right

from runner.errors import refuse

MAX_NUMBER = (1 << 53) - 1  # what every language's number type holds exactly
MAX_RANGES = 16_384


class Numbers:
    """A set of integers within 1..MAX_NUMBER that only grows."""

    def __init__(self) -> None:
        self._first = array("Q")  # sorted; range i is _first[i].._last[i], and no two ranges touch
        self._last = array("Q")

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._first, number) - 1
        return place >= 0 and number <= self._last[place]

    def add(self, number: int) -> None:
        """Remember a number that is not in the set. Raises `RunnerError` (protocol) when there are too many gaps."""
        first, last = self._first, self._last
        place = bisect_right(first, number)  # the range after it
        joins_before = place > 0 and last[place - 1] == number - 1
        joins_after = place < len(first) and first[place] == number + 1
        if joins_before and joins_after:
            last[place - 1] = last[place]
            del first[place], last[place]
        elif joins_before:
            last[place - 1] = number
        elif joins_after:
            first[place] = number
        elif len(first) >= MAX_RANGES:
            raise refuse(
                "protocol", f"the numbers used leave more than {MAX_RANGES} gaps", next_step="count upwards from 1"
            )
        else:
            first.insert(place, number)
            last.insert(place, number)
