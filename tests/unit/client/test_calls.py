"""Calls, streams, stdin, credit, cancel and loss, async and sync, against the simulated daemon."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

from runner.client import (
    ConstraintViolated,
    Interrupted,
    InvalidArguments,
    NotGranted,
    ProtocolError,
    Runner,
    SessionFacts,
    TaskEnded,
    ToolFailed,
    Unauthenticated,
    Unavailable,
    UnknownCall,
    connect,
    connect_async,
)
from runner.config import Limits
from runner.errors import refuse
from runner.wire import agent


def run(daemon: Any, act: Any) -> Any:
    """Connect, act, close: within a test's patience."""

    async def main() -> Any:
        async with asyncio.timeout(20), connect_async(credentials=daemon.credentials) as runner:
            return await act(runner)

    return asyncio.run(main())


def count(daemon: Any, kind: type) -> int:
    """How many messages of a kind the last client sent."""
    return [type(message) for message in daemon.log].count(kind)


# --- the handshake ---


def test_a_connection_knows_whose_it_is(daemon: Any) -> None:
    facts = SessionFacts(original_request="count the lines", model="m", client="test")
    with connect(credentials=daemon.credentials, session=facts) as runner:
        assert (runner.task, runner.agent, runner.session) == ("sim-task", "sim-agent", "sim-session")
        assert runner.tools_digest == "d1"
    hello = daemon.log[0]
    assert hello.session == facts
    assert hello.version == 1


def test_time_is_the_daemons(daemon: Any) -> None:
    daemon.skew = 1800.0  # far outside what a proof's age may be
    with connect(credentials=daemon.credentials) as runner:
        assert runner.call("echo", {"text": "in time"}).text == "in time"


def test_a_token_that_is_not_accepted(daemon: Any) -> None:
    daemon.skew = -7200.0  # there the token is from the future
    with pytest.raises(Unauthenticated) as caught:
        connect(credentials=daemon.credentials)
    assert caught.value.code == "unauthenticated"
    daemon.errors.clear()


def test_no_common_version(daemon: Any) -> None:
    daemon.versions = (7, 9)
    with pytest.raises(ProtocolError, match="speaks version 1, the daemon 7, 9") as caught:
        connect(credentials=daemon.credentials)
    assert caught.value.code == "version"


def test_no_daemon_there(tmp_path: Any, daemon: Any) -> None:
    with pytest.raises(Unavailable, match="no daemon answers") as caught:
        connect(socket=tmp_path / "nothing.sock", credentials=daemon.credentials)
    assert "runner serve" in caught.value.next_step


def test_the_socket_may_be_connected_already(daemon: Any) -> None:
    with socket.socket(socket.AF_UNIX) as ours:
        ours.connect(daemon.socket)
        ours.setblocking(False)
        with connect(socket=ours.dup(), credentials=daemon.credentials) as runner:
            assert runner.call("echo", {"text": "x"}).ok


# --- calls ---


def test_a_call_returns_what_the_tool_wrote(daemon: Any) -> None:
    with connect(credentials=daemon.credentials) as runner:
        done = runner.call("echo", {"text": "héllo", "error": "careful", "value": {"n": 1}})
    assert (done.text, done.stderr, done.value, done.ok) == ("héllo", b"careful", {"n": 1}, True)
    assert (done.receipt, done.position, done.durable) == ("ab" * 32, 7, False)


def test_a_failing_tool_is_a_result_unless_checked(daemon: Any) -> None:
    with connect(credentials=daemon.credentials) as runner:
        done = runner.call("echo", {"exit": 3, "error": "no such file"})
        assert not done.ok
        assert done.outcome.exit_code == 3
        with pytest.raises(ToolFailed, match="echo: exited with status 3: no such file") as caught:
            runner.call("echo", {"exit": 3, "error": "no such file"}, check=True)
    assert caught.value.result.outcome.exit_code == 3


def test_what_a_call_carries_reaches_the_daemon(daemon: Any) -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    with connect(credentials=daemon.credentials) as runner:
        runner.call(
            "echo",
            deadline=1.5,
            intent="look",
            because=["c1", "c2"],
            retry_of="c0",
            idempotency_key="k1",
            sync=True,
            traceparent=trace,
        )
        with pytest.raises(TypeError, match="deadlin"):
            runner.call("echo", deadlin=3)  # a misspelt option must not be dropped
        with pytest.raises(InvalidArguments, match="positive"):
            runner.call("echo", deadline=0)
    sent = next(message for message in daemon.log if isinstance(message, agent.Call))
    assert (sent.deadline_ms, sent.intent, sent.because, sent.retry_of) == (1500, "look", ("c1", "c2"), "c0")
    assert (sent.idempotency_key, sent.sync, sent.detach, sent.traceparent) == ("k1", True, False, trace)


def test_refusals_become_typed_exceptions(daemon: Any) -> None:
    async def narrow(call: Any) -> None:
        raise refuse("constraint", "outside", rule="token", field="path", allowed="under /workspace/src")

    daemon.tools["narrow"] = narrow
    with connect(credentials=daemon.credentials) as runner:
        with pytest.raises(NotGranted) as unknown:
            runner.call("missing")
        with pytest.raises(ConstraintViolated) as caught:
            runner.call("narrow", {"path": "/etc"})
        assert runner.call("echo", {"text": "alive"}).ok
    assert unknown.value.code == "not_granted"
    assert (caught.value.code, caught.value.field, caught.value.rule) == ("constraint", "path", "token")
    assert caught.value.allowed == "under /workspace/src"
    assert not caught.value.retryable
    assert caught.value.call.startswith("call-")


def test_arguments_without_a_json_form_are_refused_here(daemon: Any) -> None:
    with connect(credentials=daemon.credentials) as runner:
        with pytest.raises(InvalidArguments):
            runner.call("echo", {"n": float("nan")})
        with pytest.raises(InvalidArguments, match="frame of"):
            runner.call("echo", {"text": "x" * (1 << 20)})
        assert runner.call("echo", {"text": "alive"}).ok


def test_a_call_too_many_is_refused_and_no_other_harmed(sim: Any, tmp_path: Any) -> None:
    with sim.SimDaemon(tmp_path, Limits(calls_per_connection=2)) as daemon:

        async def wait(call: Any) -> None:
            call.accept()
            await call.cancelled.wait()
            call.finish(kind="cancelled")

        daemon.tools["wait"] = wait

        async def act(runner: Any) -> None:
            async with runner.stream("wait"), runner.stream("wait"):
                with pytest.raises(Unavailable) as caught:
                    await runner.call("echo")
                assert (caught.value.code, caught.value.retryable) == ("busy", True)
                assert caught.value.retry_after_ms > 0

        run(daemon, act)


# --- output and credit ---


def test_output_far_above_a_small_window_arrives_whole(sim: Any, tmp_path: Any) -> None:
    with sim.SimDaemon(tmp_path, Limits(output_window=1000)) as daemon:

        async def act(runner: Any) -> None:
            done = await runner.call("echo", {"text": "0123456789" * 33, "repeat": 100})
            assert done.stdout == b"0123456789" * 3300
            pieces = []
            async with runner.stream("echo", {"text": "0123456789" * 33, "repeat": 100}, window=7) as stream:
                async for chunk in stream:
                    assert len(chunk.data) <= 7
                    assert chunk.offset == sum(map(len, pieces))
                    pieces.append(chunk.data)
                assert (await stream.result()).ok
            assert b"".join(pieces) == done.stdout

        run(daemon, act)
        assert not daemon.errors


def test_a_slow_reader_pauses_its_own_call_only(daemon: Any) -> None:
    written = 0

    async def flood(call: Any) -> None:
        nonlocal written
        call.accept()
        for _ in range(64):
            await call.output(b"x" * 8192)
            written += 8192
        call.finish()

    daemon.tools["flood"] = flood

    async def act(runner: Any) -> None:
        async with runner.stream("flood") as slow:
            await slow.next()
            for _ in range(50):
                assert (await runner.call("echo", {"text": "quick"})).ok
            assert written <= daemon.limits.output_window + 8192
            assert len((await slow.result()).stdout) == 64 * 8192 - 8192
        assert written == 64 * 8192

    run(daemon, act)


def test_on_output_is_awaited_and_its_error_cancels_the_call(daemon: Any) -> None:
    seen: list[bytes] = []

    async def slow(chunk: Any) -> None:
        await asyncio.sleep(0)
        seen.append(chunk.data)

    def broken(chunk: Any) -> None:
        raise LookupError("mine")

    async def act(runner: Any) -> None:
        done = await runner.call("echo", {"text": "ab", "repeat": 3}, on_output=slow)
        assert b"".join(seen) == done.stdout == b"ababab"
        with pytest.raises(LookupError):
            await runner.call("wait", on_output=broken)

    async def wait(call: Any) -> None:
        call.accept()
        await call.output(b"x")
        await call.cancelled.wait()
        call.finish(kind="cancelled")

    daemon.tools["wait"] = wait
    run(daemon, act)
    daemon.until(lambda: count(daemon, agent.Cancel) == 1)


def test_a_daemon_that_ignores_credit_is_left(daemon: Any) -> None:
    async def rude(call: Any) -> None:
        call.accept()
        for _ in range(daemon.limits.output_window // 40_000 + 1):
            call.connection.raw(agent.Output(number=call.request.number, stream="stdout", offset=0, data=b"x" * 40_000))

    daemon.tools["rude"] = rude

    async def act(runner: Any) -> None:
        async with runner.stream("rude") as stream:
            daemon.until(lambda: count(daemon, agent.Call) == 1)
            await asyncio.sleep(0.05)
            with pytest.raises(Interrupted):
                await stream.result()
        assert runner.lost is not None
        assert runner.lost.code == "flow"

    run(daemon, act)


# --- stdin ---


def collecting(credit: int) -> Any:
    async def collect(call: Any) -> None:
        call.accept()
        call.credit_stdin(credit)
        got = b""
        while True:
            message = await call.input.get()
            assert len(message.data) <= credit
            got += message.data
            if message.eof:
                break
            call.credit_stdin(len(message.data))
        await call.output(got)
        call.finish()

    return collect


@pytest.mark.parametrize("credit", [3, 100_000])
def test_stdin_is_sent_within_credit(daemon: Any, credit: int) -> None:
    daemon.tools["collect"] = collecting(credit)
    data = bytes(range(256)) * (2 if credit == 3 else 2000)

    async def pieces() -> Any:
        yield data[:100]
        yield b""
        yield data[100:]

    async def act(runner: Any) -> None:
        assert (await runner.call("collect", stdin=data)).stdout == data
        assert (await runner.call("collect", stdin=pieces())).stdout == data
        assert (await runner.call("collect", stdin=iter([data[:5], data[5:]]))).stdout == data
        assert (await runner.call("collect", stdin=b"")).stdout == b""

    run(daemon, act)


def test_stdin_of_a_stream_is_written_by_hand(daemon: Any) -> None:
    daemon.tools["collect"] = collecting(10)
    with connect(credentials=daemon.credentials) as runner, runner.stream("collect", stdin=True) as stream:
        assert stream.write_stdin(b"twelve bytes")
        stream.close_stdin()
        assert stream.result().stdout == b"twelve bytes"
        assert not stream.write_stdin(b"late")


def test_a_tool_that_does_not_read_its_stdin_does_not_hold_the_call(daemon: Any) -> None:
    async def leave(call: Any) -> None:
        call.accept()
        call.credit_stdin(4)
        await call.input.get()
        call.finish(exit_code=2)

    daemon.tools["leave"] = leave
    with connect(credentials=daemon.credentials) as runner:
        assert runner.call("leave", stdin=b"x" * 1000).outcome.exit_code == 2


def test_a_failing_source_of_stdin_is_raised_and_cancels(daemon: Any) -> None:
    daemon.tools["collect"] = collecting(10)

    async def broken() -> Any:
        yield b"some"
        raise LookupError("the source broke")

    async def act(runner: Any) -> None:
        with pytest.raises(LookupError, match="the source broke"):
            await runner.call("collect", stdin=broken())
        assert (await runner.call("echo", {"text": "alive"})).ok

    run(daemon, act)
    daemon.until(lambda: count(daemon, agent.Cancel) == 1)


# --- cancel, detach, attach ---


async def waiting(call: Any) -> None:
    call.accept()
    await call.output(b"began")
    await call.cancelled.wait()
    if not call.connection.closed:
        call.finish(kind="cancelled")


def test_cancelling_the_task_cancels_the_call(daemon: Any, sim: Any) -> None:
    daemon.tools["wait"] = waiting

    async def act(runner: Any) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await runner.call("wait")
        assert (await runner.call("echo", {"text": "alive"})).ok
        while runner._connection.core.exchanges:  # the cancelled call's last answer still comes, and is the end of it
            await asyncio.sleep(0.001)

    run(daemon, act)
    daemon.until(lambda: count(daemon, agent.Bye) == 1)
    assert count(daemon, agent.Cancel) == 1


def test_a_stream_is_cancelled_by_hand_or_by_leaving(daemon: Any) -> None:
    daemon.tools["wait"] = waiting
    with connect(credentials=daemon.credentials) as runner:
        with runner.stream("wait") as stream:
            assert next(stream).data == b"began"
            stream.cancel()
            assert stream.result().outcome.kind == "cancelled"
        with runner.stream("wait"):
            pass
        assert runner.call("echo", {"text": "alive"}).ok
    daemon.until(lambda: count(daemon, agent.Bye) == 1)
    assert count(daemon, agent.Cancel) == 2


def test_a_detached_call_is_left_alone_and_found_again(daemon: Any) -> None:
    detached: dict[str, Any] = {}
    hung: set[str] = set()

    async def long(call: Any) -> None:
        detached[call.id] = call
        call.accept()
        await call.output(b"x" * 100_000)  # more than a window: nobody reads, and nobody is held up
        call.finish()

    async def attach(call: Any) -> None:
        call.id = call.arguments["call"]
        if call.id not in detached:
            raise refuse("unknown_call", "no such call")
        if isinstance(call.request, agent.Attach):
            call.accept(replayed=True)
            await call.output(b"0123456789"[call.request.stdout :])
        if call.id in hung:
            await call.cancelled.wait()
        call.finish(kind="cancelled" if call.cancelled.is_set() else "exited")

    daemon.tools |= {"long": long, "attach": attach}
    with connect(credentials=daemon.credentials) as runner:
        started = runner.call("long", detach=True)
        assert started.running
        assert not started.ok
        with pytest.raises(Unavailable, match="still runs"):
            _ = started.outcome
        assert runner.result(started.call).stdout == b"0123456789"
        assert runner.result(started.call, output=False).stdout == b""
        with runner.attach(started.call, stdout=4) as stream:
            assert b"".join(chunk.data for chunk in stream) == b"456789"
        hung.add(started.call)
        runner.cancel(started.call)
        with pytest.raises(UnknownCall, match="no such call"):
            runner.result("call-none")
    daemon.until(lambda: count(daemon, agent.Bye) == 1)
    cancels = [message for message in daemon.log if isinstance(message, agent.Cancel)]
    attaches = [message for message in daemon.log if isinstance(message, agent.Attach)]
    assert [message.number for message in cancels] == [attaches[2].number]  # only `cancel` cancels


def test_ending_the_task(daemon: Any) -> None:
    with connect(credentials=daemon.credentials) as runner:
        runner.end_task()
        with pytest.raises(Unavailable):
            runner.call("echo")


# --- heartbeat and loss ---


def test_pings_are_answered_while_a_sync_client_idles(sim: Any, tmp_path: Any) -> None:
    with sim.SimDaemon(tmp_path) as daemon, connect(credentials=daemon.credentials) as runner:
        for token in range(3):
            daemon.do(lambda token=token: daemon.connections[0].send(agent.Ping(token=token)))
        daemon.until(lambda: [m.token for m in daemon.log if isinstance(m, agent.Pong)] == [0, 1, 2])
        assert runner.lost is None


@pytest.mark.parametrize("accepted", [True, False])
def test_loss_says_whether_the_call_had_begun(daemon: Any, accepted: bool) -> None:
    async def die(call: Any) -> None:
        if accepted:
            call.accept()
            await call.output(b"x")
        call.connection.transport.close()

    daemon.tools["die"] = die
    expected = Interrupted if accepted else Unavailable
    with connect(credentials=daemon.credentials) as runner:
        with pytest.raises(expected) as caught:
            runner.call("die")
        assert not caught.value.retryable  # without a key nobody knows whether it ran
        assert bool(caught.value.call) is accepted
        with pytest.raises(Unavailable):
            runner.call("echo")
    with connect(credentials=daemon.credentials) as runner:
        with pytest.raises(expected) as caught:
            runner.call("die", idempotency_key="k")
        assert caught.value.retryable is not accepted


@pytest.mark.parametrize(("code", "kind"), [("revoked", Unauthenticated), ("protocol", Interrupted)])
def test_the_daemon_closes_and_says_why(daemon: Any, code: str, kind: type[Exception]) -> None:
    async def close(call: Any) -> None:
        call.accept()
        call.connection.raw(call.connection.session.close(refuse(code, "because I say so")))
        call.connection.transport.close()

    daemon.tools["close"] = close
    with connect(credentials=daemon.credentials) as runner:
        with pytest.raises(kind, match="because I say so"):
            runner.call("close")
        assert runner.lost is not None
        assert runner.lost.code == code


def test_the_task_ends_under_a_waiting_call(daemon: Any) -> None:
    async def end(call: Any) -> None:
        call.accept()
        call.send(agent.TaskEnded(reason="its time is up"))
        call.connection.transport.close()

    daemon.tools["end"] = end
    with connect(credentials=daemon.credentials) as runner, pytest.raises(TaskEnded, match="its time is up"):
        runner.call("end")


def test_a_daemon_that_says_bye_takes_no_new_calls_and_ends_old_ones(daemon: Any) -> None:
    daemon.tools["wait"] = waiting

    async def act(runner: Any) -> None:
        async with runner.stream("wait") as stream:
            await stream.next()
            daemon.do(lambda: daemon.connections[0].send(agent.Bye(reason="restart")))
            with pytest.raises(Unavailable, match="shutting down"):
                await runner.call("echo")
            stream.cancel()
            assert (await stream.result()).outcome.kind == "cancelled"

    run(daemon, act)


def test_durability_is_told_later(daemon: Any) -> None:
    with connect(credentials=daemon.credentials) as runner:
        done = runner.call("echo")
        assert not done.durable
        threading.Timer(0.05, lambda: daemon.do(lambda: daemon.connections[0].send(agent.Durable(position=9)))).start()
        runner.until_durable(done.position)
        runner.until_durable(9)


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\xc0",
        b"\x00\x00\x00\x0d\x82\xa4type\xa3pong\xa5",
        b"\x00\x00\x00\x0b\x81\xa4type\xa4nope",
    ],
)
def test_nonsense_from_a_daemon_is_a_protocol_error(daemon: Any, frame: bytes) -> None:
    async def act(runner: Any) -> None:
        daemon.do(lambda: daemon.connections[0].transport.write(frame + b"\x00"))
        with pytest.raises(ProtocolError):
            await runner.until_durable(99)

    run(daemon, act)


def test_closing_twice_and_calling_after_is_clean(daemon: Any) -> None:
    runner = connect(credentials=daemon.credentials)
    runner.close()
    runner.close()
    with pytest.raises(Unavailable, match="closed"):
        runner.call("echo")
    daemon.until(lambda: count(daemon, agent.Bye) == 1)


def test_threads_share_a_client(daemon: Any) -> None:
    done: list[str] = []
    with connect(credentials=daemon.credentials) as runner:

        def work(name: str) -> None:
            for _ in range(20):
                done.append(runner.call("echo", {"text": name}).text == name and name)

        threads = [threading.Thread(target=work, args=(f"t{index}",)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert sorted(done) == sorted(f"t{index}" for index in range(4) for _ in range(20))


def test_closing_the_client_frees_a_thread_that_waits(daemon: Any) -> None:
    daemon.tools["wait"] = waiting
    runner: Runner = connect(credentials=daemon.credentials)
    began, raised = threading.Event(), []

    def work() -> None:
        try:
            runner.call("wait", on_output=lambda _: began.set())
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert began.wait(10)
    runner.close()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(raised[0], Interrupted | Unavailable)
    with contextlib.suppress(Unavailable):
        runner.call("echo")


def test_an_agent_imports_no_part_of_the_daemon() -> None:
    code = "import runner.client, sys; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    loaded = set(ast.literal_eval(done.stdout))
    assert {"runner", "msgspec"} <= loaded
    assert not loaded & {
        "anyio",
        "docker",
        "cedarpy",
        "cryptography",
        "uvloop",
        "jsonschema_rs",
        "opentelemetry",
        "psutil",
        "pyseccomp",
        "typer",
        "rich",
    }
    layers = "import runner.client, sys; print(sorted(m for m in sys.modules if m.startswith('runner.')))"
    done = subprocess.run([sys.executable, "-c", layers], capture_output=True, text=True, check=True, env=environment)
    parts = {name.split(".")[1] for name in ast.literal_eval(done.stdout)}
    assert parts <= {"client", "token", "wire", "config", "model", "errors"}
