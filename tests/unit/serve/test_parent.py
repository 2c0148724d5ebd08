"""Parent and a part that hangs: whoever it gives up is killed and reaped, however deep it sleeps."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path

import pytest

from runner.config import Config
from runner.errors import RunnerError
from runner.serve import children
from runner.serve.channel import Channel
from runner.serve.children import Child
from runner.serve.parent import Daemon
from runner.wire import parent as wire

_BUNDLE = wire.Bundle(config=b"", config_path="", profiles={}, tools={}, policies={}, digest="d")


async def _stopped(name: str, run: int = 0) -> tuple[Child, socket.socket]:
    """A child that says nothing for ever, and the other end of its channel."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-c", "import time; time.sleep(600)")
    process.send_signal(signal.SIGSTOP)
    child = Child(name, process, run)
    mine, its = socket.socketpair()
    child.channel = Channel(mine, wire.FromChild, lambda message, _: child.said(message))
    return child, its


async def _over(child: Child, its: socket.socket) -> None:
    child.kill()
    await child.process.wait()
    child.channel.close()
    its.close()


@pytest.mark.parametrize(("name", "killed"), [("egress", True), ("broker", True), ("engine", False)])
def test_a_part_that_answers_no_offer_is_killed_where_calls_do_not_live_in_it(
    name: str, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engine holds every sandbox, and may be waiting for Docker: the offer is refused, and it stays."""
    monkeypatch.setattr(children, "START_S", 0.2)

    async def work() -> None:
        daemon = Daemon(Config(), Path("runner.toml"), b"")
        child, its = await _stopped(name)
        daemon._children.live[name] = child
        try:
            with pytest.raises(RunnerError, match="did not answer"):
                await daemon._offer(_BUNDLE)
            if killed:
                assert await asyncio.wait_for(child.process.wait(), 20) == -signal.SIGKILL
            assert child.ended == killed
        finally:
            await _over(child, its)

    asyncio.run(work())


@pytest.mark.parametrize(("named", "run", "killed"), [("gate", 2, True), ("gate", 1, False), ("broker", 2, False)])
def test_only_the_very_process_that_gate_has_given_up_is_killed(named: str, run: int, killed: bool) -> None:
    """Not the one after it, which may be there by then; and nobody but gate has a say."""

    async def work() -> None:
        daemon = Daemon(Config(), Path("runner.toml"), b"")
        child, its = await _stopped("egress", run=2)
        daemon._children.live["egress"] = child
        try:
            daemon._heard(named, wire.GivenUp(name="egress", run=run), None)
            if killed:
                assert await asyncio.wait_for(child.process.wait(), 20) == -signal.SIGKILL
            else:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(child.process.wait(), 0.5)
        finally:
            await _over(child, its)

    asyncio.run(work())
