"""The protocol's tables, exhaustively; credit; bounds on what a client claims; liveness."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.config import Limits
from runner.errors import RunnerError, refusal, refuse
from runner.model import Outcome, Peer
from runner.wire import agent
from runner.wire.liveness import Liveness
from runner.wire.numbers import MAX_NUMBER, MAX_RANGES, Numbers
from runner.wire.session import Authenticate, Event, Forward, Leave, Nothing, Send, Serve, Session
from runner.wire.states import (
    CONTROLS,
    NUMBER_RECEIVES,
    NUMBER_SENDS,
    RECEIVES,
    REQUESTS,
    SENDS,
    EndOfStream,
    Phase,
    State,
)

LIMITS = Limits(calls_per_connection=3, output_window=1000)
PEER = Peer(uid=1000, pid=7)
HELLO = agent.Hello(version=1, chain=("token",), proof="proof")
WELCOME = agent.Welcome(
    session="s", task="t", agent="a", tools_digest="d", max_frame=1, call_window=1, calls=1, heartbeat_ms=1
)
CLIENT = get_args(agent.FromClient)
DAEMON = get_args(agent.FromDaemon)


def outcome(number: int) -> agent.Result:
    return agent.Result(
        number=number, call="c", outcome=Outcome(kind="exited", exit_code=0), receipt="r", position=1, durable=True
    )


def example(kind: type, number: int) -> Any:
    """A message of a kind, about that number."""
    ready: dict[type, Any] = {
        agent.Hello: HELLO,
        agent.Welcome: WELCOME,
        agent.Challenge: agent.Challenge(versions=(1,), nonce="n", audience="a", time=0),
        agent.Result: outcome(number),
        agent.Refused: agent.Refused(number=number, refusal=refusal("denied", "no")),
        agent.Tools: agent.Tools(number=number, digest="d", tools=()),
        agent.Closing: agent.Closing(refusal=refusal("protocol", "no")),
        agent.Call: agent.Call(number=number, proof="p", stdin=True, window=100),
        agent.Attach: agent.Attach(number=number, call="c"),
        agent.GetResult: agent.GetResult(number=number, call="c"),
        agent.Accepted: agent.Accepted(number=number, call="c"),
        agent.Output: agent.Output(number=number, stream="stdout", offset=0, data=b""),
        agent.Credit: agent.Credit(number=number, bytes=1),
        agent.StdinCredit: agent.StdinCredit(number=number, bytes=1),
        agent.TaskEnded: agent.TaskEnded(number=number),
        agent.ToolsChanged: agent.ToolsChanged(digest="d"),
        agent.Durable: agent.Durable(position=1),
    }
    if kind in ready:
        return ready[kind]
    return kind(number=number) if "number" in kind.__struct_fields__ else kind()


def session_in(state: State, limits: Limits = LIMITS) -> Session:
    session = Session(limits, (1,))
    if state is State.CHALLENGED:
        return session
    session.receive(HELLO)
    if state is State.PROVING:
        return session
    session.sent(WELCOME)
    if state is State.DRAINING:
        session.sent(agent.Bye())
    elif state is State.LEAVING:
        session.receive(agent.Bye())
    elif state is State.CLOSED:
        session.receive_eof()
    assert session.state is state
    return session


def with_number(phase: Phase, *, ask: type = agent.Call) -> Session:
    """An open session where number 5 is in that phase."""
    session = session_in(State.OPEN)
    if phase is Phase.FRESH:
        return session
    session.receive(example(agent.ListTools if phase is Phase.ASKED else ask, 5))
    if phase in (Phase.RUNNING, Phase.FINISHED):
        session.sent(agent.Accepted(number=5, call="c"))
    if phase is Phase.FINISHED:
        session.sent(outcome(5))
    assert session.phase(5) is phase
    return session


# --- the tables, every cell ---


def test_the_tables_name_every_state_and_only_messages() -> None:
    assert RECEIVES.keys() == SENDS.keys() == set(State)
    assert NUMBER_RECEIVES.keys() == NUMBER_SENDS.keys() == set(Phase)
    received = {kind for row in RECEIVES.values() for kind in row} - {EndOfStream}
    sent = {kind for row in SENDS.values() for kind in row} | {agent.Challenge}
    assert received == set(CLIENT)
    assert sent == set(DAEMON)
    numbered = {kind for kind in CLIENT if "number" in kind.__struct_fields__}
    assert numbered == {*REQUESTS, *CONTROLS}
    assert numbered == {kind for row in NUMBER_RECEIVES.values() for kind in row}
    assert all(EndOfStream in row for row in RECEIVES.values())


@pytest.mark.parametrize(("state", "kind"), list(itertools.product(State, CLIENT)))
def test_every_message_in_every_state(state: State, kind: type) -> None:
    session = session_in(state)
    number = 5
    if kind in CONTROLS:
        number = 6
        if state in (State.OPEN, State.DRAINING, State.LEAVING):  # a finished number, so that only the state decides
            session = session_in(State.OPEN)
            session.receive(agent.ListTools(number=6))
            session.sent(agent.Tools(number=6, digest="d", tools=()))
            if state is State.DRAINING:
                session.sent(agent.Bye())
            elif state is State.LEAVING:
                session.receive(agent.Bye())
    message = example(kind, number)
    if kind in RECEIVES[state]:
        assert isinstance(session.receive(message), Event)
        assert session.state is RECEIVES[state][kind]
    else:
        with pytest.raises(RunnerError, match="not valid while") as caught:
            session.receive(message)
        assert caught.value.refused.code == "protocol"
        assert session.state is state
        assert isinstance(session.close(caught.value), agent.Closing)
        assert session.state is State.CLOSED


@pytest.mark.parametrize(("state", "kind"), list(itertools.product(State, DAEMON)))
def test_the_daemon_keeps_the_tables_too(state: State, kind: type) -> None:
    session = session_in(state)
    if kind not in SENDS[state]:
        with pytest.raises(RunnerError) as caught:
            session.sent(example(kind, 0))
        assert caught.value.refused.code == "internal"
    elif "number" not in kind.__struct_fields__:
        session.sent(example(kind, 0))
        assert session.state is SENDS[state][kind]


@pytest.mark.parametrize(("phase", "kind"), list(itertools.product(Phase, (*REQUESTS, *CONTROLS))))
def test_every_message_about_a_number_in_every_phase(phase: Phase, kind: type) -> None:
    session = with_number(phase)
    message = example(kind, 5)
    if kind in NUMBER_RECEIVES[phase]:
        event = session.receive(message)
        assert session.phase(5) is NUMBER_RECEIVES[phase][kind]
        expected = {Phase.FRESH: Serve, Phase.FINISHED: Nothing}.get(phase, Forward)
        assert isinstance(event, expected)
    else:
        with pytest.raises(RunnerError) as caught:
            session.receive(message)
        assert caught.value.refused.code == "protocol"


@pytest.mark.parametrize(
    ("phase", "kind"), list(itertools.product(Phase, [kind for kind in DAEMON if "number" in kind.__struct_fields__]))
)
def test_every_answer_in_every_phase(phase: Phase, kind: type) -> None:
    session = with_number(phase)
    if kind in NUMBER_SENDS[phase]:
        session.sent(example(kind, 5))
        assert session.phase(5) is NUMBER_SENDS[phase][kind]
    else:
        with pytest.raises(RunnerError) as caught:
            session.sent(example(kind, 5))
        assert caught.value.refused.code == "internal"


@pytest.mark.parametrize("state", State)
def test_the_end_of_the_stream_is_the_end_everywhere(state: State) -> None:
    session = session_in(state)
    assert session.receive_eof() == Leave(at_once=True, reason="the client closed the connection")
    assert session.state is State.CLOSED
    with pytest.raises(RunnerError):
        session.receive(agent.Ping())


# --- what tables cannot say ---


def test_events_say_what_to_do() -> None:
    session = Session(LIMITS, (1,))
    assert session.receive(HELLO) == Authenticate(HELLO)
    session.sent(WELCOME)
    assert session.receive(agent.Ping(token=9)) == Send(agent.Pong(token=9))
    assert session.receive(agent.Pong()) == Nothing()
    assert session.receive(agent.ListTools(number=1)) == Serve(agent.ListTools(number=1))
    assert session.receive(agent.Bye(reason="done")) == Leave(at_once=False, reason="done")
    assert not session.done
    session.sent(agent.Tools(number=1, digest="d", tools=()))
    assert session.done


def test_a_request_too_many_is_refused_alone() -> None:
    session = session_in(State.OPEN)
    for number in (1, 2, 3):
        session.receive(agent.Call(number=number, proof="p"))
    event = session.receive(agent.Call(number=4, proof="p"))
    assert isinstance(event, Send)
    assert isinstance(event.message, agent.Refused)
    assert (event.message.number, event.message.refusal.code) == (4, "busy")
    assert session.phase(4) is Phase.FINISHED
    assert session.in_flight == 3
    session.sent(agent.Refused(number=2, refusal=refusal("denied", "no")))
    assert isinstance(session.receive(agent.Call(number=5, proof="p")), Serve)


def test_a_request_that_crosses_the_daemons_bye_is_refused_alone() -> None:
    session = session_in(State.DRAINING)
    event = session.receive(agent.Call(number=1, proof="p"))
    assert isinstance(event, Send)
    assert isinstance(event.message, agent.Refused)
    assert event.message.refusal.code == "unavailable"
    assert session.done


@pytest.mark.parametrize("number", [0, -1, MAX_NUMBER + 1, 2**63])
@pytest.mark.parametrize("kind", [*REQUESTS, *CONTROLS])
def test_numbers_have_bounds(number: int, kind: type) -> None:
    with pytest.raises(RunnerError, match="within 1"):
        session_in(State.OPEN).receive(example(kind, number))


def test_the_largest_number_works() -> None:
    session = session_in(State.OPEN)
    assert isinstance(session.receive(agent.ListTools(number=MAX_NUMBER)), Serve)
    assert isinstance(session.receive(agent.ListTools(number=1)), Serve)


def test_stdin_is_credited() -> None:
    session = with_number(Phase.RUNNING)
    session.sent(agent.StdinCredit(number=5, bytes=10))
    assert isinstance(session.receive(agent.Stdin(number=5, data=b"x" * 6)), Forward)
    session.sent(agent.StdinCredit(number=5, bytes=1))
    assert isinstance(session.receive(agent.Stdin(number=5, data=b"x" * 5)), Forward)
    with pytest.raises(RunnerError) as caught:
        session.receive(agent.Stdin(number=5, data=b"x"))
    assert caught.value.refused.code == "flow"


def test_stdin_ends_once_and_only_where_it_was_announced() -> None:
    session = with_number(Phase.RUNNING)
    session.receive(agent.Stdin(number=5, eof=True))
    with pytest.raises(RunnerError, match="no stdin, or no more"):
        session.receive(agent.Stdin(number=5))
    session.receive(agent.Call(number=6, proof="p"))
    with pytest.raises(RunnerError, match="no stdin, or no more"):
        session.receive(agent.Stdin(number=6, eof=True))


def test_output_is_credited_and_never_above_the_window() -> None:
    session = with_number(Phase.RUNNING)
    assert session.room(5) == 100
    session.sent(agent.Output(number=5, stream="stdout", offset=0, data=b"x" * 60))
    assert session.room(5) == 40
    with pytest.raises(RunnerError) as caught:
        session.sent(agent.Output(number=5, stream="stderr", offset=0, data=b"x" * 41))
    assert caught.value.refused.code == "internal"
    session.receive(agent.Credit(number=5, bytes=60))
    assert session.room(5) == 100
    session.receive(agent.Credit(number=5, bytes=2**62))
    assert session.room(5) == LIMITS.output_window
    assert session.room(77) == 0


@pytest.mark.parametrize(
    "message",
    [agent.Credit(number=5, bytes=0), agent.Credit(number=5, bytes=-3), agent.Call(number=6, proof="p", window=-1)],
)
def test_credit_is_positive(message: Any) -> None:
    with pytest.raises(RunnerError) as caught:
        with_number(Phase.RUNNING).receive(message)
    assert caught.value.refused.code == "protocol"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"version": 2}, "version"),
        ({"version": 0}, "version"),
        ({"chain": ()}, "unauthenticated"),
        ({"chain": ("t",) * (LIMITS.delegation_depth + 2)}, "unauthenticated"),
        ({"chain": ("x" * (LIMITS.token_bytes + 1),)}, "unauthenticated"),
        ({"chain": ("x" * LIMITS.token_bytes,) * 5}, "unauthenticated"),
        ({"proof": "x" * (LIMITS.token_bytes + 1)}, "unauthenticated"),
        ({"session": agent.SessionFacts(original_request="é" * 2049)}, "protocol"),
        ({"session": agent.SessionFacts(model="x" * 129)}, "protocol"),
        ({"session": agent.SessionFacts(client="x" * 129)}, "protocol"),
    ],
)
def test_a_hello_has_bounds(change: dict[str, Any], code: str) -> None:
    with pytest.raises(RunnerError) as caught:
        Session(LIMITS, (1,)).receive(msgspec.structs.replace(HELLO, **change))
    assert caught.value.refused.code == code


def test_a_hello_at_its_bounds_passes() -> None:
    facts = agent.SessionFacts(original_request="é" * 2048, model="m" * 128)
    full = agent.Hello(version=1, chain=("x" * 20_000,) * (LIMITS.delegation_depth + 1), proof="p", session=facts)
    assert isinstance(Session(LIMITS, (1,)).receive(full), Authenticate)


# --- ToolCall ---

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


def test_a_call_becomes_a_tool_call() -> None:
    call = agent.Call(
        number=5,
        proof="p",
        stdin=True,
        window=10**9,
        deadline_ms=1000,
        traceparent=TRACE,
        intent="é" * 2048,
        because=("c-1",) * 64,
        retry_of="c_2",
        idempotency_key="a.b:c-d_e",
        detach=True,
        sync=True,
    )
    made = Session(LIMITS, (1,)).to_tool_call(call, PEER)
    assert made.window == LIMITS.output_window
    assert made.peer == PEER
    for name in call.__struct_fields__:
        if name != "window":
            assert getattr(made, name) == getattr(call, name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("proof", "x" * 600_000),
        ("intent", "é" * 2049),
        ("intent", "x" * 5000),
        ("because", ("c",) * 65),
        ("because", ("c", "../x")),
        ("because", ("c" * 65,)),
        ("retry_of", "a b"),
        ("retry_of", "c\n"),
        ("idempotency_key", "k" * 129),
        ("idempotency_key", "k\x00"),
        ("idempotency_key", "schlüssel"),
        ("idempotency_key", "k\n"),
        ("traceparent", "nonsense"),
        ("traceparent", TRACE.upper()),
        ("traceparent", "00-" + "0" * 32 + "-" + "b" * 16 + "-01"),
        ("traceparent", "00-" + "a" * 32 + "-" + "0" * 16 + "-01"),
        ("traceparent", "ff" + TRACE[2:]),
        ("traceparent", TRACE + "\n"),
        ("deadline_ms", -1),
        ("deadline_ms", 86_400_001),
    ],
)
def test_a_malformed_field_is_refused_by_name(field: str, value: Any) -> None:
    call = msgspec.structs.replace(agent.Call(number=5, proof="p"), **{field: value})
    with pytest.raises(RunnerError) as caught:
        Session(LIMITS, (1,)).to_tool_call(call, PEER)
    assert caught.value.refused.code == "arguments"
    assert caught.value.refused.field.startswith(field)
    assert caught.value.refused.allowed


# --- random walks ---


@given(st.lists(st.tuples(st.sampled_from([*CLIENT, *DAEMON]), st.integers(0, 4)), max_size=60))
def test_no_order_of_messages_breaks_it(steps: list[tuple[type, int]]) -> None:
    session = Session(LIMITS, (1,))
    for kind, number in steps:
        message = example(kind, number)
        try:
            if kind in CLIENT and not (kind in DAEMON and number % 2):
                session.receive(message)
            else:
                session.sent(message)
        except RunnerError as error:
            assert error.refused.code in ("protocol", "internal", "flow")  # noqa: PT017 - success is fine too
        assert 0 <= session.in_flight <= LIMITS.calls_per_connection
        assert all(session.room(known) <= LIMITS.output_window for known in range(5))


# --- numbers ---


@given(st.lists(st.integers(1, 60)))
def test_numbers_are_a_set(added: list[int]) -> None:
    numbers, known = Numbers(), set()
    for number in added:
        assert (number in numbers) is (number in known)
        if number not in known:
            numbers.add(number)
            known.add(number)
    assert {number for number in range(62) if number in numbers} == known


def test_numbers_stay_small_and_gaps_have_a_bound() -> None:
    numbers = Numbers()
    for number in range(1, 100_001):
        numbers.add(number)
    assert len(numbers._first) == 1
    numbers = Numbers()
    for number in range(MAX_RANGES):
        numbers.add(2 * number + 1)
    with pytest.raises(RunnerError, match="gaps"):
        numbers.add(MAX_NUMBER)
    numbers.add(2)  # closes a gap
    numbers.add(MAX_NUMBER)
    assert MAX_NUMBER in numbers


# --- liveness ---


def liveness() -> Liveness:
    return Liveness(Limits(hello_timeout_s=10, heartbeat_s=30), 100.0)


def test_a_hello_has_its_time() -> None:
    alive = liveness()
    assert alive.due(109.9, State.CHALLENGED) is None
    assert isinstance(alive.due(110.0, State.CHALLENGED), RunnerError)
    assert alive.due(115.0, State.PROVING) is None


def test_silence_is_asked_about_once_and_then_left() -> None:
    alive = liveness()
    assert alive.due(129.9, State.OPEN) is None
    assert alive.due(130.0, State.OPEN) == agent.Ping()
    assert alive.due(131.0, State.OPEN) is None
    assert isinstance(alive.due(160.0, State.LEAVING), RunnerError)
    alive.heard(159.0, 1, 0)
    assert alive.due(160.0, State.OPEN) is None
    assert alive.due(189.0, State.OPEN) == agent.Ping()


def test_a_frame_that_has_begun_must_end() -> None:
    alive = liveness()
    for second in range(9):
        alive.heard(101.0 + second, 0, 3 + second)
        assert alive.due(101.0 + second, State.OPEN) is None
    assert isinstance(alive.due(111.0, State.OPEN), RunnerError)
    alive.heard(111.0, 1, 2)  # it ended, and the next began
    assert alive.due(120.9, State.OPEN) is None
    assert isinstance(alive.due(121.0, State.OPEN), RunnerError)
    alive.heard(121.0, 1, 0)
    assert alive.due(131.0, State.OPEN) is None


def test_a_defect_in_the_daemon_is_not_told_as_the_clients() -> None:
    session = session_in(State.OPEN)
    closing = session.close(refuse("internal", "the daemon has a defect"))
    assert closing.refusal.code == "internal"
