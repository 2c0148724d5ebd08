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
from typing import Literal, cast

import msgspec

from runner.errors import RunnerError, refuse
from runner.model import CallPlan, Manifest, Outcome, OutcomeKind
from runner.sandbox.plan import jail_key
from runner.wire import guest

_READ = 256 << 10


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
        self._events: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._over = False
        self._on_stdin_credit = on_stdin_credit
        self.started = False
        self.walls: tuple[str, ...] = ()
        self.fault: guest.Fault | None = None  # set when the outcome is `unavailable` by the guest's word

    async def next(self) -> Event:
        """The next event, in the order it happened. Not to be called after the `Outcome`."""
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        return self._events.popleft()

    def credit(self, count: int) -> None:
        """Let the guest send `count` more bytes of output."""
        if not self._over and count > 0:
            self._credit += count
            self._sandbox.write(guest.pack(guest.CREDIT, self._number, count.to_bytes(4, "big")))

    def stdin(self, data: bytes, *, eof: bool) -> None:
        """Bytes for the tool; the caller keeps within the credit the guest gave."""
        if self._over:
            return
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
        self._over = isinstance(event, Outcome)
        self._events.append(event)
        self._arrived.set()

    def stdin_credit(self, count: int) -> None:
        """The guest can take this many more stdin bytes."""
        self._on_stdin_credit(count)


class Sandbox(asyncio.Protocol):
    """One sandbox as gate knows it: a plan, a control byte stream, the calls on it."""

    def __init__(self, sandbox: str, on_lost: Callable[[str], None]) -> None:
        self.id = sandbox
        self._on_lost = on_lost
        self._reader = guest.GuestReader()
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, GuestCall] = {}
        self._last = 0
        self._code: dict[str, asyncio.Future[None]] = {}
        self._ready: asyncio.Future[guest.Ready] = asyncio.get_running_loop().create_future()
        self.slots = asyncio.Semaphore(1)  # calls at a time: the profile's number once the guest is known
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
        known = self._code.get(manifest.code_digest)
        if known is None:
            known = self._code[manifest.code_digest] = asyncio.get_running_loop().create_future()
            files = {name: base64.b64encode(data).decode() for name, data in manifest.files.items()}
            message = guest.Code(tool=manifest.id, digest=manifest.code_digest, files=files)
            self.write(guest.pack_json(guest.CODE, 0, message))
        await asyncio.shield(known)

    def start(self, plan: CallPlan, bpf: bytes, credit: int, on_stdin_credit: Callable[[int], None]) -> GuestCall:
        """Ask the guest to run a call. Raises `RunnerError` (unavailable) when the sandbox is already gone."""
        if self.lost:
            raise refuse("unavailable", f"the sandbox is gone: {self.lost}")
        self._last += 1
        call = self._calls[self._last] = GuestCall(self, self._last, credit, on_stdin_credit)
        jail = guest.JailSpec(
            key=jail_key(plan.jail),
            read=plan.jail.read,
            write=plan.jail.write,
            execute=plan.jail.execute,
            seccomp=base64.b64encode(bpf).decode(),
            open_files=plan.jail.open_files,
            file_size=plan.jail.file_size,
        )
        start = guest.Start(
            tool=plan.tool,
            kind=plan.kind,
            isolation=plan.isolation,
            jail=jail,
            argv=plan.argv,
            arguments=plan.arguments,
            roots=plan.roots,
            environment=plan.environment,
            code_digest=plan.code_digest,
            stdin=plan.stdin,
            credit=credit,
            wall_ms=plan.wall_ms,
            cpu_s=plan.cpu_s,
            result=plan.result,
        )
        self.write(guest.pack_json(guest.START, self._last, start))
        return call

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
        if not self._ready.done():
            self._ready.set_exception(refuse("unavailable", reason))
        for waiting in self._code.values():
            if not waiting.done():
                waiting.set_exception(refuse("unavailable", reason))
                waiting.exception()
        for call in self._calls.values():
            call.arrived(Outcome(kind="interrupted", reason=reason))
        self._calls.clear()
        self._on_lost(reason)

    def _frame(self, kind: int, number: int, payload: bytes) -> None:
        if kind == guest.READY:
            if not self._ready.done():
                self._ready.set_result(guest.read_json(payload, guest.Ready))
            return
        if kind == guest.CODE_READY:
            accepted = self._code.get(guest.read_json(payload, guest.CodeReady).digest)
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
            ended = guest.read_json(payload, guest.Ended)
            del self._calls[number]
            call.arrived(
                Outcome(
                    kind=ended.kind,
                    exit_code=ended.exit_code,
                    signal=ended.signal,
                    reason=ended.reason[:500],
                    usage=ended.usage,
                )
            )
        elif kind == guest.FAULT:
            call.fault = guest.read_json(payload, guest.Fault)
            del self._calls[number]
            call.arrived(Outcome(kind="unavailable", reason=call.fault.reason[:500]))
