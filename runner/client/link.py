"""A connection driven by the threads that wait on it: no loop, no hand-off.

Whoever waits first holds the reading role: it polls the socket and applies what comes, for every thread. The others
sleep until what they wait for is there, or until the reader has its answer and one of them reads on. Sending never
blocks: what the kernel does not take is sent by the reader, which reads meanwhile, because a daemon whose own answers
are not read stops reading us. An idle thread reads every few seconds when nobody else does: pings are answered and
the daemon's goodbye is noticed.

The rule of `core.py` holds here too: an interrupt anywhere leaves the connection usable.
"""

from __future__ import annotations

import os
import socket as sockets
import threading
import time
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue

from runner.client.core import HANDSHAKE_S, Core, Make, Ready
from runner.client.credentials import Identity
from runner.client.endpoint import Endpoint
from runner.client.errors import CallError, no_daemon, raised, refused
from runner.client.exchange import Exchange
from runner.errors import Refusal
from runner.model import Chunk
from runner.wire.agent import SessionFacts

IDLE_S = 5.0  # the daemon asks after 30 s of silence and hangs up after 60


class _Turn:
    """A thread that sleeps while another one reads."""

    __slots__ = ("gate", "over", "ready", "woken")

    def __init__(self, ready: Ready) -> None:
        self.ready = ready
        self.woken = False  # and on its way to look
        self.over = False  # it waits no more
        self.gate = threading.Lock()
        self.gate.acquire()

    def wake(self) -> None:
        if not self.woken:
            self.woken = True
            self.gate.release()


class Link:
    """See the module. Made by `Link.open`; every method may be called from any thread."""

    def __init__(self, core: Core, socket: sockets.socket) -> None:
        self.core = core
        self._end = Endpoint(core, socket)
        self._lock = threading.RLock()  # guards what follows, and `core` but for `inbox`, which is the reader's
        self._reader = 0  # the thread that holds the reading role
        self._turns: list[_Turn] = []
        self._process = os.getpid()
        self._closed = False
        self._parting: SimpleQueue[object] = SimpleQueue()  # ends the idle thread; `put` takes no lock: any place may
        self._idler: threading.Thread | None = None

    @classmethod
    def open(cls, identity: Identity, facts: SessionFacts, socket: str | os.PathLike[str] | sockets.socket) -> Link:
        """Connect, prove possession, and be welcomed. Raises `CallError`s: `Unavailable` without a daemon,
        `Unauthenticated` with a token it does not take, `ProtocolError` with another version."""
        own = socket if isinstance(socket, sockets.socket) else sockets.socket(sockets.AF_UNIX)
        try:
            own.setblocking(False)
            if not isinstance(socket, sockets.socket):
                own.connect(os.fspath(socket))
        except OSError as error:
            own.close()
            raise no_daemon(socket, error) from error
        except BaseException:
            own.close()
            raise
        link = cls(Core(identity, facts), own)
        try:
            if not link.until(link._welcomed, time.monotonic() + HANDSHAKE_S):
                raise refused("unavailable", f"the daemon did not finish the handshake in {HANDSHAKE_S:g} s")
            if link.core.lost is not None:
                raise link.core.lost
            link._watch()
        except BaseException:
            link.close()
            raise
        return link

    def _welcomed(self) -> bool:
        return self.core.welcome is not None or self.core.lost is not None

    # --- waiting ---

    def until(self, ready: Ready, deadline: float | None = None) -> bool:
        """Wait until `ready()`, which is asked under the lock and must hold once the connection is lost. Returns
        whether it does: not, when `deadline` passed, or when another thread reads and there is a deadline."""
        turn: _Turn | None = None
        reads = above = False  # above: in a signal's handler, with this thread's own reading suspended below
        me = threading.get_ident()
        try:
            while True:
                with self._lock:
                    if not reads and self._reader in (0, me):
                        above, self._reader, reads = self._reader == me, me, True
                    if reads:
                        self._digest()
                    if ready():
                        return True
                    if not reads:
                        if deadline is not None:
                            return False
                        turn = turn or _Turn(ready)  # held here before it is in the list: else none could end it
                        self._line_up(turn)
                if turn is not None and not reads:
                    turn.gate.acquire()
                elif not self._end.listen(deadline, above):
                    return False
        finally:
            # At once and without the lock: an interrupt here must not keep the role, nor others asleep.
            if reads and not above:
                self._reader = 0
            if turn is not None:
                turn.over = True
            try:
                self._leave()
            except BaseException:
                self._leave()
                raise

    def _line_up(self, turn: _Turn) -> None:
        turn.woken = False
        if turn not in self._turns:
            self._turns.append(turn)

    def _leave(self) -> None:
        """A thread waits no more: let another one read, or close what is lost."""
        with self._lock:
            if self._turns:
                self._turns = [turn for turn in self._turns if not turn.over]
            if self._reader:
                if self._reader == threading.get_ident():
                    self._ring()  # what it waits for below may have come
                return
            if self.core.lost is not None:
                self._dispose()
            if self._turns and not any(turn.woken for turn in self._turns):
                self._turns[0].wake()

    def _digest(self) -> None:
        """Apply what was read, send what that asks for, and wake whom it concerns. Reader, under the lock."""
        core = self.core
        if self._closed:
            core.bye()
        core.receive()
        if self._end.backlog():
            self._end.flush()
        if self._turns:
            self._wake()

    def _wake(self) -> None:
        for turn in self._turns:
            if not turn.woken and turn.ready():
                turn.wake()

    # --- sending ---

    def _drained(self) -> bool:
        return self.core.lost is not None or not self._end.backlog()

    def _push(self) -> None:
        """Send what this thread queued; where the kernel takes no more, the reader goes on. Under the lock."""
        self._end.flush()
        if self._end.backlog():
            self._ring()

    def _ring(self) -> None:
        """Wake the reader, if there is one. Under the lock."""
        if self._reader:
            self._end.ring()

    def check(self) -> None:
        """Raises what keeps this client from being used here and now."""
        if os.getpid() != self._process:
            raise self._forked()
        if self._in_hand():
            raise refused("unavailable", "a signal's handler came in the middle of this client's own work")
        if self._closed:
            raise refused("unavailable", "this client is closed", next_step="connect again")

    def _in_hand(self) -> bool:
        """Whether this thread is under the lock already: then this is a signal's handler, and must not wait for it."""
        owned: bool = self._lock._is_owned()  # type: ignore[attr-defined] # private: nothing public says it
        return owned

    def _forked(self) -> CallError:
        return raised(
            Refusal(
                code="unavailable",
                reason=f"this client belongs to process {self._process}, and this one was forked from it",
                next_step="connect in the child",
            )
        )

    # --- what callers ask ---

    def begin(self, exchange: Exchange, make: Make) -> None:
        """Send a request. Raises as `Core.begin`; nothing was sent then."""
        self.check()
        if self._end.backlog():
            self.until(self._drained)
        with self._lock:
            self.core.begin(exchange, make)
            self._push()
        if self._end.broken:
            self.until(self._is_lost)
            self.core.check()

    def next_chunk(self, exchange: Exchange) -> Chunk | None:
        """The next piece of output; None at the call's end, however that is. Asking again grants more credit."""
        self.check()
        with self._lock:
            self.core.settle(exchange)
            self._push()
        while True:
            self.until(exchange.readable)
            with self._lock:
                chunk = self.core.take(exchange)
                if chunk is not None or exchange.ended():  # else another thread was faster
                    return chunk

    def write_stdin(self, exchange: Exchange, data: bytes, deliver: Callable[[], object] | None = None) -> bool:
        """Send as credit allows. Returns whether all of it was sent: not, when the call ended first. `deliver` is
        called when there is output meanwhile."""
        self.check()
        view = memoryview(data)
        while view:
            self.until(exchange.writable if deliver is None else lambda: bool(exchange.chunks) or exchange.writable())
            if deliver is not None and exchange.chunks:
                deliver()
                continue
            if exchange.ended():
                return False
            with self._lock:
                view = view[self.core.stdin(exchange, view) :]
                self._push()
            if self._end.backlog():
                self.until(self._drained)
        return True

    def close_stdin(self, exchange: Exchange) -> None:
        """End of input, once the call is accepted."""
        self.check()
        self.until(exchange.accepted)
        with self._lock:
            self.core.close_stdin(exchange)
            self._push()

    def cancel(self, exchange: Exchange) -> None:
        """Ask for the call's end; its last answer still comes."""
        self.check()
        with self._lock:
            self.core.cancel(exchange)
            self._push()

    def ignore(self, exchange: Exchange) -> None:
        """Let the call's output pass."""
        with self._lock:
            self.core.ignore(exchange)
            self._push()

    def abandon(self, exchange: Exchange) -> None:
        """The caller is gone: cancel the call unless it lives without one. Does nothing for a client that is closed."""
        if os.getpid() == self._process and not self._closed and not self._in_hand():
            with self._lock:
                self.core.abandon(exchange)
                self._push()

    def until_durable(self, position: int) -> None:
        """Wait until the entry at `position` is on disk. Raises when the connection is lost before."""
        self.check()
        self.until(lambda: self.core.durable >= position or self.core.lost is not None)
        if self.core.durable < position:
            self.core.check()

    # --- while nobody waits ---

    def _is_lost(self) -> bool:
        return self.core.lost is not None

    def glance(self) -> bool:
        """Apply what came while nobody read. Returns whether the connection lives. Never waits."""
        if os.getpid() != self._process:
            return False
        if self.core.lost is None and not self._in_hand():
            self.until(self._is_lost, 0.0)
        return self.core.lost is None

    @property
    def lost(self) -> CallError | None:
        """Why the connection is gone, as of now."""
        if os.getpid() != self._process:
            return self._forked()
        self.glance()
        return self.core.lost

    def _watch(self) -> None:
        assert self.core.welcome is not None
        every = max(0.01, min(IDLE_S, self.core.welcome.heartbeat_ms / 3000))
        self._idler = threading.Thread(
            target=_idle,
            args=(weakref.ref(self, self._parting.put), self._parting, every),
            name="runner-client",
            daemon=True,  # a program that forgot to close its client still ends
        )
        self._idler.start()

    def close(self) -> None:
        """Say bye and close. Calls under way that are not detached are cancelled by that; threads that wait are freed.
        In a forked child it lets go of the connection, which stays the parent's."""
        if os.getpid() != self._process:
            self._dispose()  # without the lock, which a thread of the parent's may have held
            return
        self._closed = True
        if self._in_hand():
            return  # the work below, or the idle thread, does the rest
        with self._lock:
            self.core.bye()
            self._end.flush()
            self._wake()
            self._ring()
        self._parting.put(None)
        self._leave()
        if self._idler is not None and self._idler is not threading.current_thread():
            self._idler.join()

    def _dispose(self) -> None:
        self._parting.put(None)
        self._end.close()


def _idle(link: weakref.ref[Link], parting: SimpleQueue[object], every: float) -> None:
    """The idle thread: it holds no client alive."""
    while True:
        try:
            parting.get(timeout=every)
        except Empty:
            held = link()
            if held is not None and held.glance():
                del held
                continue
        return
