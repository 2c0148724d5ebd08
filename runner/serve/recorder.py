"""The recorder process: `python -m runner.serve.recorder PARENT_FD GATE_FD STATE_DIR ORIGIN USER`.

Blocking on purpose: it does one thing, in order, and no event loop stands between an entry and its answer. Whatever
arrived together is checked and answered with one system call; all other work on it waits for its group. A `sync`
append is answered after the group's fsync, the others at once, followed by `DurableTo`.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import select
import signal
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.errors import RunnerError, refuse
from runner.ledger.retention import Criteria
from runner.recorder.keys import load_or_create_key
from runner.recorder.log import Job, Recorder
from runner.recorder.prune import Selection
from runner.serve import log, privilege
from runner.serve.inbox import Inbox
from runner.wire import parent
from runner.wire import recorder as wire
from runner.wire.frame import encode

_log = logging.getLogger(__name__)
_GROUP_S = 0.02  # the longest an entry waits for its group: `Durable` follows a result within 50 ms
_BATCH = 256
_LOOK_S = 1.0  # how often the room on the disk is looked at
RESERVE = 16 << 20  # bytes held back for a full disk: every call that can run at one time may end with its output


def stamp() -> str:
    """Now, as entries write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class RecorderProcess:
    """The recorder behind its sockets to parent and gate."""

    def __init__(self, recorder: Recorder, interrupted: int, upward: socket.socket, gate: socket.socket) -> None:
        self._recorder = recorder
        self._upward = upward
        self._gate = gate
        self._inbox = Inbox(wire.FromGate)
        self._answers: list[bytes] = []
        self._waiting: list[wire.Appended] = []  # for the fsync
        self._due = math.inf
        self._over = False
        self._job: tuple[int, Job] | None = None  # a selection, removal or search, and the request for it
        self._told_full = False
        self._look_at = 0.0
        self._answer(
            wire.Opened(
                size=recorder.size,
                previous=recorder.previous,
                interrupted=interrupted,
                newest_call=recorder.newest_call,
            )
        )

    def serve(self) -> None:
        """Until gate or parent has ended. Raises `RunnerError` when the disk lost something: nothing more is
        acknowledged then, and gate ends with us."""
        poll = select.poll()
        poll.register(self._gate, select.POLLIN)
        poll.register(self._upward, select.POLLIN)
        gate = self._gate.fileno()
        self._send()
        while not self._over:
            self._look()
            wait = max(0.0, math.ceil((min(self._due, self._look_at) - time.monotonic()) * 1e3))
            if self._job is not None:
                wait = 0
            ready = [descriptor for descriptor, _ in poll.poll(wait)]
            if gate in ready:
                self._read()
            elif ready:
                self._over = _ended(self._upward)
            if time.monotonic() >= self._due:
                self._commit()
            if self._job is not None and not self._over:
                self._work(*self._job)

    def _look(self) -> None:
        """Tell gate, and whoever reads the log, when the disk is full, and when it no longer is."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_S
            self._recorder.look_for_room()
        if self._recorder.full == self._told_full:
            return
        self._told_full = self._recorder.full
        if self._told_full:
            _log.critical(
                "the disk of the ledger is full: new calls are refused, the last %d MiB are kept for revocations and "
                "the ends of running calls · next: free %d MiB, and calls are taken again",
                RESERVE >> 20,
                3 * RESERVE >> 20,
            )
        else:
            _log.warning("the disk of the ledger has room again: new calls are taken")
        self._answer(wire.Room(reserved=not self._told_full))
        self._send()

    def _work(self, number: int, job: Job) -> None:
        """One step of what takes long, between messages."""
        done, found = self._recorder.work(job)
        if done:
            self._job = None
            match found:
                case None:
                    self._answer(wire.Removed(number=number))
                case Selection():
                    self._answer(wire.Selected(number=number, **found._asdict()))
                case _:
                    self._answer(wire.FoundRaw(number=number, **found._asdict()))
            self._send()

    def _begin(self, message: wire.Select | wire.Remove | wire.FindRaw) -> None:
        try:
            if self._job is not None:
                reason = "content is being looked for, selected or removed already"
                raise refuse("busy", reason, retry_after_ms=1000)
            retention = self._recorder.retention
            if isinstance(message, wire.Select):
                of = Criteria(
                    before=message.before, larger=message.larger, raw=message.raw,
                    tasks=message.tasks, agents=message.agents, tools=message.tools,
                )  # fmt: skip
                self._job = (message.number, retention.select(of, keep=message.keep, images=message.images))
            elif isinstance(message, wire.Remove):
                self._job = (message.number, retention.remove(message.pruned))
            else:
                self._job = (message.number, self._recorder.raw.find(message.call))
        except RunnerError as error:
            self._answer(wire.Refused(number=message.number, refusal=error.refused))

    def _read(self) -> None:
        """Everything that has arrived, answered before anything else is done for it."""
        try:
            count = self._gate.recv_into(self._inbox.room)
        except ConnectionError:
            count = 0
        for message in self._inbox.take(count):
            self._carry_out(message)
        self._send()
        self._over |= not count

    def _carry_out(self, message: Any) -> None:
        recorder = self._recorder
        match message:
            case wire.Append():
                self._append(message)
            case wire.Store():
                recorder.store(message.data)
            case wire.StoreOpen():
                recorder.open_stream(message.stream, message.salt)
            case wire.StoreWrite():
                recorder.write_stream(message.stream, message.data)
            case wire.StoreClose():
                recorder.close_stream(message.stream, message.digest, drop=message.drop)
            case wire.StoreEnd():
                self._answer(wire.Stored(number=message.number, digest=recorder.end_stream(message.stream)))
            case wire.Select() | wire.Remove() | wire.FindRaw():
                self._begin(message)
            case wire.ReadRaw():
                self._read_raw(message)
            case wire.Ask():
                gone = recorder.retention.gone(message.digests)
                self._answer(wire.Gone(number=message.number, digests=gone))
            case wire.Since():
                found = tuple(recorder.since(message.position, _BATCH))
                last = len(found) < _BATCH
                following = recorder.size if last else found[-1][0] + 1
                self._answer(wire.Entries(number=message.number, entries=found, last=last, next=following))

    def _append(self, message: wire.Append) -> None:
        try:
            position, digest = self._recorder.append(message.entry, message.contents)
        except RunnerError as error:
            self._answer(wire.Refused(number=message.number, refusal=error.refused))
            return
        answer = wire.Appended(number=message.number, position=position, digest=digest, durable=message.sync)
        if message.sync:
            self._waiting.append(answer)
            self._due = 0.0  # after whatever else has arrived with it
            return
        self._answer(answer)
        if self._due == math.inf:
            self._due = time.monotonic() + _GROUP_S

    def _read_raw(self, message: wire.ReadRaw) -> None:
        try:
            data = self._recorder.read_raw(message.digest, message.offset)
        except RunnerError as error:
            self._answer(wire.Refused(number=message.number, refusal=error.refused))
        else:
            self._answer(wire.RawPiece(number=message.number, data=data))

    def _commit(self) -> None:
        self._due = math.inf
        size = self._recorder.commit()
        for answer in self._waiting:
            self._answer(answer)
        self._waiting.clear()
        self._answer(wire.DurableTo(size=size))
        self._send()
        self._recorder.tidy()

    def _answer(self, message: Any) -> None:
        self._answers.append(encode(message))

    def _send(self) -> None:
        """Everything said so far, in one system call. Gate always reads, so waiting for it ends."""
        if self._answers:
            try:
                self._gate.sendall(b"".join(self._answers))
            except OSError:
                self._over = True
            self._answers.clear()


def _serve(parent_fd: int, gate_fd: int, state: Path, origin: str) -> int:
    upward, gate = socket.socket(fileno=parent_fd), socket.socket(fileno=gate_fd)
    try:
        key = load_or_create_key(state / "ledger", origin)
        recorder = Recorder.open(state, origin, key, stamp, reserve=RESERVE)
        interrupted = recorder.seal_interrupted(stamp())
        recorder.commit()
        process = RecorderProcess(recorder, interrupted, upward, gate)
        _tell(upward, parent.Ready(detail=f"{recorder.size} entries, {interrupted} calls found interrupted"))
        gc.freeze()  # what is here now stays: no collection need look at it again
        process.serve()
        gate.close()
        recorder.close()
    except RunnerError as error:
        gate.close()  # first, so that gate takes no more work
        _log.critical("%s", error.refused.line())
        _tell(upward, parent.Fatal(refusal=error.refused))
        return 1
    return 0


def _ended(upward: socket.socket) -> bool:
    """Whether parent has ended. Nothing that it says is for us."""
    try:
        return not upward.recv(1 << 16)
    except ConnectionError:
        return True


def _tell(upward: socket.socket, message: Any) -> None:
    with contextlib.suppress(OSError):  # parent has ended, and so does gate
        upward.sendall(encode(message))


def main() -> int:
    """Drop everything, then record."""
    parent_fd, gate_fd, state, origin, user = sys.argv[1:6]
    log.configure("recorder")
    os.umask(0o077)
    privilege.leave_network()
    privilege.drop_to(user)
    privilege.harden()
    privilege.clear_environment()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is parent's to act on: gate must drain first
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.tzset()
    return _serve(int(parent_fd), int(gate_fd), Path(state), origin)


if __name__ == "__main__":
    sys.exit(main())
