"""The processes that parent starts: a fresh interpreter each, a channel to it, what it says, how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from runner.errors import Refusal, RunnerError, refusal, refuse
from runner.serve.channel import Channel
from runner.wire import parent as wire

T = TypeVar("T")

START_S = 120.0  # engine resolves images and removes orphans before it answers
_LAST_WORDS_S = 2.0  # for what a child wrote before it ended to be read
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ")  # a child gets no more: its first environment stays readable in /proc
_ONE_PART = {  # what one part alone gets beside it
    "engine": ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"),
    "broker": ("CREDENTIALS_DIRECTORY",),  # systemd's: where a master key lies
}

Heard = Callable[[str, Any, int | None], None]  # a child's name, its message, the descriptor that came with it


class Child:
    """One process and the channel to it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, run: int = 0) -> None:
        """`run` counts the processes of this name."""
        self.name = name
        self.run = run
        self.process = process
        self.channel: Channel
        self.failure: Refusal | None = None  # why it answers no more, in its own words if it had any
        self._answers: asyncio.Queue[Any] = asyncio.Queue()

    @property
    def ended(self) -> bool:
        """Whether it has exited."""
        return self.process.returncode is not None

    def said(self, message: Any) -> None:
        """It answered; or, with None, it ended."""
        if isinstance(message, wire.Fatal):
            self.failure = self.failure or message.refusal
        elif message is None:
            words = f"{self.name} ended while it was asked for something"
            self.failure = self.failure or refusal("host", words, next_step="see the lines above")
        self._answers.put_nowait(message)

    async def expect(self, *kinds: type[T], generation: int | None = None) -> T:
        """Its next message of these kinds, about that generation. Raises `RunnerError` (host) when it ends instead."""
        try:
            async with asyncio.timeout(START_S):
                while self.failure is None:
                    message = await self._answers.get()
                    if isinstance(message, kinds) and generation in (None, getattr(message, "generation", None)):
                        return message
        except TimeoutError:
            raise refuse("host", f"{self.name} did not answer within {START_S:.0f} s") from None
        raise RunnerError(self.failure)

    async def compiled(self, bundle: wire.Bundle, generation: int, asked: int = 0) -> Refusal | None:
        """Offer it a catalogue; why it does not compile there. Raises `RunnerError` (host) when the child ends."""
        self.channel.post(wire.Offer(generation=generation, bundle=bundle, asked=asked))
        answer = await self.expect(wire.Compiled, wire.Rejected, generation=generation)
        return answer.refusal if isinstance(answer, wire.Rejected) else None

    def kill(self) -> None:
        """End it now, whatever it is at, stopped by a signal too; whoever watches it reaps it."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def stop(self, grace_s: float) -> bool:
        """Wait for its end, and bring it about after `grace_s`. Returns whether it ended by itself."""
        try:
            await asyncio.wait_for(self.process.wait(), grace_s)
        except TimeoutError:
            self.kill()
            await self.process.wait()
            return False
        finally:
            self.channel.close()
        return True


class Children:
    """Those that live, by name. All of them hold the lock `family`, and its end says that none is left."""

    def __init__(self, heard: Heard) -> None:
        """`heard` gets what is said unasked."""
        self.family = -1
        self.live: dict[str, Child] = {}
        self.dead: asyncio.Queue[Child] = asyncio.Queue()
        self._heard = heard
        self._watchers: set[asyncio.Task[None]] = set()

    async def spawn(self, name: str, sockets: tuple[socket.socket, ...], arguments: tuple[str, ...]) -> Child:
        """Exec one child: a fresh interpreter that inherits its sockets, which are closed here, and nothing else."""
        mine, its = socket.socketpair()
        passed = (its, *sockets)
        kept = (*_ENVIRONMENT, *_ONE_PART.get(name, ()))
        for sock in passed:
            sock.set_inheritable(True)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-m",
            f"runner.serve.{name}",
            *(str(sock.fileno()) for sock in passed),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=[self.family, *(sock.fileno() for sock in passed)],
            cwd="/",
            env={key: os.environ[key] for key in kept if key in os.environ},
        )
        for sock in passed:
            sock.close()
        before = self.live.get(name)
        child = self.live[name] = Child(name, process, before.run + 1 if before is not None else 0)
        child.channel = Channel(mine, wire.FromChild, lambda *said: self._hear(child, *said), carriers=(wire.Dials,))
        watcher = asyncio.ensure_future(self._watch(child))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return child

    def _hear(self, child: Child, message: Any, descriptor: int | None) -> None:
        if isinstance(message, wire.Reread | wire.Dials | wire.GivenUp):
            self._heard(child.name, message, descriptor)
        else:
            child.said(message)

    async def _watch(self, child: Child) -> None:
        await child.process.wait()
        with contextlib.suppress(TimeoutError):  # its last message may still be unread; its end of the channel follows
            await asyncio.wait_for(child.channel.closed.wait(), _LAST_WORDS_S)
        child.channel.close()
        child.said(None)
        self.dead.put_nowait(child)
