"""The recorder process: `python -m runner.serve.recorder PARENT_FD GATE_FD STATE_DIR ORIGIN USER`.

Blocking on purpose: it does one thing, in order. Everything that arrived together becomes one group; a `sync`
append is answered after the group's fsync, the others at once, followed by `DurableTo`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.errors import RunnerError
from runner.recorder.keys import load_or_create_key
from runner.recorder.log import Recorder
from runner.serve import log, privilege
from runner.serve.channel import Channel
from runner.wire import parent
from runner.wire import recorder as wire

_log = logging.getLogger(__name__)
_GROUP_S = 0.02  # the longest an entry waits for its group: `Durable` follows a result within 50 ms
_BATCH = 256


def stamp() -> str:
    """Now, as entries write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class RecorderProcess:
    """The recorder behind its channel to gate."""

    def __init__(self, recorder: Recorder, interrupted: int) -> None:
        self._recorder = recorder
        self._interrupted = interrupted
        self._gate: Channel | None = None
        self._waiting: list[wire.Appended] = []
        self._due: asyncio.TimerHandle | None = None
        self.ended = asyncio.Event()
        self.failure: RunnerError | None = None

    def serve(self, sock: socket.socket) -> Channel:
        """Serve gate on this socket."""
        self._gate = Channel(sock, wire.FromGate, self._message)
        recorder = self._recorder
        self._gate.post(
            wire.Opened(
                size=recorder.size,
                previous=recorder.previous,
                interrupted=self._interrupted,
                newest_call=recorder.newest_call,
            )
        )
        return self._gate

    def _message(self, message: Any, _: int | None) -> None:
        try:
            self._carry_out(message)
        except RunnerError as error:
            self._fail(error)

    def _carry_out(self, message: Any) -> None:
        assert self._gate is not None
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
            case wire.Since():
                found = tuple(recorder.since(message.position, _BATCH))
                last = len(found) < _BATCH
                following = recorder.size if last else found[-1][0] + 1
                self._gate.post(wire.Entries(number=message.number, entries=found, last=last, next=following))

    def _append(self, message: wire.Append) -> None:
        assert self._gate is not None
        try:
            position, digest = self._recorder.append(message.entry, message.contents)
        except RunnerError as error:
            self._gate.post(wire.Refused(number=message.number, refusal=error.refused))
            return
        answer = wire.Appended(number=message.number, position=position, digest=digest)
        loop = asyncio.get_running_loop()
        if message.sync:
            self._waiting.append(answer)
            if self._due is not None:
                self._due.cancel()
            self._due = loop.call_later(0, self._commit)  # after whatever else has arrived with it
            return
        self._gate.post(answer)
        if self._due is None:
            self._due = loop.call_later(_GROUP_S, self._commit)

    def _commit(self) -> None:
        assert self._gate is not None
        self._due = None
        try:
            size = self._recorder.commit()
            for answer in self._waiting:
                self._gate.post(
                    wire.Appended(number=answer.number, position=answer.position, digest=answer.digest, durable=True)
                )
            self._waiting.clear()
            self._gate.post(wire.DurableTo(size=size))
            self._recorder.tidy()
        except RunnerError as error:
            self._fail(error)

    def _fail(self, error: RunnerError) -> None:
        """The disk lost something: acknowledge nothing more, and end; gate ends with us."""
        self.failure = error
        self.ended.set()


async def _main(parent_fd: int, gate_fd: int, state: Path, origin: str) -> int:
    upward = Channel(socket.socket(fileno=parent_fd), parent.FromParent, lambda message, _: None)
    try:
        key = load_or_create_key(state / "ledger", origin)
        recorder = Recorder.open(state, origin, key, stamp)
        interrupted = recorder.seal_interrupted(stamp())
        recorder.commit()
    except RunnerError as error:
        upward.post(parent.Fatal(refusal=error.refused))
        return 1
    process = RecorderProcess(recorder, interrupted)
    gate = process.serve(socket.socket(fileno=gate_fd))
    upward.post(parent.Ready(detail=f"{recorder.size} entries, {interrupted} calls found interrupted"))
    waits = [asyncio.ensure_future(event.wait()) for event in (process.ended, gate.closed, upward.closed)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    gate.close()
    if process.failure is not None:
        _log.critical("%s", process.failure.refused.line())
        upward.post(parent.Fatal(refusal=process.failure.refused))
        return 1
    recorder.close()
    return 0


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
    return asyncio.run(_main(int(parent_fd), int(gate_fd), Path(state), origin))


if __name__ == "__main__":
    sys.exit(main())
