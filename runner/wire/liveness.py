"""When a silent or dribbling peer is asked, and when it is left."""

from __future__ import annotations

from runner.config import Limits
from runner.errors import RunnerError, refuse
from runner.wire.agent import Ping
from runner.wire.states import State


class Liveness:
    """When to ask a silent client, and when to hang up. Times are any monotonic clock's seconds.

    Three rules: Hello within `hello_timeout_s`; a frame that began ends within the same time; silence of
    `heartbeat_s` is answered with a ping, of twice that with the end."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._began = now
        self._heard = now
        self._asked = False
        self._partial: float | None = None  # since when a frame is unfinished

    def heard(self, now: float, frames: int, pending: int) -> None:
        """Bytes arrived: `frames` were completed by them and `pending` bytes of the next are held."""
        if frames:
            self._heard = now
            self._asked = False
        if frames or not pending:
            self._partial = now if pending else None
        elif self._partial is None:
            self._partial = now

    def due(self, now: float, state: State) -> Ping | RunnerError | None:
        """What the clock asks for: a ping to send, the reason to close, or nothing."""
        limits = self._limits
        if state is State.CHALLENGED and now - self._began >= limits.hello_timeout_s:
            return refuse("protocol", f"no hello within {limits.hello_timeout_s:g} s")
        if self._partial is not None and now - self._partial >= limits.hello_timeout_s:
            return refuse("protocol", f"a frame took longer than {limits.hello_timeout_s:g} s")
        silent = now - self._heard
        if state in (State.OPEN, State.DRAINING, State.LEAVING):
            if silent >= 2 * limits.heartbeat_s:
                return refuse("protocol", f"silent for {silent:.0f} s", next_step="answer each ping with a pong")
            if silent >= limits.heartbeat_s and not self._asked:
                self._asked = True
                return Ping()
        return None
