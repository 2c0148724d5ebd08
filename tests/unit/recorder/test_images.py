"""Which images a kept call names: told from entries alone, whatever their order."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from types import ModuleType
from typing import Any

import msgspec
import pytest

from runner.ledger import entry as entries
from runner.recorder.images import NamedImages

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
OLD = "2026-01-01T00:00:00.000000Z"


def named(text: str) -> entries.Content:
    return entries.Content(digest=hashlib.sha256(text.encode()).hexdigest(), size=1)


def sandbox(name: str, image: str) -> entries.SandboxBegin:
    return entries.SandboxBegin(
        time=OLD, sandbox=name, task="t", profile="default", profile_digest="0" * 64,
        isolation=entries.Isolation(
            image=image, runtime="runc", uid=1, seccomp=2, seccomp_filters=1, no_new_privs=True, capabilities="0",
            namespaces=(), interfaces=(), read_only_root=True, memory_limit=1, swap_limit=1, pids_limit=1,
            cpu_quota_milli=1, cgroup_version=1,
        ),
    )  # fmt: skip


def call(sample: ModuleType, number: int, sandbox: str, *, ends: bool = True) -> list[Any]:
    """A call with content of its own: `arguments N`, `plan N`, `out N`."""
    made = sample.call(number)
    plan = msgspec.structs.replace(made.plan, sandbox=sandbox, plan=named(f"plan {number}"))
    made = msgspec.structs.replace(made, arguments=named(f"arguments {number}"), plan=plan, time=OLD)
    if not ends:
        return [made]
    ended = sample.outcome(number)
    return [
        made,
        msgspec.structs.replace(
            ended, stdout=entries.Stream(**msgspec.to_builtins(named(f"out {number}")), delivered=0)
        ),
    ]


def unnamed(found: Collection[Any], gone: Collection[str], *holds: entries.Criteria) -> set[str]:
    images = NamedImages([A, B])
    digests = {bytes.fromhex(named(text).digest) for text in gone}
    for data in map(entries.encode, found):
        images.meet(data)
    for data in map(entries.encode, found):
        images.look(data, holds, digests.__contains__)
    return images.unnamed


ONE = ("arguments 1", "plan 1", "out 1")


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        ((), {B}),
        (ONE, {A, B}),
        (ONE[:2], {B}),  # its output stays
        (ONE[1:], {B}),
        ((ONE[0], ONE[2]), {B}),
    ],
)
def test_a_call_of_which_a_piece_stays_names_its_image(sample: ModuleType, gone: Any, left: set[str]) -> None:
    assert unnamed([sandbox("s1", A), *call(sample, 1, "s1")], gone) == left
    assert unnamed([*call(sample, 1, "s1"), sandbox("s1", A)], gone) == left  # in either order


def test_images_stand_by_themselves(sample: ModuleType) -> None:
    both = [sandbox("s1", A), sandbox("s2", B), *call(sample, 1, "s1"), *call(sample, 2, "s2")]
    assert unnamed(both, ()) == set()
    assert unnamed(both, ONE) == {A}
    assert unnamed([*both, *call(sample, 3, "s1")], ONE) == set()  # another call of the same sandbox
    assert unnamed([sandbox("s1", A)], ()) == {A, B}  # a sandbox that nobody called in
    assert unnamed([], ()) == {A, B}


def test_open_calls_and_held_ones_keep_their_image(sample: ModuleType) -> None:
    begun = [sandbox("s1", A), *call(sample, 1, "s1", ends=False)]
    assert unnamed(begun, ()) == {B}
    ended = [sandbox("s1", A), *call(sample, 1, "s1")]
    task = ended[1].who.task
    assert unnamed(ended, ONE, entries.Criteria(tasks=(task,))) == {B}  # also what went before the hold
    assert unnamed(ended, ONE, entries.Criteria(tasks=("another",))) == {A, B}


def test_a_denied_call_names_none(sample: ModuleType) -> None:
    (made, *_) = call(sample, 1, "s1")
    denied = msgspec.structs.replace(made, plan=None, decision=msgspec.structs.replace(made.decision, effect="deny"))
    assert unnamed([sandbox("s1", A), denied], ()) == {A, B}


def test_a_response_that_is_kept_keeps_the_image(sample: ModuleType) -> None:
    began, ended = call(sample, 1, "s1")
    kept = sample.egress_end(1, response=named("answer 1"))
    found = [sandbox("s1", A), began, sample.egress(1, path_content=named("path 1")), kept, ended]
    gone = {"arguments 1", "plan 1", "out 1", "path 1"}
    assert unnamed(found, gone) == {B}
    assert unnamed(found, gone | {"answer 1"}) == {A, B}
