"""Which spares a pool makes, whatever else cannot be made."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any

import msgspec
import pytest

from runner.cli.policy import compiled
from runner.errors import refuse
from runner.model import SandboxPlan
from runner.sandbox import pool
from runner.sandbox.pool import Opened, Pool

PROFILE = compiled(None, None, None).task_profiles["default"]
ABSENT = msgspec.structs.replace(PROFILE, name="absent", digest="sha256:absent", tools=())
DEFAULT = msgspec.structs.replace(PROFILE, tools=())


class Spare:
    """An open sandbox, as far as a pool looks at one."""

    lost = ""


def test_a_profile_that_cannot_be_made_keeps_no_other_from_its_spare_and_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A host without the image of one profile, whose name comes first."""
    monkeypatch.setattr(pool, "_BACKOFF_S", 0.01)
    tried: list[str] = []

    async def make(plan: SandboxPlan, _: int) -> Any:
        tried.append(plan.profile)
        if plan.profile == "absent" and tried.count("absent") < 4:
            raise refuse("unavailable", "its image is not on this host")
        return Opened(sandbox=Spare(), measured=None, profile=plan.profile_digest)  # type: ignore[arg-type]

    async def scenario() -> None:
        names = map("s-{}".format, itertools.count())
        spares = Pool(make, lambda *_: None, lambda: next(names), 1)
        spares.stock({"absent": ABSENT, "default": DEFAULT}, {}, {})
        async with asyncio.timeout(10):
            while spares.ready < 1:
                await asyncio.sleep(0)
            assert tried == ["absent", "default"]
            while spares.ready < 2:
                await asyncio.sleep(0.001)
        assert tried == ["absent", "default", "absent", "absent", "absent"]

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert [record.getMessage().count("profile absent") for record in caplog.records] == [1]
