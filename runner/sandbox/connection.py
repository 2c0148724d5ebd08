"""The control connection of one sandbox: calls multiplexed on it, each with its credit, until the guest is gone.

A broken rule of the guest (more output than credit, an unknown frame) closes the connection: PID 1 exits on
that, and with it everything in the sandbox.
"""

from __future__ import annotations

import asyncio
import base64
import socket
from collections import deque
from collections.abc import Callable
from typing import Literal, Protocol, cast

import msgspec

from runner.errors import RunnerError, refuse
from runner.model import CallPlan, Delivered, Jail, Manifest, Outcome, OutcomeKind, Usage
from runner.sandbox.plan import Usual
from runner.wire import guest

_STDIN_WINDOW = 256 << 10  # what the guest may take of a stdin that the tool does not read (`guest/supervisor.py`)
_JOIN = 4 << 10  # waiting pieces are joined up to this: a tool that writes single bytes must not cost an object each
_MOST = (1 << 53) - 1  # what an entry holds exactly
_SIGNALS = 64
_LANDLOCK_TCP = 4  # the first ABI that knows TCP ports (Linux 6.7)
_WALLS, _WALL = 64, 80  # forbidden acts a launcher may name, and the length of a name
# Ends of a process that existed.
_ENDS = ("exited", "timed_out", "oom", "killed", "cancelled", "output_capped", "filtered")


class Piece(msgspec.Struct, frozen=True):
    """Raw output of the tool: hostile, unfiltered."""

    stream: Literal["stdout", "stderr"]
    data: bytes


class Value(msgspec.Struct, frozen=True):
    """A python tool's structured result, as the JSON bytes it wrote: hostile."""

    data: bytes


Event = Piece | Value | Outcome


class GuestCall:
    """One call in the sandbox. `next()` yields pieces, at most one value, then exactly one `Outcome`."""

    def __init__(self, sandbox: Sandbox, number: int, credit: int, on_stdin_credit: Callable[[int], None]) -> None:
        self._sandbox = sandbox
        self._number = number
        self._credit = credit
        self._stdin_room = 0  # bytes the guest has asked for and was not sent
        self._events: deque[Event] = deque()
        self._waiting: asyncio.Future[None] | None = None  # whoever awaits `next`
        self._given = 0  # bytes since it last waited
        self._over = False
        self._on_stdin_credit = on_stdin_credit
        self.on_lost: Callable[[], None] = lambda: None  # told when the sandbox is gone under the call
        self.started = False
        self.walls: tuple[str, ...] = ()
        self.fault: guest.Fault | None = None  # set when the outcome is `unavailable` by the guest's word

    async def next(self, wait_ms: int = 0, most: int = guest.MAX_DATA) -> Event | None:
        """The next event, in the order it happened; None when there is none within `wait_ms` (0: for ever). Not to be
        called after the `Outcome`. Of pieces as much as waits of one stream, up to `most` bytes."""
        if self._events:
            if self._given >= most:  # a call that writes without end must not keep others from their turn
                self._given = 0
                await asyncio.sleep(0)
        else:
            self._given = 0
            loop = asyncio.get_running_loop()
            self._waiting = waiting = loop.create_future()
            timer = loop.call_later(wait_ms / 1000, _wake, waiting) if wait_ms else None
            try:
                await waiting
            finally:
                if timer is not None:
                    timer.cancel()
        if not self._events:
            return None
        event = self._events.popleft()
        if isinstance(event, Piece):
            event = self._fitting(event, most)
            self._given += len(event.data)
        return event

    def _fitting(self, piece: Piece, most: int) -> Piece:
        if len(piece.data) > most:
            self._events.appendleft(Piece(piece.stream, piece.data[most:]))
            return Piece(piece.stream, piece.data[:most])
        parts, size = [piece.data], len(piece.data)
        while self._events and isinstance(more := self._events[0], Piece) and more.stream == piece.stream:
            size += len(more.data)
            if size > most:
                break
            parts.append(more.data)
            self._events.popleft()
        return Piece(piece.stream, b"".join(parts)) if len(parts) > 1 else piece

    def credit(self, count: int) -> None:
        """Let the guest send `count` more bytes of output."""
        if not self._over and count > 0:
            self._credit += count
            self._sandbox.write(guest.pack(guest.CREDIT, self._number, count.to_bytes(4, "big")))

    def stdin(self, data: bytes, *, eof: bool) -> None:
        """Bytes for the tool; the caller keeps within the credit the guest gave."""
        if self._over:
            return
        self._stdin_room -= len(data)
        for start in range(0, len(data), guest.MAX_DATA):
            self._sandbox.write(guest.pack(guest.STDIN, self._number, data[start : start + guest.MAX_DATA]))
        if eof:
            self._sandbox.write(guest.pack(guest.STDIN, self._number))

    def cancel(self, kind: OutcomeKind) -> None:
        """Have the whole process tree killed; it ends with `kind` unless it ended before."""
        if not self._over:
            self._sandbox.write(guest.pack_json(guest.CANCEL, self._number, guest.CancelCall(kind=kind)))

    def arrived(self, event: Event) -> None:
        """Called by the connection. Raises `RunnerError` (flow) when the guest exceeds its credit."""
        if self._over:
            return
        if isinstance(event, Piece):
            self._credit -= len(event.data)
            if self._credit < 0:
                raise refuse("flow", "the guest sent more output than its credit")
            last = self._events[-1] if self._events else None
            if isinstance(last, Piece) and last.stream == event.stream and len(last.data) < _JOIN:
                self._events[-1] = Piece(event.stream, last.data + event.data)
                return
        self._over = isinstance(event, Outcome)
        self._events.append(event)
        if self._waiting is not None:
            _wake(self._waiting)

    @property
    def over(self) -> bool:
        """Whether its end has arrived."""
        return self._over

    def stdin_credit(self, count: int) -> None:
        """The guest can take this many more stdin bytes. Raises `RunnerError` (flow) beyond its window."""
        self._stdin_room += count
        if not 0 < count <= self._stdin_room <= _STDIN_WINDOW:
            raise refuse("flow", "the guest asked for more stdin than its window")
        self._on_stdin_credit(count)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


class Authority(Protocol):
    """Who signs certificates for a sandbox: `runner.wire.egress.EgressCaller`."""

    def forget(self, sandbox: str) -> None:
        """The sandbox is gone, and its authority with it."""


class Sandbox(asyncio.Protocol):
    """One sandbox as gate knows it: a plan, a control byte stream, the calls on it."""

    def __init__(self, sandbox: str, on_lost: Callable[[str], None]) -> None:
        self.id = sandbox
        self._on_lost = on_lost
        self._reader = guest.GuestReader()
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, GuestCall] = {}
        self._last = 0
        self._code: dict[tuple[str, str], asyncio.Future[None]] = {}  # by tool and digest: two tools may have one code
        self._jails: dict[Jail, str] = {}  # those the guest knows, by the key it knows them by; oldest first
        self._spelled = 0
        self.trusted_by: Authority | None = None  # the egress process whose authorities it has
        self._ready: asyncio.Future[guest.Ready] = asyncio.get_running_loop().create_future()
        self.slots = asyncio.Semaphore(1)  # calls at a time: the profile's number once the guest is known
        self.ending = False  # somebody takes it apart
        self.lost = ""  # why the connection ended; "" while it lives

    @classmethod
    async def open(
        cls, sandbox: str, descriptor: int, on_lost: Callable[[str], None], *, concurrent: int, start_s: float
    ) -> Sandbox:
        """Take over the control connection and wait for PID 1's first frame. Raises `RunnerError` (unavailable)."""
        loop = asyncio.get_running_loop()
        self = cls(sandbox, on_lost)
        await loop.create_unix_connection(lambda: self, sock=socket.socket(fileno=descriptor))
        try:
            self.ready = await asyncio.wait_for(self._ready, start_s)
        except TimeoutError:
            self.close("the sandbox did not answer")
            raise refuse("unavailable", "the sandbox did not answer") from None
        if self.ready.landlock < 1:
            self.close("no Landlock")
            raise refuse("host", "the kernel of the sandbox has no Landlock", next_step="run `runner doctor`")
        # Without scoped signals PID 1 clears the whole sandbox after each call: one at a time.
        self.slots = asyncio.Semaphore(concurrent if self.ready.scoped else 1)
        return self

    ready: guest.Ready

    async def provide(self, manifest: Manifest) -> None:
        """Give the guest a tool's code, once. Raises `RunnerError` (unavailable) when it does not take it."""
        if not manifest.code_digest:
            return
        if self.lost:
            raise refuse("unavailable", f"the sandbox is gone: {self.lost}")
        key = manifest.id, manifest.code_digest
        known = self._code.get(key)
        if known is None:
            known = self._code[key] = asyncio.get_running_loop().create_future()
            files = {name: base64.b64encode(data).decode() for name, data in manifest.files.items()}
            message = guest.Code(tool=manifest.id, digest=manifest.code_digest, files=files)
            self.write(guest.pack_json(guest.CODE, 0, message))
        await asyncio.shield(known)

    def holds(self, manifest: Manifest) -> bool:
        """Whether the guest has the tool's code already."""
        known = self._code.get((manifest.id, manifest.code_digest))
        return not manifest.code_digest or (known is not None and known.done() and known.exception() is None)

    def trust(self, bundle: bytes, by: Authority) -> None:
        """The certificate authorities that tools find at `plan.TRUST`, in time for every call started after this."""
        self.trusted_by = by
        self.write(guest.pack(guest.TRUST, 0, bundle))

    def prepare(self, usual: Usual, bpf: bytes) -> None:
        """Have a launcher built ahead of the first call that needs it."""
        ahead = guest.Prepare(isolation=usual.isolation, jail=self._jail(usual.jail, bpf), cpu_s=usual.cpu_s)
        self.write(guest.pack_json(guest.PREPARE, 0, ahead))

    def start(
        self,
        plan: CallPlan,
        bpf: bytes,
        credit: int,
        on_stdin_credit: Callable[[int], None],
        delivered: Delivered | None = None,
    ) -> GuestCall:
        """Ask the guest to run a call, with the credentials that were `delivered` to it. Raises `RunnerError`:
        unavailable when the sandbox is already gone, host when its kernel cannot confine the call to its port."""
        if self.lost:
            raise refuse("unavailable", f"the sandbox is gone: {self.lost}")
        if plan.jail.connect and self.ready.landlock < _LANDLOCK_TCP:
            reason = "the kernel of the sandbox cannot confine a call to its own port (Landlock before ABI 4)"
            raise refuse("host", reason, next_step="run `runner doctor`; tools with a network need Linux 6.7")
        given = delivered or Delivered()
        self._last += 1
        call = self._calls[self._last] = GuestCall(self, self._last, credit, on_stdin_credit)
        start = guest.Start(
            tool=plan.tool,
            kind=plan.kind,
            isolation=plan.isolation,
            jail=self._jail(plan.jail, bpf),
            argv=plan.argv,
            arguments=plan.arguments,
            roots=plan.roots,
            environment=plan.environment | given.environment if given.environment else plan.environment,
            code_digest=plan.code_digest,
            stdin=plan.stdin,
            credit=credit,
            wall_ms=plan.wall_ms,
            cpu_s=plan.cpu_s,
            result=plan.result,
            secrets={name: base64.b64encode(value).decode() for name, value in given.files.items()},
            secrets_folder=plan.secrets_folder,
        )
        self.write(guest.pack_json(guest.START, self._last, start))
        return call

    def _jail(self, jail: Jail, bpf: bytes) -> guest.JailSpec | str:
        """The walls, spelled out when the guest does not know them yet; `bpf` follows from `jail.seccomp`."""
        known = self._jails.get(jail)
        if known is not None:
            return known
        self._spelled += 1
        key = self._jails[jail] = str(self._spelled)  # no hash: no two jails can be made to share one
        if len(self._jails) > guest.MAX_JAILS:
            del self._jails[next(iter(self._jails))]
        return guest.JailSpec(
            key=key,
            read=jail.read,
            write=jail.write,
            execute=jail.execute,
            seccomp=base64.b64encode(bpf).decode(),
            open_files=jail.open_files,
            file_size=jail.file_size,
            connect=jail.connect,
        )

    def write(self, frame: bytes) -> None:
        """Send a frame; a lost connection swallows it (its calls have ended)."""
        if self._transport is not None and not self.lost:
            self._transport.write(frame)

    def close(self, reason: str) -> None:
        """Close the connection: PID 1 exits, and everything in the sandbox with it. Idempotent."""
        self._gone(reason)
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The loop took the descriptor."""
        # A cast, not a check: uvloop's transports do not inherit from asyncio's.
        self._transport = transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Bytes from the guest."""
        try:
            for kind, number, payload in self._reader.feed(data):
                self._frame(kind, number, payload)
        except RunnerError as error:
            self.close(f"the guest broke the protocol: {error.refused.reason}")

    def connection_lost(self, exc: Exception | None) -> None:
        """PID 1 is gone."""
        self._gone("the sandbox ended")

    def _gone(self, reason: str) -> None:
        if self.lost:
            return
        self.lost = reason
        if self.trusted_by is not None:
            self.trusted_by.forget(self.id)
        if not self._ready.done():
            self._ready.set_exception(refuse("unavailable", reason))
        for waiting in self._code.values():
            if not waiting.done():
                waiting.set_exception(refuse("unavailable", reason))
                waiting.exception()
        for call in self._calls.values():
            call.arrived(Outcome(kind="interrupted", reason=reason))
            call.on_lost()
        self._calls.clear()
        self._on_lost(reason)

    def _frame(self, kind: int, number: int, payload: bytes) -> None:
        if kind == guest.READY:
            if not self._ready.done():
                self._ready.set_result(guest.read_json(payload, guest.Ready))
            return
        if kind == guest.CODE_READY:
            told = guest.read_json(payload, guest.CodeReady)
            accepted = self._code.get((told.tool, told.digest))
            if accepted is not None and not accepted.done():
                accepted.set_result(None)
            return
        if kind == guest.FAULT and number == 0:
            raise refuse("unavailable", guest.read_json(payload, guest.Fault).reason)
        call = self._calls.get(number)
        if call is not None:
            self._call_frame(call, kind, number, payload)

    def _call_frame(self, call: GuestCall, kind: int, number: int, payload: bytes) -> None:
        if kind == guest.STDOUT or kind == guest.STDERR:
            call.arrived(Piece("stdout" if kind == guest.STDOUT else "stderr", payload))
        elif kind == guest.STARTED:
            walls = guest.read_json(payload, guest.Started).walls
            if call.started or len(walls) > _WALLS or not all(len(name) <= _WALL for name in walls):
                raise refuse("protocol", "a call was started twice, or with walls that nobody knows")
            if not all(walls.values()):
                raise refuse(
                    "unavailable", f"walls do not hold: {sorted(name for name, held in walls.items() if not held)}"
                )
            call.started = True
            call.walls = tuple(sorted(walls))
        elif kind == guest.STDIN_CREDIT:
            call.stdin_credit(int.from_bytes(payload, "big"))
        elif kind == guest.RESULT:
            call.arrived(Value(payload))
        elif kind == guest.ENDED:
            outcome = _outcome(guest.read_json(payload, guest.Ended), call.started)
            del self._calls[number]
            call.arrived(outcome)
        elif kind == guest.FAULT:
            fault = guest.read_json(payload, guest.Fault)
            if call.started:
                raise refuse("protocol", "a call that was started cannot be said never to have existed")
            call.fault = guest.Fault(code=fault.code, reason=brief(fault.reason))
            del self._calls[number]
            call.arrived(Outcome(kind="unavailable", reason=call.fault.reason))


def _outcome(ended: guest.Ended, started: bool) -> Outcome:
    """The guest's report within the bounds of an entry. Raises `RunnerError` (protocol) on one that cannot be true."""
    if not started or ended.kind not in _ENDS:
        raise refuse("protocol", f"a call ended as `{ended.kind}` without having been started, or not by itself")
    code, number, used = ended.exit_code, ended.signal, ended.usage
    return Outcome(
        kind=ended.kind,
        exit_code=code if code is not None and 0 <= code <= 255 else None,
        signal=number if number is not None and 0 < number <= _SIGNALS else None,
        reason=brief(ended.reason),
        usage=Usage(
            wall_us=_bounded(used.wall_us),
            cpu_user_us=_bounded(used.cpu_user_us),
            cpu_system_us=_bounded(used.cpu_system_us),
            max_rss_kib=_bounded(used.max_rss_kib),
            leftover=_bounded(used.leftover),
        ),
    )


def _bounded(count: int) -> int:
    return min(max(count, 0), _MOST)


def brief(text: str) -> str:
    """A guest's words as they may be kept and told: short, printable."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text[:500])
