"""A connection's receipts name the process that connected, or say that nobody knows: never one that took its pid."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.errors import refuse
from runner.gate import provenance
from runner.gate.entries import content
from runner.gate.provenance import Provenance, Provenances, pidfd_of
from runner.model import Peer
from runner.token.claims import Link
from runner.wire.engine import Identified


class Keeper:
    def __init__(self) -> None:
        self.kept: list[bytes] = []

    async def keep(self, data: bytes, salt: bytes = b"") -> Any:
        self.kept.append(data)
        return content(data, salt)[1]


def chain(depth: int = 0, leaf: str = "leaf") -> Any:
    links = tuple(
        Link(jti=f"t{n}", digest="d" * 64, issued=n, expires=9, tools={"fs_read": {}}, name="sub" if n else "")
        for n in range(depth + 1)
    )
    return SimpleNamespace(links=links, profile="p", issuer="i", leaf_digest=leaf)


class Peered:
    """A listening socket, and a process of its own at the other end of one connection."""

    def __init__(self, tmp_path: Any) -> None:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / "s"))
            listening.listen()
            script = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"
            self.process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "s")])
            self.sock, _ = listening.accept()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


async def found(peered: Any, identify: Any, keeper: Keeper | None = None, depth: int = 0) -> Provenance:
    made = Provenances(keeper or Keeper(), identify).begin(
        peered.sock, Peer(uid=5, gid=6, pid=peered.process.pid), chain(depth)
    )
    await made.ready()
    return made


@pytest.fixture
def peered(tmp_path: Any) -> Any:
    made = Peered(tmp_path)
    yield made
    made.end()
    made.sock.close()


async def known(pid: int) -> Identified:
    return Identified(number=1, start=pid, cgroup="/c", executable="/x", digest="e" * 64)


def test_what_engine_found_is_in_every_receipt(peered: Any) -> None:
    peer = asyncio.run(found(peered, known)).peer
    assert (peer.uid, peer.gid, peer.pid, peer.start) == (5, 6, peered.process.pid, peered.process.pid)
    assert (peer.digest, peer.executable, peer.cgroup, peer.problem) == ("e" * 64, "/x", "/c", "")


def test_a_pid_whose_process_ended_meanwhile_is_nobody(peered: Any) -> None:
    async def late(pid: int) -> Identified:
        peered.end()  # from here on the pid may be anybody's
        return await known(pid)

    peer = asyncio.run(found(peered, late)).peer
    assert peer.problem == "it ended before it was looked at"
    assert (peer.start, peer.digest) == (0, "")


@pytest.mark.parametrize("lost", ["refused", "silent", "old kernel"])
def test_what_nobody_can_say_is_said(peered: Any, lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def identify(pid: int) -> Identified:
        if lost == "refused":
            raise refuse("unavailable", "a part of the daemon has ended")
        if lost == "silent":
            await asyncio.sleep(3600)
        return await known(pid)

    monkeypatch.setattr(provenance, "_ANSWER_S", 0.05)
    if lost == "old kernel":
        monkeypatch.setattr(provenance, "_SO_PEERPIDFD", 0xFFFF)
    peer = asyncio.run(found(peered, identify)).peer
    assert peer.problem
    assert peer.digest == ""
    assert peer.pid == peered.process.pid


def test_no_descriptor_is_left(peered: Any) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    descriptor = pidfd_of(peered.sock)
    assert descriptor >= 0, "this kernel has SO_PEERPIDFD"
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
    asyncio.run(found(peered, known))
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_the_whole_chain_is_kept_once_and_its_derived_tokens_are_named(peered: Any) -> None:
    keeper = Keeper()

    async def twice() -> list[Provenance]:
        provenances = Provenances(keeper, known)
        made = [provenances.begin(peered.sock, Peer(uid=1, pid=1), chain(2)) for _ in range(2)]
        await made[0].ready()
        await made[1].ready()
        again = provenances.begin(peered.sock, Peer(uid=1, pid=1), chain(2))
        await again.ready()
        return [*made, again]

    made = asyncio.run(twice())
    assert len({each.authority for each in made}) == 1
    assert len(set(keeper.kept)) == 1
    assert b'"tools":{"fs_read":{}}' in keeper.kept[0]
    assert [(each.token, each.name) for each in made[0].delegation] == [("t1", "sub"), ("t2", "sub")]
    assert asyncio.run(found(peered, known)).delegation == ()  # the twin: a root token derives from nobody
