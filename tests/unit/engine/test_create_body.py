"""Nothing that a call, a token or gate can say reaches Docker's create request but a name of small letters."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runner.config import Config
from runner.engine.cgroup import CgroupTree
from runner.engine.containers import Container, Workshop
from runner.engine.host import CompiledProfile
from runner.engine.sandboxes import Engine
from runner.errors import RunnerError
from runner.model import Ceilings, SandboxPlan, TaskProfile
from runner.wire import engine as wire

BODIES = 10_000
DIGEST = "d" * 64
PROFILE = TaskProfile(
    name="default", description="", digest=DIGEST, image="", seccomp="default", ceilings=Ceilings(), tools=("t",)
)
COMPILED = CompiledProfile(profile=PROFILE, image="sha256:i", runtime="runc", seccomp="{}")
HOSTILE = (
    "--privileged", "-v/:/host", "Privileged", "../../etc", "/", "\0", "\n", " ", '"', "'", "{", "}", ":", ",", "=",
    "$(id)", "seccomp=unconfined", "ü", "\u202e", "host", "container:1", "root", "A", "s1", "-", "0", "a" * 70, "rw",
)  # fmt: skip


class Captured(Exception):
    """What Docker would have been asked."""


class FakeDocker:
    """Keeps the request and stops there."""

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, Any], str]] = []

    def create(self, body: dict[str, Any], name: str) -> str:
        self.asked.append((copy.deepcopy(body), name))
        raise Captured


class FakeUids:
    """A uid from the range, as the lease picks it."""

    uid = 260_000

    def lease(self) -> FakeUids:
        return self

    def release(self) -> None:
        pass


class FakeSocket:
    """No folder on disk."""

    def __init__(self, folder: Path, uid: int) -> None:
        self.folder = folder

    def close(self) -> None:
        pass


def texts(chance: random.Random) -> Iterator[str]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-"
    while True:
        yield "".join(chance.choice(letters) for _ in range(chance.randrange(1, 66)))
        yield "".join(chance.choice(HOSTILE) for _ in range(chance.randrange(1, 5)))
        yield "".join(chr(chance.randrange(1, 0xD800)) for _ in range(chance.randrange(1, 20)))


def without_names(body: dict[str, Any], sandbox: str, folder: Path) -> dict[str, Any]:
    """The request with its sandbox's name taken out of the two places where it belongs."""
    plain = copy.deepcopy(body)
    assert plain["Labels"].pop("org.toolrunner.sandbox") == sandbox
    assert plain["HostConfig"]["Mounts"][0].pop("Source") == str(folder / sandbox)
    return plain


def test_ten_thousand_plans_make_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.engine.containers.ControlSocket", FakeSocket)
    monkeypatch.setattr("runner.engine.containers.remove_folder", lambda folder: None)
    docker, chance, seed = FakeDocker(), random.Random(), random.randrange(1 << 32)
    chance.seed(seed)
    shop: Any = Workshop(
        docker=docker,  # type: ignore[arg-type]
        tree=CgroupTree(tmp_path),
        uids=FakeUids(),  # type: ignore[arg-type]
        disks=None,  # type: ignore[arg-type] # the profile has none
        folder=tmp_path,
        instance="i",
        start_s=60,
    )

    async def at_once(call: Any) -> Any:
        return call()

    monkeypatch.setattr(shop, "blocking", at_once)
    engine = Engine(instance="i", config=Config(), run_dir=tmp_path, state_dir=tmp_path, on_end=lambda *ended: None)
    engine._workshop, engine._compiled = shop, {"default": COMPILED}
    said = texts(chance)

    async def make() -> None:
        honest = chance.random() < 0.7
        plan = SandboxPlan(
            sandbox=next(said),
            task=next(said),
            profile="default" if honest else next(said),
            profile_digest=DIGEST if honest else next(said),
        )
        try:
            compiled = engine._check(plan)
        except RunnerError:
            return
        with pytest.raises(Captured):
            await Container(shop, plan.sandbox, compiled, plan.task).make()

    async def make_all() -> None:
        while len(docker.asked) < BODIES:
            await make()

    asyncio.run(make_all())
    first = docker.asked[0]
    wanted = without_names(first[0], first[1].removeprefix("toolrunner-i-"), tmp_path)
    for body, name in docker.asked:
        sandbox = name.removeprefix("toolrunner-i-")
        assert without_names(body, sandbox, tmp_path) == wanted, f"seed {seed}: {sandbox!r}"
        assert sandbox.isascii()
        assert sandbox.replace("-", "a").isalnum()
        assert sandbox == sandbox.lower()


@pytest.mark.parametrize("key", ["privileged", "mounts", "devices", "user", "env", "image", "body", "HostConfig"])
def test_gate_has_no_words_for_anything_else(key: str) -> None:
    plan = SandboxPlan(sandbox="s", task="t", profile="default", profile_digest=DIGEST)
    message = msgspec.to_builtins(wire.Create(number=1, plan=plan))
    assert msgspec.convert(message, wire.Create).plan == plan
    for place in (message, message["plan"]):
        place[key] = True
        with pytest.raises(msgspec.ValidationError, match="unknown field"):
            msgspec.convert(message, wire.Create)
        del place[key]
