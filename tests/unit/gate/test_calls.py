"""Credit, cancelling, keeping and following of calls, with replies of the real kind on a connection of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from runner.errors import RunnerError, refusal
from runner.gate.calls import Calls, Finished, Kept, Running
from runner.gate.idempotency import answer, follow, replay
from runner.gate.reply import RequestReply
from runner.model import Chunk, Outcome, Receipt
from runner.wire import agent

WINDOW = 1000


class Wire:
    """A connection's outer side: what it would send, and how much room each number has."""

    def __init__(self, room: int = WINDOW) -> None:
        self.sent: list[Any] = []
        self.rooms: dict[int, int] = {1: room, 2: room}
        self.writable, self.closed = True, False
        self.owed: list[int] = []
        self.held: list[Any] = []

    def room(self, number: int) -> int:
        return self.rooms[number]

    def owes(self, position: int) -> None:
        self.owed.append(position)

    def flush(self) -> None:
        self.sent += self.held
        self.held.clear()

    def send(self, message: Any, *, more: bool = False) -> None:
        self.held.append(message)
        if not more:
            self.flush()
        if isinstance(message, agent.Output):
            self.rooms[message.number] -= len(message.data)
            assert self.rooms[message.number] >= 0

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.sent if isinstance(message, kind)]

    def output(self) -> bytes:
        return b"".join(message.data for message in self.of(agent.Output))


class Guest:
    """What a call in a sandbox is told."""

    def __init__(self) -> None:
        self.credits: list[int] = []
        self.fed: list[tuple[bytes, bool]] = []
        self.cancelled: list[str] = []

    def credit(self, count: int) -> None:
        self.credits.append(count)

    def stdin(self, data: bytes, *, eof: bool) -> None:
        self.fed.append((data, eof))

    def cancel(self, kind: Any) -> None:
        self.cancelled.append(kind)


def running(
    reply: RequestReply, *, client: int = WINDOW, detach: bool = False, call: str = "c", task: str = "t"
) -> Running:
    made = Running(call, task, "tool", reply=reply, window=WINDOW, client=client, detach=detach, sync=False)
    reply.steers(made)
    return made


def finished(**fields: Any) -> Finished:
    return Finished(
        Outcome(kind="exited", exit_code=0), Receipt(call="c", digest="d", position=7), fields.get("value"), 0, 0
    )


def chunk(data: bytes, offset: int = 0) -> Chunk:
    return Chunk(stream="stdout", offset=offset, data=data)


def on_loop(work: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await asyncio.wait_for(work(), 10)

    asyncio.run(run())


# --- credit ---


def test_a_direct_call_gets_no_more_credit_than_its_client_has_room_for() -> None:
    async def work() -> None:
        wire, guest = Wire(room=100), Guest()
        reply = RequestReply(wire, 1)
        call = running(reply, client=100)
        assert call.first_credit() == 100
        call.attach(guest)
        call.received(100)
        assert await call.deliver(chunk(b"x" * 100)) == 100
        assert guest.credits == []
        wire.rooms[1] += 60
        reply.forward(agent.Credit(number=1, bytes=60))
        assert guest.credits == [50]  # quarters of what its client has room for at most …
        call.received(50)
        assert await call.deliver(chunk(b"x" * 50, 100)) == 50
        assert guest.credits == [50, 10]  # … and the rest once there is no other

    on_loop(work)


@given(some.lists(some.integers(1, 400), max_size=40))
def test_credit_of_an_honest_client_never_drifts(sizes: list[int]) -> None:
    """Whatever the sizes of pieces and grants, what the guest may send is what the client has room for."""

    async def work() -> None:
        wire, guest = Wire(), Guest()
        reply = RequestReply(wire, 1)
        call = running(reply)
        held = call.first_credit()
        call.attach(guest)
        offset = unread = 0
        for size in sizes:
            count = min(size, held)
            if count:
                call.received(count)
                assert await call.deliver(chunk(b"x" * count, offset)) == count
                offset, unread = offset + count, unread + count
            grant = min(unread, size)
            if grant:
                wire.rooms[1] += grant
                unread -= grant
                reply.forward(agent.Credit(number=1, bytes=grant))
            held = WINDOW - offset + sum(guest.credits)
            assert 0 <= held <= wire.rooms[1]
        assert wire.output() == b"x" * offset

    on_loop(work)


def test_the_last_output_leaves_with_the_result() -> None:
    async def work() -> None:
        wire = Wire()
        reply = RequestReply(wire, 1)
        call = running(reply)
        assert await call.deliver(chunk(b"first")) == 5
        assert await call.deliver(chunk(b"last", 5), last=True) == 4
        assert wire.output() == b"first"
        await reply.result("c", finished())
        assert [type(message) for message in wire.sent] == [agent.Output, agent.Output, agent.Result]

    on_loop(work)


def test_last_output_that_needs_credit_first_does_not_wait_for_the_result() -> None:
    async def work() -> None:
        wire = Wire(room=3)
        reply = RequestReply(wire, 1)
        delivering = asyncio.create_task(running(reply).deliver(chunk(b"abcd"), last=True))
        while not wire.output():
            await asyncio.sleep(0)
        assert wire.output() == b"abc"  # no credit would come for what the client does not have
        wire.rooms[1] += 1
        reply.forward(agent.Credit(number=1, bytes=1))
        assert await delivering == 4

    on_loop(work)


def test_a_call_that_is_ended_gets_credit_for_what_is_dropped() -> None:
    """At its cap a call's further output goes nowhere; without credit for it the guest could never report the end."""

    async def work() -> None:
        call, guest = running(RequestReply(Wire(), 1)), Guest()
        call.first_credit()
        call.attach(guest)
        call.received(WINDOW)
        assert guest.credits == []  # nobody delivered it, nobody made room for it
        call.cancel("output_capped", "too much")
        for _ in range(5):
            call.received(WINDOW)
        assert sum(guest.credits) == 6 * WINDOW

    on_loop(work)


def test_credit_stdin_and_cancel_that_come_before_the_call_exists_are_kept() -> None:
    async def work() -> None:
        wire, guest = Wire(room=0), Guest()
        reply = RequestReply(wire, 1)
        reply.forward(agent.Credit(number=1, bytes=50))
        reply.forward(agent.Stdin(number=1, eof=True))
        call = running(reply, client=0)
        assert call.first_credit() == 50
        call.attach(guest)
        assert guest.fed == [(b"", True)]
        early = RequestReply(wire, 2)
        early.forward(agent.Cancel(number=2))
        assert running(early).cancelled == ("cancelled", "the client cancelled it")

    on_loop(work)


def test_a_client_that_left_before_its_call_began_cancels_it() -> None:
    async def work() -> None:
        wire = Wire()
        reply = RequestReply(wire, 1)
        wire.closed = True
        reply.abandon()
        assert running(reply).cancelled is not None

    on_loop(work)


# --- cancelling ---


def test_output_does_not_wait_for_a_client_once_the_call_is_cancelled() -> None:
    async def work() -> None:
        wire, guest = Wire(room=10), Guest()
        reply = RequestReply(wire, 1)
        call = running(reply, client=10)
        call.first_credit()
        call.attach(guest)
        waiting = asyncio.ensure_future(call.deliver(chunk(b"x" * 30)))
        await asyncio.sleep(0)
        assert not waiting.done()
        call.cancel("killed", "a reason")
        assert await waiting == 10
        assert guest.cancelled == ["killed"]
        assert sum(guest.credits) > 0  # so that the guest can report the end behind its last bytes
        wire.rooms[1] = 100
        assert await call.deliver(chunk(b"y", 30)) == 0  # no gap: nothing after what was dropped
        call.cancel("cancelled", "too late")
        assert call.cancelled == ("killed", "a reason")

    on_loop(work)


def test_a_client_whose_socket_is_full_is_not_waited_for_either() -> None:
    async def work() -> None:
        wire = Wire()
        wire.writable = False
        reply = RequestReply(wire, 1)
        call = running(reply)
        waiting = asyncio.ensure_future(call.deliver(chunk(b"x")))
        await asyncio.sleep(0)
        assert not waiting.done()
        call.hasten()
        assert await waiting == 0
        wire.writable = True
        other = RequestReply(wire, 2)
        wire.writable = False
        sending = asyncio.ensure_future(other.output(chunk(b"z")))
        await asyncio.sleep(0)
        wire.writable = True
        other.wake()
        assert await sending == 1

    on_loop(work)


def test_a_cancel_ends_the_wait_for_a_sandbox() -> None:
    async def work() -> None:
        call = running(RequestReply(Wire(), 1))
        waiting = asyncio.ensure_future(asyncio.sleep(60))
        call.starts(waiting)
        call.cancel("cancelled", "r")
        with pytest.raises(asyncio.CancelledError):
            await waiting
        late = asyncio.ensure_future(asyncio.sleep(60))
        call.starts(late)
        with pytest.raises(asyncio.CancelledError):
            await late

    on_loop(work)


def test_losing_the_client_cancels_a_direct_call_and_closes_the_stdin_of_a_detached_one() -> None:
    async def work() -> None:
        wire, guest = Wire(), Guest()
        direct, detached = RequestReply(wire, 1), RequestReply(wire, 2)
        one, two = running(direct), running(detached, detach=True)
        two.attach(guest)
        wire.closed = True
        direct.abandon()
        detached.abandon()
        assert one.cancelled == ("cancelled", "the client went away")
        assert two.cancelled is None
        assert guest.fed == [(b"", True)]

    on_loop(work)


# --- following ---


@given(
    some.lists(some.tuples(some.sampled_from(["stdout", "stderr"]), some.binary(min_size=1, max_size=9))), some.data()
)
def test_followers_see_every_byte_of_both_streams_whenever_they_look(pieces: list[Any], data: Any) -> None:
    kept, place, seen = Kept(), (0, 0), {"stdout": b"", "stderr": b""}
    whole = {"stdout": b"", "stderr": b""}
    for stream, piece in pieces:
        kept.add(Chunk(stream=stream, offset=len(whole[stream]), data=piece))
        whole[stream] += piece
        if data.draw(some.booleans()):
            found, place = kept.read(place)
            if found is not None:
                assert found.offset == len(seen[found.stream])
                seen[found.stream] += found.data
    while True:
        found, place = kept.read(place)
        if found is None:
            break
        assert found.offset == len(seen[found.stream])
        seen[found.stream] += found.data
    assert seen == whole


def test_single_bytes_are_kept_joined() -> None:
    kept = Kept()
    for offset in range(10_000):
        kept.add(chunk(b"x", offset))
    assert len(kept._segments) == 1
    assert kept.size == 10_000


def test_a_follower_reads_from_its_offset_and_gets_the_result() -> None:
    async def work() -> None:
        call = running(RequestReply(Wire(), 1), detach=True)
        wire, delivered = Wire(), list[str]()
        reply = RequestReply(wire, 2)
        following = asyncio.ensure_future(follow(call, reply, delivered.append, stdout=2, stderr=0))
        await call.deliver(chunk(b"abc"))
        await asyncio.sleep(0)
        await call.deliver(chunk(b"de", 3))
        await asyncio.sleep(0)
        call.finish(finished())
        await following
        assert wire.output() == b"cde"
        assert wire.of(agent.Output)[0].offset == 2
        assert len(wire.of(agent.Result)) == 1
        assert set(delivered) == {"c"}

    on_loop(work)


@pytest.mark.parametrize("ask", [follow, answer])
def test_a_follower_that_left_is_not_kept_until_the_call_ends(ask: Any) -> None:
    async def work() -> None:
        call = running(RequestReply(Wire(), 1), detach=True)
        wire = Wire()
        reply = RequestReply(wire, 2)
        reply.follows(call)
        more = {"stdout": 0, "stderr": 0} if ask is follow else {}
        following = asyncio.ensure_future(ask(call, reply, lambda _: None, **more))
        await asyncio.sleep(0)
        wire.closed = True
        reply.abandon()
        await following
        assert call.cancelled is None
        assert not wire.sent

    on_loop(work)


def test_cancel_under_an_attach_ends_the_call_and_under_a_question_does_not() -> None:
    async def work() -> None:
        call = running(RequestReply(Wire(), 1), detach=True)
        asking, attached = RequestReply(Wire(), 2), RequestReply(Wire(), 2)
        asking.follows(call, cancels=False)
        asking.forward(agent.Cancel(number=2))
        assert call.cancelled is None
        attached.follows(call)
        attached.forward(agent.Credit(number=2, bytes=5))  # its own room, not the call's
        attached.forward(agent.Cancel(number=2))
        assert call.cancelled == ("cancelled", "the client cancelled it")

    on_loop(work)


def test_a_repeated_call_waits_for_the_first_and_shares_its_end_or_its_refusal() -> None:
    async def work() -> None:
        for end in (finished(value={"a": 1}), refusal("denied", "no")):
            call = running(RequestReply(Wire(), 1))
            wire, delivered = Wire(), list[str]()
            repeating = asyncio.ensure_future(replay(call, RequestReply(wire, 2), delivered.append))
            await asyncio.sleep(0)
            call.finish(end)
            if isinstance(end, Finished):
                await repeating
                assert wire.of(agent.Accepted)[0].replayed
                assert wire.of(agent.Result)[0].value == {"a": 1}
                assert delivered == ["c"]  # a structured result is output too
            else:
                with pytest.raises(RunnerError):
                    await repeating

    on_loop(work)


# --- keeping ---


def calls(clock: list[float], **bounds: Any) -> Calls:
    return Calls(**{"keep_calls": 3, "keep_bytes": 100, "keep_s": 10.0} | bounds, clock=lambda: clock[0])


async def ended(held: Calls, name: str, task: str, size: int) -> None:
    call = running(RequestReply(Wire(), 1), detach=True, call=name, task=task)
    held.add(call)
    await call.deliver(chunk(b"x" * size))
    held.over(call, keep=True)
    call.finish(finished())


def test_kept_calls_are_bounded_per_task_in_bytes_and_in_time() -> None:
    async def work() -> None:
        clock = [0.0]
        held = calls(clock)
        await ended(held, "mine", "quiet", 10)
        for number in range(9):
            await ended(held, f"g{number}", "greedy", 30)
        assert held.find("quiet", "mine") is not None  # another task's flood does not push it out
        assert [n for n in range(9) if held.find("greedy", f"g{n}")] == [6, 7, 8]
        assert held.find("greedy", "mine") is None
        await ended(held, "big", "greedy", 60)
        assert held.find("quiet", "mine") is not None
        assert held._size.total() <= 100
        clock[0] = 11.0
        held.prune()
        assert held.find("quiet", "mine") is None
        assert not held._kept
        assert not held._size

    on_loop(work)


def test_a_task_that_ended_is_forgotten_and_refused_calls_are_not_kept() -> None:
    async def work() -> None:
        held = calls([0.0])
        await ended(held, "a", "t", 1)
        await ended(held, "b", "u", 1)
        held.forget_task("t")
        assert held.find("t", "a") is None
        assert held.find("u", "b") is not None
        call = running(RequestReply(Wire(), 1), detach=True, call="r")
        call.key = "k"
        held.add(call)
        assert held.by_key("t", "tool", "k") is call
        assert held.by_key("u", "tool", "k") is None
        assert held.of_task("t") == [call]
        held.over(call, keep=False)
        assert held.find("t", "r") is None
        assert held.begun == 3

    on_loop(work)


def test_room_for_detached_output_is_taken_when_it_is_planned() -> None:
    async def work() -> None:
        held = calls([0.0])
        call = running(RequestReply(Wire(), 1), detach=True)
        held.add(call)
        assert held.room("t", 100)
        call.output = 40
        assert not held.room("t", 11)  # it would hold more than it leaves
        assert held.room("t", 10)
        assert not held.room("u", 61)
        assert held.room("u", 60)  # whoever has nothing yet may take what is left
        held.over(call, keep=False)
        assert held.room("t", 100)

    on_loop(work)
