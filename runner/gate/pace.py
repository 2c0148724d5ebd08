"""How fast one call may write: its output is paid for from a bucket that fills at the profile's rate. Pure."""

from __future__ import annotations


class Pace:
    """A token bucket of bytes. `rate` is bytes a second; `window` is the least it holds when full, so that a call is
    never asked for less than what it is given at once. A 64th of a second's worth may come in one go: more, and calls
    that flood up to their cap would never be paced."""

    def __init__(self, rate: int, window: int, now: float) -> None:
        self._rate = rate
        self._most = max(window, rate // 64)
        self._left = float(self._most)
        self._then = now

    def room(self, now: float) -> int:
        """Bytes that may be asked for at `now` (seconds of a clock that never goes back)."""
        self._left = min(self._most, self._left + (now - self._then) * self._rate)
        self._then = now
        return int(self._left)

    def spend(self, count: int) -> None:
        """They were asked for."""
        self._left -= count

    def wait(self, count: int) -> float:
        """Seconds from the last `room` until there is room for `count` bytes."""
        return max(0.0, (count - self._left) / self._rate)
