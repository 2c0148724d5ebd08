"""One task beside the others: what it may have at most, what it is told then, and that the others are served."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from house import Daemon
from soak.raw import Raw

from runner.client.errors import CallError
from runner.wire import admin, agent

pytestmark = pytest.mark.docker
ROOT = Path(__file__).parents[2]
# Each call notes its begin and its end; how many overlap is counted from the file, not from a clock.
NOTES = """
import os, time
fd = os.open("notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(fd, b"+")
time.sleep(0.1)
os.write(fd, b"-")
"""


@pytest.fixture
def with_ceilings(make_daemon: Callable[..., Daemon], tmp_path: Path) -> Callable[..., Daemon]:
    """A daemon whose default profile has these ceilings."""

    def make(**ceilings: str) -> Daemon:
        for name in ("profiles", "tools", "policies"):
            shutil.copytree(ROOT / name, tmp_path / name)
        path = tmp_path / "profiles" / "default.toml"
        lines = path.read_text().splitlines()
        for key, value in ceilings.items():
            (number,) = [index for index, line in enumerate(lines) if line.startswith(f"{key} =")]
            lines[number] = f"{key} = {value}"
        path.write_text("\n".join(lines) + "\n")
        return make_daemon(catalogue=tmp_path)

    return make


@pytest.mark.parametrize("most", [1, 3])
def test_as_many_calls_run_at_once_as_the_profile_says(most: int, with_ceilings: Callable[..., Daemon]) -> None:
    daemon = with_ceilings(concurrent_calls=str(most))
    handed = daemon.credentials()
    with daemon.connect(handed) as runner:
        client = Raw(daemon, handed).open()
        client.send(*(client.call(["python3", "-c", NOTES]) for _ in range(9)))
        for _ in range(9):
            assert client.until(agent.Result).outcome.exit_code == 0
        client.sock.close()
        notes = runner.call("fs_read", {"path": "notes"}).value["content"]
    inside = [notes[:place].count("+") - notes[:place].count("-") for place in range(len(notes) + 1)]
    assert notes.count("+") == 9
    assert max(inside) == most


def test_a_call_that_writes_faster_than_its_rate_is_paused_and_not_killed(
    with_ceilings: Callable[..., Daemon],
) -> None:
    daemon = with_ceilings(output_rate='"128KiB"')
    with daemon.connect() as runner:
        done = runner.call("shell_run", {"argv": ["head", "-c", str(1 << 20), "/dev/zero"]})
        assert done.outcome.exit_code == 0
        assert len(done.stdout) == 1 << 20
        # A window and a pipe are ahead of the pace; what is beyond them it had to wait for.
        assert done.outcome.usage.wall_us > 1_000_000
        call = runner.call("shell_run", {"argv": ["yes"]}, detach=True).call  # an endless one can be ended in its pause
        runner.cancel(call)
        assert daemon.outcome(call).outcome == "cancelled"


def test_a_task_that_queues_five_hundred_calls_is_told_so_and_others_are_served(daemon: Daemon) -> None:
    greedy = daemon.credentials()
    clients = [Raw(daemon, greedy).open() for _ in range(16)]
    refused: list[Any] = []
    with daemon.connect() as other:
        assert other.call("shell_run", {"argv": ["true"]}).ok
        for client in clients:
            client.send(*(client.call(["sleep", "300"]) for _ in range(32)))
        for client in clients[2:]:  # two connections' calls are taken, the others' are not
            refused.append(client.until(agent.Refused).refusal)
        running = daemon.ask(admin.Status()).running
        for _ in range(5):
            assert other.call("shell_run", {"argv": ["echo", "x"]}).stdout == b"x\n"
        assert daemon.ask(admin.Status()).running == running == 64  # all of them still wait: nobody waited for them
    for refusal in refused:
        assert refusal.code == "busy"
        assert "64 calls of this task run or wait ahead" in refusal.reason
        assert refusal.allowed == "64 at a time"
        assert refusal.retryable
        assert 0 < refusal.retry_after_ms <= 5000
    for client in clients:
        client.sock.close()
    daemon.wait(lambda: not daemon.ask(admin.Status()).running, 30)


def test_what_waits_is_bounded_in_bytes_too(daemon: Daemon) -> None:
    handed = daemon.credentials()
    client = Raw(daemon, handed).open()
    client.send(*(client.call(["sleep", "300", "x" * 110_000, "x" * 110_000]) for _ in range(30)))
    answers = [client.until(agent.Accepted | agent.Refused) for _ in range(30)]  # type: ignore[arg-type] # isinstance takes a union
    refused = [answer.refusal for answer in answers if isinstance(answer, agent.Refused)]
    assert 1 <= len(refused) < 25
    assert {refusal.code for refusal in refused} == {"busy"}
    assert "bytes of arguments" in refused[0].reason
    client.send(client.call(["true"]))
    assert isinstance(client.until(agent.Accepted | agent.Refused), agent.Accepted)  # type: ignore[arg-type] # the same
    client.sock.close()
    daemon.wait(lambda: not daemon.ask(admin.Status()).running, 30)


def test_a_storm_of_new_tasks_is_bounded_and_another_owner_comes_in_between(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config="maximum = 12\nper_owner = 8\ncreating = 2\n")
    storm = [daemon.credentials(owner="storm") for _ in range(10)]
    order: list[str] = []
    refused: list[CallError] = []
    asked = threading.Barrier(len(storm) + 1, timeout=60)

    def first_call(handed: bytes, name: str) -> None:
        with daemon.connect(handed) as runner:
            asked.wait()
            try:
                assert runner.call("shell_run", {"argv": ["true"]}).ok
                order.append(name)
            except CallError as error:
                refused.append(error)

    threads = [threading.Thread(target=first_call, args=(handed, "storm")) for handed in storm]
    for thread in threads:
        thread.start()
    with daemon.connect(owner="calm") as calm:
        asked.wait()
        daemon.wait(lambda: daemon.ask(admin.Status()).sandboxes >= 4, 30)  # the storm is there before it
        assert calm.call("shell_run", {"argv": ["true"]}).ok
        order.append("calm")
        for thread in threads:
            thread.join(60)
    assert order.count("storm") == 8
    assert order.index("calm") < 8
    assert [error.code for error in refused] == ["busy", "busy"]
    assert "owner storm has 8 sandboxes" in refused[0].reason
    assert refused[0].refused.retry_after_ms
    assert len(daemon.containers()) == 9
