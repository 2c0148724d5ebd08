"""A guest that lies: every byte from a sandbox is hostile, because the tool may have taken the supervisor."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from runner.errors import RunnerError
from runner.ledger import entry as entries
from runner.model import CallPlan, Jail, Manifest, Outcome, Usage
from runner.sandbox.connection import GuestCall, Piece, Sandbox, Value
from runner.sandbox.plan import Usual
from runner.wire import guest

PLAN = CallPlan(
    call="c", sandbox="s", tool="shell_run", kind="argv", isolation="launcher", argv=("true",), wall_ms=1000, cpu_s=1,
    output=1000, result=100, jail=Jail(read=(), write=(), execute=(), seccomp="", open_files=64, file_size=1),
)  # fmt: skip
READY = guest.pack_json(guest.READY, 0, guest.Ready(landlock=7, scoped=True, uid=1))
STARTED = guest.pack_json(guest.STARTED, 1, guest.Started(walls={"a": True}))


class Lying:
    """The other end of a control connection, and what gate made of it."""

    def __init__(self) -> None:
        self.lost: list[str] = []
        self.stdin: list[int] = []

    async def open(self, first: bytes = READY) -> Sandbox:
        ours, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        self.peer.send(first)
        self.sandbox = await Sandbox.open("s", ours.detach(), self.lost.append, concurrent=4, start_s=2)
        return self.sandbox

    def start(self, credit: int = 100) -> GuestCall:
        return self.sandbox.start(PLAN, b"", credit, self.stdin.append)

    async def says(self, *frames: bytes) -> None:
        self.peer.send(b"".join(frames))
        for _ in range(5):
            await asyncio.sleep(0.005)


def lying(work: Callable[[Lying], Awaitable[None]]) -> None:
    async def run() -> None:
        liar = Lying()
        try:
            await work(liar)
        finally:
            liar.sandbox.close("the test is over")
            liar.peer.close()
            await asyncio.sleep(0)

    asyncio.run(run())


def ended(**fields: Any) -> bytes:
    return guest.pack(guest.ENDED, 1, msgspec.json.encode({"kind": "exited", "exit_code": 0, **fields}))


def test_an_honest_call_is_started_and_ends() -> None:
    async def work(liar: Lying) -> None:
        await liar.open()
        call = liar.start()
        await liar.says(
            STARTED, guest.pack(guest.STDOUT, 1, b"ab"), guest.pack(guest.STDOUT, 1, b"c"),
            guest.pack(guest.STDERR, 1, b"d"), guest.pack(guest.RESULT, 1, b"1"), ended(),
        )  # fmt: skip
        assert [await call.next() for _ in range(4)] == [
            Piece("stdout", b"abc"), Piece("stderr", b"d"), Value(b"1"), Outcome(kind="exited", exit_code=0)
        ]  # fmt: skip
        assert call.walls == ("a",)
        assert not liar.lost

    lying(work)


LIES = {
    "more output than credit": (STARTED, guest.pack(guest.STDOUT, 1, b"x" * 101)),
    "an end without a start": (ended(),),
    "an end that says it never was": (STARTED, ended(kind="unavailable")),
    "an end only gate can know of": (STARTED, ended(kind="interrupted")),
    "a fault after the start": (STARTED, guest.pack_json(guest.FAULT, 1, guest.Fault(code="arguments", reason="r"))),
    "a second start": (STARTED, STARTED),
    "a wall that does not hold": (guest.pack_json(guest.STARTED, 1, guest.Started(walls={"a": False})),),
    "walls without end": (guest.pack_json(guest.STARTED, 1, guest.Started(walls={f"w{i}": True for i in range(999)})),),
    "a wall of many letters": (guest.pack_json(guest.STARTED, 1, guest.Started(walls={"w" * 60_000: True})),),
    "stdin credit for nothing": (STARTED, guest.pack(guest.STDIN_CREDIT, 1, b"\0\0\0\0")),
    "stdin credit without end": (STARTED, guest.pack(guest.STDIN_CREDIT, 1, b"\xff\xff\xff\xff")),
    "malformed JSON": (guest.pack(guest.STARTED, 1, b"{"),),
    "a type of no frame": (guest.pack(0x77, 1),),
}


@pytest.mark.parametrize("name", sorted(LIES))
def test_a_lie_ends_the_sandbox_and_its_calls_as_interrupted(name: str) -> None:
    async def work(liar: Lying) -> None:
        await liar.open()
        call = liar.start()
        await liar.says(*LIES[name])
        assert liar.lost
        while not isinstance(event := await call.next(), Outcome):
            pass
        assert event.kind == "interrupted"
        with pytest.raises(RunnerError):
            liar.start()

    lying(work)


def test_whatever_numbers_and_words_it_reports_they_fit_into_an_entry() -> None:
    async def work(liar: Lying) -> None:
        await liar.open()
        call = liar.start()
        usage = {"wall_us": 2**62, "cpu_user_us": -5, "source": "cgroup" * 2000}
        await liar.says(STARTED, ended(exit_code=2**60, signal=-1, reason="\x1b[2J" * 2000, usage=usage))
        outcome = await call.next()
        assert isinstance(outcome, Outcome)
        assert (outcome.exit_code, outcome.signal) == (None, None)
        assert outcome.usage == Usage(wall_us=2**53 - 1)
        assert "\x1b" not in outcome.reason
        assert (
            len(entries.encode(entries.Outcome(time="t", call="c", task="t", outcome="exited", reason=outcome.reason)))
            < 5000
        )
        assert not liar.lost

    lying(work)


def test_a_fault_is_a_call_that_never_existed() -> None:
    async def work(liar: Lying) -> None:
        await liar.open()
        call = liar.start()
        await liar.says(guest.pack_json(guest.FAULT, 1, guest.Fault(code="arguments", reason="no such program: x")))
        assert await call.next() == Outcome(kind="unavailable", reason="no such program: x")
        assert call.fault is not None
        assert call.fault.code == "arguments"

    lying(work)


def test_single_bytes_are_joined_while_nobody_takes_them() -> None:
    async def work(liar: Lying) -> None:
        await liar.open()
        call = liar.start(credit=1000)
        await liar.says(STARTED, *(guest.pack(guest.STDOUT, 1, b"x") for _ in range(1000)))
        assert len(call._events) == 1
        assert await call.next() == Piece("stdout", b"x" * 1000)

    lying(work)


def test_stdin_goes_round_within_its_window() -> None:
    async def work(liar: Lying) -> None:
        await liar.open()
        call = liar.start()
        window = (256 << 10).to_bytes(4, "big")
        await liar.says(STARTED, guest.pack(guest.STDIN_CREDIT, 1, window))
        call.stdin(b"x" * 1000, eof=False)
        await liar.says(guest.pack(guest.STDIN_CREDIT, 1, (1000).to_bytes(4, "big")))
        assert liar.stdin == [256 << 10, 1000]
        assert not liar.lost
        await liar.says(guest.pack(guest.STDIN_CREDIT, 1, b"\0\0\0\1"))
        assert liar.lost

    lying(work)


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (guest.pack_json(guest.READY, 0, guest.Ready(landlock=0, scoped=False, uid=1)), "host"),
        (guest.pack_json(guest.FAULT, 0, guest.Fault(code="host", reason="broken")), "unavailable"),
        (b"\0\0\0\0\x77\0\0\0\0", "unavailable"),
    ],
)
def test_a_sandbox_that_is_not_ready_is_not_opened(first: bytes, code: str) -> None:
    async def run() -> None:
        liar = Lying()
        with pytest.raises(RunnerError) as refused:
            await liar.open(first)
        assert refused.value.refused.code == code
        liar.peer.close()
        await asyncio.sleep(0.01)

    asyncio.run(run())


def test_walls_are_spelled_out_once_and_named_from_then_on() -> None:
    def plan(size: int) -> CallPlan:
        return msgspec.structs.replace(PLAN, jail=msgspec.structs.replace(PLAN.jail, file_size=size))

    async def work(liar: Lying) -> None:
        sandbox = await liar.open()
        known: dict[str, dict[str, Any]] = {}  # as the guest keeps them

        async def walls(size: int) -> tuple[bool, dict[str, Any]]:
            sandbox.start(plan(size), b"bpf", 1, print)
            await asyncio.sleep(0)
            jail = json.loads(liar.peer.recv(1 << 16)[9:])["jail"]
            if isinstance(jail, str):
                return False, known[jail]
            assert jail["key"] not in known
            known[jail["key"]] = jail
            if len(known) > guest.MAX_JAILS:
                del known[next(iter(known))]
            return True, jail

        for spelled_out in (True, False):
            for size in range(guest.MAX_JAILS):
                spelled, jail = await walls(size)
                assert (spelled, jail["file_size"], jail["seccomp"]) == (spelled_out, size, "YnBm")
        assert (await walls(guest.MAX_JAILS))[0]
        assert [(await walls(size))[0] for size in (1, 0, 2, 1)] == [False, True, False, True]

    lying(work)


def test_a_call_names_the_walls_of_the_launcher_that_was_built_ahead_of_it() -> None:
    async def work(liar: Lying) -> None:
        sandbox = await liar.open()
        sandbox.prepare(Usual(PLAN.jail, PLAN.cpu_s, PLAN.isolation), b"bpf")
        await asyncio.sleep(0)
        said = liar.peer.recv(1 << 16)
        ahead = json.loads(said[9:])
        assert (said[4], ahead["isolation"], ahead["cpu_s"]) == (guest.PREPARE, "launcher", 1)
        sandbox.start(PLAN, b"bpf", 1, print)
        await asyncio.sleep(0)
        start = json.loads(liar.peer.recv(1 << 16)[9:])
        assert {name: start[name] for name in ("isolation", "cpu_s")} == {"isolation": "launcher", "cpu_s": 1}
        assert start["jail"] == ahead["jail"]["key"]

    lying(work)


def test_two_tools_of_one_code_are_two() -> None:
    """A copy of a tool's folder with another manifest: another tool, whose code lies in a folder of its own."""
    about: dict[str, Any] = {"description": "", "consequence": "low", "profile": "p", "kind": "python"}
    tool = Manifest(id="t", digest="d", code_digest="c", parameters={}, **about)
    copy = msgspec.structs.replace(tool, id="copy", digest="e")

    async def work(liar: Lying) -> None:
        sandbox = await liar.open()
        waiting = [asyncio.ensure_future(sandbox.provide(each)) for each in (tool, copy, tool)]
        await asyncio.sleep(0.01)
        sent = liar.peer.recv(1 << 16)
        assert (sent.count(b'"tool":"t"'), sent.count(b'"tool":"copy"')) == (1, 1)
        for number, each in enumerate((tool, copy)):
            assert not sandbox.holds(each)
            await liar.says(guest.pack_json(guest.CODE_READY, 0, guest.CodeReady(tool=each.id, digest="c")))
            await asyncio.wait_for(waiting[number], 5)
            assert sandbox.holds(each)
        await asyncio.wait_for(waiting[2], 5)

    lying(work)


def test_code_for_a_sandbox_that_is_gone_is_refused_and_not_waited_for() -> None:
    tool = Manifest(
        id="t",
        description="",
        consequence="low",
        profile="p",
        kind="python",
        digest="d",
        code_digest="c",
        parameters={},
    )

    async def work(liar: Lying) -> None:
        sandbox = await liar.open()
        waiting = asyncio.ensure_future(sandbox.provide(tool))
        await asyncio.sleep(0.01)
        assert not sandbox.holds(tool)
        sandbox.close("gone")
        with pytest.raises(RunnerError):
            await waiting
        other = msgspec.structs.replace(tool, code_digest="never seen")
        with pytest.raises(RunnerError):
            await asyncio.wait_for(sandbox.provide(other), 1)

    lying(work)


@settings(max_examples=60, deadline=None)
@given(
    some.lists(some.tuples(some.sampled_from(["stdout", "stderr"]), some.integers(1, 9000)), max_size=12),
    some.lists(some.integers(1, 20_000), min_size=1, max_size=5),
)
def test_pieces_are_as_long_as_is_asked_for_and_nothing_is_lost(wrote: list[tuple[str, int]], asked: list[int]) -> None:
    async def work(liar: Lying) -> None:
        await liar.open()
        call = liar.start(credit=1 << 20)
        sent = [(name, bytes([number % 251]) * size) for number, (name, size) in enumerate(wrote)]
        kinds = {"stdout": guest.STDOUT, "stderr": guest.STDERR}
        await liar.says(STARTED, *(guest.pack(kinds[name], 1, data) for name, data in sent), ended())
        got: list[tuple[str, bytes]] = []
        for most in itertools.cycle(asked):
            event = await call.next(0, most)
            if isinstance(event, Outcome):
                break
            assert isinstance(event, Piece)
            assert 0 < len(event.data) <= most
            got.append((event.stream, event.data))

        def runs(pieces: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
            """One after the other of the same stream are one: in the order in which they were written."""
            grouped = itertools.groupby(pieces, key=lambda piece: piece[0])
            return [(name, b"".join(data for _, data in group)) for name, group in grouped]

        assert runs(got) == runs(sent)

    lying(work)


def test_others_have_their_turn_while_a_call_writes_without_end() -> None:
    async def work(liar: Lying) -> None:
        await liar.open()
        call = liar.start(credit=1 << 20)
        await liar.says(STARTED, *(guest.pack(guest.STDOUT, 1, b"x" * 6_000) for _ in range(10)))
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        for _ in range(5):
            await call.next(0, 12_000)
        assert turns >= 4
        task.cancel()

    lying(work)
