"""Clients as processes of their own, so that neither their work nor their interpreter limits what is measured.

Three kinds: `agent` is the package's async client, with all that an agent pays; `frames` sends calls whose proofs were
signed before, so that a client costs next to nothing and the daemon is what is measured; `command` is a baseline: it
starts a program of this host, one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing
import select
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any, Literal

from common import spawned

from runner.client import AsyncRunner
from runner.client.credentials import Identity, find_credentials, find_socket
from runner.wire import agent
from runner.wire.frame import Decoder, FrameReader, encode

_PATIENCE_S = 600.0
_TIMER_SLACK = 29  # prctl: sleeps end when they should, not up to 50 µs later


@dataclass(frozen=True)
class Job:
    """What one client process does. `code` is the refusal that every call must get, "" for success."""

    credentials: bytes
    calls: int
    in_flight: int
    tool: str = "shell_run"
    arguments: dict[str, Any] = field(default_factory=lambda: {"argv": ["/bin/echo", "x"]})
    kind: Literal["agent", "frames", "command"] = "agent"
    code: str = ""


@dataclass(frozen=True)
class Done:
    """What came of it: when it began and ended (monotonic seconds), the milliseconds of each call, the client's CPU."""

    began: float
    ended: float
    times: list[float]
    cpu_s: float


class Frames:
    """One connection whose calls are signed ahead: `prepare`, then `run` within the minute that a proof is good for."""

    def __init__(self, credentials: bytes) -> None:
        ctypes.CDLL(None).prctl(_TIMER_SLACK, 1, 0, 0, 0)
        found = find_credentials(credentials)
        self._identity = Identity(found)
        self._reader = FrameReader(16 << 20)
        self._decoder: Decoder[agent.FromDaemon] = Decoder(agent.FromDaemon, elements=0, depth=0, scan_first=False)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_PATIENCE_S)
        self._socket.connect(find_socket(found))
        self._frames: list[bytes] = []
        self._first = 1
        challenge = self._one(agent.Challenge)
        proof = self._identity.prove_hello(challenge)
        self._socket.sendall(encode(agent.Hello(version=1, chain=found.chain, proof=proof)))
        self._one(agent.Welcome)

    def _one(self, kind: type) -> Any:
        while True:
            for message in self._receive():
                assert isinstance(message, kind), message
                return message

    def _receive(self) -> list[Any]:
        data = self._socket.recv(1 << 18)
        assert data, "the daemon hung up"
        return [self._decoder.decode(body) for body in self._reader.feed(data)]

    def prepare(self, tool: str, arguments: dict[str, Any], count: int) -> None:
        """Sign `count` calls."""
        self._first += len(self._frames)
        self._frames = [
            encode(agent.Call(number=number, proof=self._identity.prove_call(tool, arguments)))
            for number in range(self._first, self._first + count)
        ]

    def run(self, code: str, *, in_flight: int, per_s: float = 0.0) -> list[float]:
        """Send them, at most `in_flight` unanswered, at this pace or as fast as they are answered. Milliseconds of
        each from its `send` to its answer; a call that waits for an earlier one is not held back by us."""
        frames, total = self._frames, len(self._frames)
        sent_at, times = [0.0] * total, [0.0] * total
        sent = done = 0
        start = time.perf_counter()
        while done < total:
            due = min(total, int((time.perf_counter() - start) * per_s) + 1) if per_s else total
            until = min(due, done + in_flight)
            if sent < until:
                now = time.perf_counter()
                sent_at[sent:until] = [now] * (until - sent)
                self._socket.sendall(b"".join(frames[sent:until]))
                sent = until
            wait = max(0.0, start + sent / per_s - time.perf_counter()) if per_s and sent < total else _PATIENCE_S
            if not select.select([self._socket], [], [], wait)[0]:
                assert wait < _PATIENCE_S, "no answer came"
                continue
            messages = self._receive()
            now = time.perf_counter()
            for message in messages:
                if isinstance(message, agent.Refused | agent.Result):
                    got = message.refusal.code if isinstance(message, agent.Refused) else ""
                    assert got == code, message
                    at = message.number - self._first
                    times[at] = (now - sent_at[at]) * 1000
                    done += 1
                elif isinstance(message, agent.Ping):
                    self._socket.sendall(encode(agent.Pong(token=message.token)))
        return times

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


async def many(runner: AsyncRunner, job: Job) -> list[float]:
    """`job.calls` calls, `job.in_flight` at a time, on one connection. Milliseconds of each."""
    times: list[float] = []
    left = iter(range(job.calls))

    async def worker() -> None:
        for _ in left:
            began = time.perf_counter()
            done = await runner.call(job.tool, job.arguments)
            times.append((time.perf_counter() - began) * 1000)
            assert done.ok, done.summary()

    await asyncio.gather(*(worker() for _ in range(job.in_flight)))
    return times


def _agent(pipe: Connection, job: Job) -> Done:
    async def main() -> Done:
        async with contextlib.AsyncExitStack() as stack:
            runner = await AsyncRunner.open(credentials=job.credentials)
            stack.push_async_callback(runner.aclose)
            await many(runner, Job(job.credentials, 2 * job.in_flight, job.in_flight, job.tool, job.arguments))
            pipe.send("ready")
            await asyncio.to_thread(pipe.recv)  # the loop answers heartbeats meanwhile
            began, cpu = time.monotonic(), time.process_time()
            times = await many(runner, job)
            return Done(began, time.monotonic(), times, time.process_time() - cpu)

    return asyncio.run(main())


def _frames(pipe: Connection, job: Job) -> Done:
    frames = Frames(job.credentials)
    frames.prepare(job.tool, job.arguments, job.calls)
    pipe.send("ready")
    pipe.recv()
    began, cpu = time.monotonic(), time.process_time()
    times = frames.run(job.code, in_flight=job.in_flight)
    done = Done(began, time.monotonic(), times, time.process_time() - cpu)
    frames.close()
    return done


def _command(pipe: Connection, job: Job) -> Done:
    block = spawned(job.arguments["argv"])
    block(1)
    pipe.send("ready")
    pipe.recv()
    began, cpu = time.monotonic(), time.process_time()
    times = block(job.calls)
    return Done(began, time.monotonic(), times, time.process_time() - cpu)


def _client(pipe: Connection, job: Job) -> None:
    pipe.send({"agent": _agent, "frames": _frames, "command": _command}[job.kind](pipe, job))


class Clients:
    """Processes that are ready and wait for `go`."""

    def __init__(self, pipes: Sequence[Connection]) -> None:
        self._pipes = pipes

    def go(self) -> list[Done]:
        """Let all begin; what came of each."""
        for pipe in self._pipes:
            pipe.send("go")
        return [_take(pipe) for pipe in self._pipes]


def _take(pipe: Connection) -> Any:
    assert pipe.poll(_PATIENCE_S), "a client did not answer"
    return pipe.recv()


@contextlib.contextmanager
def clients(jobs: Sequence[Job]) -> Iterator[Clients]:
    """One process for each job, connected and warm. None is left at the end."""
    context = multiprocessing.get_context("spawn")
    processes, pipes = [], []
    try:
        for job in jobs:
            ours, theirs = context.Pipe()
            process = context.Process(target=_client, args=(theirs, job))
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        for pipe in pipes:
            assert _take(pipe) == "ready"
        yield Clients(pipes)
    finally:
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.terminate()
                process.join()


def rate(done: Sequence[Done]) -> float:
    """Calls per second over all clients, from the first one's begin to the last one's end."""
    return sum(len(each.times) for each in done) / (max(d.ended for d in done) - min(d.began for d in done))


class Agent:
    """One async client in a loop of its own that runs only inside a block, as an agent's own loop would."""

    def __init__(self, credentials: bytes) -> None:
        self._loop = asyncio.new_event_loop()
        self.runner = self._loop.run_until_complete(AsyncRunner.open(credentials=credentials))

    def run(self, work: Any) -> Any:
        """Run a coroutine of the client to its end."""
        return self._loop.run_until_complete(work)

    def calls(self, tool: str = "shell_run", **arguments: Any) -> Any:
        """A block for `common.in_turns`: one call after the other."""
        job = Job(b"", 0, 1, tool, arguments or {"argv": ["/bin/echo", "x"]})
        return lambda count: self.run(many(self.runner, replace(job, calls=count)))

    def close(self) -> None:
        """Say bye."""
        self._loop.run_until_complete(self.runner.aclose())
        self._loop.close()
