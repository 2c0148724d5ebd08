"""Promises of retention, on a real daemon: what is pruned is gone and accounted for, what is held stays."""

from __future__ import annotations

import io
import json
import secrets
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import docker as sdk
import pytest
from house import Daemon

from runner.client import CallError
from runner.errors import EXIT_REFUSED, RunnerError
from runner.evidence.content import ContentReader
from runner.ledger import entry as entries
from runner.wire import admin

SECRET = "the-words-of-a-customer"
FAR = "2099-01-01T00:00:00.000000Z"


def trace(daemon: Daemon, *words: str, state: bool = False) -> subprocess.CompletedProcess[str]:
    where = ["--state", str(daemon.state)] if state else []
    socket = [] if state and words[0] != "release" else ["--socket", str(daemon.place / "run/admin.sock")]
    return subprocess.run(
        [daemon.python, "-m", "runner", "trace", *words, *where, *socket], capture_output=True, text=True
    )


def kept(daemon: Daemon, call: str) -> list[bool]:
    """Whether arguments, plan and output of a call are there."""
    begun, ended = daemon.call(call), daemon.outcome(call)
    reader = ContentReader(daemon.state / "content")
    try:
        named = [begun.arguments, begun.plan.plan, ended.stdout]
        return [reader.get(content.digest, 0) is not None for content in named]
    finally:
        reader.close()


def holding(folder: Path, text: bytes) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and text in path.read_bytes()]


def test_content_goes_and_the_record_stays(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    made: dict[str, list[str]] = {}
    for task in ("old", "case"):
        with daemon.connect(task=task) as runner:
            made[task] = [runner.call("shell_run", {"argv": ["/bin/echo", f"{SECRET}-{task}"]}).call for _ in range(3)]
            big = runner.call("shell_run", {"argv": ["/bin/sh", "-c", f"yes {SECRET}-{task} | head -c 200000"]})
            made[task].append(big.call)
    assert holding(daemon.state / "content", SECRET.encode())
    assert trace(daemon, "hold", "case-1", "--task", "case", "--why", "counsel").returncode == 0
    refused = trace(daemon, "prune", "--before", FAR, "--yes")
    assert refused.returncode == EXIT_REFUSED, "no reason was given"
    dry = json.loads(trace(daemon, "prune", "--before", FAR, "--json").stdout)
    assert dry == {
        "pruned": False, "pieces": 12, "bytes": dry["bytes"], "held": 12, "more": False, "position": None, "images": [],
    }  # fmt: skip
    assert all(all(kept(daemon, call)) for calls in made.values() for call in calls)

    done = json.loads(trace(daemon, "prune", "--before", FAR, "--yes", "--why", "plan 7", "--json").stdout)
    assert (done["pieces"], done["bytes"], done["held"]) == (12, dry["bytes"], 12)
    assert not any(any(kept(daemon, call)) for call in made["old"])
    assert all(all(kept(daemon, call)) for call in made["case"])
    assert not holding(daemon.state / "content", f"{SECRET}-old".encode())
    assert not holding(daemon.state / "ledger", f"{SECRET}-old".encode())
    assert holding(daemon.state, f"{SECRET}-case".encode())
    (tombstone,) = daemon.entries(entries.Prune)
    assert (tombstone.why, tombstone.by, tombstone.pieces) == ("plan 7", 0, 12)

    verified = trace(daemon, "verify", state=True)
    assert verified.returncode == 0, verified.stdout
    assert f"position {done['position']}: 12 pieces" in verified.stdout
    said = f"pruned, as entry {done['position']} says"
    assert said in trace(daemon, "show", made["old"][0], "--content", state=True).stdout
    with daemon.connect(task="later") as runner:  # life goes on
        later = runner.call("shell_run", {"argv": ["/bin/echo", "x"]}).call
    assert all(kept(daemon, later))

    assert "case-1" in trace(daemon, "holds", state=True).stdout
    assert trace(daemon, "release", "case-2", "--why", "x", state=True).returncode == EXIT_REFUSED
    assert trace(daemon, "release", "case-1", "--why", "settled", state=True).returncode == 0
    again = json.loads(trace(daemon, "prune", "--task", "case", "--yes", "--why", "plan 8", "--json").stdout)
    assert (again["pieces"], again["held"]) == (12, 0)
    daemon.stop()
    assert not holding(daemon.state / "content", SECRET.encode())
    assert trace(daemon, "verify", state=True).returncode == 0
    daemon.start()
    assert daemon.verifies()


def test_no_copy_of_it_stays_in_gate(make_daemon: Callable[..., Daemon]) -> None:
    """Not in state.db, where results wait for whoever asks again, nor the plain digest of arguments, which makes
    them guessable, nor in memory: for a detached call, and for one with an idempotency key. The twin is on hold."""
    daemon = make_daemon()
    asked: dict[str, dict[str, Any]] = {}
    handed = {task: daemon.credentials(task=task) for task in ("old", "case")}
    for task in handed:
        with daemon.connect(handed[task]) as runner:
            runner.call("shell_run", {"argv": ["touch", f"{SECRET}-{task}"]})
            listed = runner.call("fs_list", {"path": "."}, idempotency_key="k").call
            detached = runner.call("fs_list", {"path": "."}, detach=True).call
            said = runner.call("shell_run", {"argv": ["echo", f"{SECRET}-{task}"]}, detach=True).call
            assert runner.result(said).stdout == f"{SECRET}-{task}\n".encode()
            assert f"{SECRET}-{task}" in str(runner.result(detached).value)
            asked[task] = {"listed": listed, "detached": detached, "said": said}
    names = [path.name for path in daemon.state.rglob("state.db*")]
    assert set(names) & set(holding(daemon.state, f"{SECRET}-old".encode()))
    assert digests_of(daemon) == {asked["old"]["listed"], asked["case"]["listed"]}
    assert trace(daemon, "hold", "case-1", "--task", "case", "--why", "counsel").returncode == 0
    assert daemon.ask(admin.Prune(why="plan 7", before=FAR)).pieces

    def let_go() -> None:
        assert not holding(daemon.state, f"{SECRET}-old".encode())
        assert digests_of(daemon) == {asked["case"]["listed"]}
        with daemon.connect(handed["old"]) as runner:
            for again in (
                lambda: runner.call("fs_list", {"path": "."}, idempotency_key="k"),
                lambda: runner.result(asked["old"]["detached"], output=False),
            ):
                with pytest.raises(CallError, match="not kept any more") as refused:
                    again()
                assert refused.value.code == "unknown_call"
            with pytest.raises(CallError, match="no output of call"):
                runner.result(asked["old"]["said"])
            assert runner.result(asked["old"]["said"], output=False).ok  # how it ended is in the record, and stays
        with daemon.connect(handed["case"]) as runner:
            again_there = runner.call("fs_list", {"path": "."}, idempotency_key="k")
            assert (again_there.replayed, again_there.call) == (True, asked["case"]["listed"])
            assert f"{SECRET}-case" in str(again_there.value)
            assert f"{SECRET}-case" in str(runner.result(asked["case"]["detached"]).value)

    let_go()
    daemon.stop()
    assert not holding(daemon.state, f"{SECRET}-old".encode())
    # As a crash between the removal and this would leave it.
    left = json.dumps(f"{SECRET}-old").encode()
    in_state(daemon, "UPDATE kept SET value = ?, arguments = 'x' WHERE call = ?", left, asked["old"]["listed"])
    assert holding(daemon.state, f"{SECRET}-old".encode())
    daemon.start()
    assert not holding(daemon.state, f"{SECRET}-old".encode())
    assert digests_of(daemon) == {asked["case"]["listed"]}


def digests_of(daemon: Daemon) -> set[str]:
    """The calls of which gate keeps the plain digest of their arguments."""
    return {call for (call,) in in_state(daemon, "SELECT call FROM kept WHERE arguments != ''")}


def in_state(daemon: Daemon, statement: str, *values: object) -> list[tuple[Any, ...]]:
    (path,) = daemon.state.rglob("state.db")
    database = sqlite3.connect(path, isolation_level=None)
    try:
        return database.execute(statement, values).fetchall()
    finally:
        database.close()


@pytest.mark.parametrize(
    "wrong",
    [
        admin.Prune(why="x"),
        admin.Prune(why="", before=FAR),
        admin.Prune(why="x" * 501, before=FAR),
        admin.Prune(why="x", before="2026-01-01"),
        admin.Prune(why="x", larger=-1),
        admin.Prune(why="x", tasks=("a b",)),
        admin.Prune(why="x", tools=tuple(f"t{number}" for number in range(65))),
        admin.Hold(name="", why="x"),
        admin.Hold(name="case", why=""),
        admin.Release(name="case", why=""),
    ],
)
def test_words_of_the_wrong_form_change_nothing(daemon: Daemon, wrong: Any) -> None:
    before = daemon.ask(admin.Status()).ledger_size
    with pytest.raises(RunnerError) as refused:
        daemon.ask(wrong)
    assert refused.value.refused.code == "arguments"
    assert daemon.ask(admin.Status()).ledger_size == before
    assert isinstance(daemon.ask(admin.Prune(before=FAR, dry=True)), admin.Pruned)  # the twin


def test_a_recorder_killed_while_it_prunes_goes_on_at_the_next_start(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    with daemon.connect(task="old") as runner:
        done = [runner.call("shell_run", {"argv": ["/bin/echo", f"{SECRET}-{n}"]}) for n in range(150)]
        runner.until_durable(done[-1].position)  # what is not yet may be lost with the recorder
    calls, lists = [each.call for each in done], daemon.state / "content/pruned"

    def ask() -> None:
        with suppress(RunnerError, ConnectionError):  # nobody will answer
            daemon.ask(admin.Prune(why="plan 7", before=FAR))

    recorder = daemon.child("recorder")
    asking = threading.Thread(target=ask)
    asking.start()
    # A list lies there before its entry does, and is renamed when all of it is gone: the kill falls before the entry,
    # in between, or, on a quick machine, after both. Looked for without a pause, or it would always be after both.
    deadline = time.monotonic() + 60
    while not (lists.is_dir() and any(lists.iterdir())):
        assert time.monotonic() < deadline, daemon.said()
    recorder.send_signal(signal.SIGKILL)
    asking.join()
    daemon.ended()
    assert daemon.verifies()
    daemon.start()
    assert daemon.verifies()
    found = daemon.entries(entries.Prune)
    assert not [path for path in lists.iterdir() if path.suffix]
    assert not any(any(kept(daemon, call)) for call in calls) if found else all(all(kept(daemon, c)) for c in calls)
    daemon.ask(admin.Prune(why="plan 7", before=FAR))
    assert not any(any(kept(daemon, call)) for call in calls)
    daemon.stop()
    assert not holding(daemon.state / "content", SECRET.encode())


# --- archives of images --------------------------------------------------------------------------------------


@pytest.fixture
def other_image(tool_image: str) -> Iterator[str]:
    """An image of another id that holds the same."""
    with closing(sdk.APIClient(version="auto")) as api:
        recipe = io.BytesIO(f"FROM {tool_image}\nLABEL other={secrets.token_hex(8)}\n".encode())
        said = list(api.build(fileobj=recipe, rm=True, decode=True))
        (image,) = [line["aux"]["ID"] for line in said if "ID" in line.get("aux", {})]
        yield image
        api.remove_image(image, noprune=False)


def serve(daemon: Daemon, image: str, task: str) -> str:
    """Start with this image, and call once; the call."""
    path = daemon.place / "runner.toml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(f'image = "{image}"\n' if line.startswith("image = ") else line for line in lines))
    daemon.start()
    with daemon.connect(task=task) as runner:
        return runner.call("shell_run", {"argv": ["/bin/echo", "x"]}).call


@pytest.mark.timeout(400)  # six starts, and three images saved whole
def test_an_archive_that_no_kept_call_names_goes_with_a_tombstone(
    make_daemon: Callable[..., Daemon], tool_image: str, other_image: str
) -> None:
    daemon = make_daemon(start=False, config="archive = true\n")
    folder = daemon.state / "engine/images"

    def archived(number: int) -> list[Any]:
        daemon.wait(lambda: len(daemon.entries(entries.Image)) >= number)
        return daemon.entries(entries.Image)

    serve(daemon, other_image, "old")
    (first,) = archived(1)
    daemon.stop()
    serve(daemon, tool_image, "new")
    _, second = archived(2)
    daemon.stop()
    serve(daemon, tool_image, "newer")  # nothing new to say of it, so nothing is
    assert (first.image, second.image) == (other_image, tool_image)
    old, new = (folder / f"{each.archive.digest}.tar" for each in (first, second))

    def plan(*words: str) -> Any:
        return json.loads(trace(daemon, "prune", *words, "--json").stdout)

    # An image stays while a call that is kept names it, while a hold is on such a call, and while it is in use.
    assert plan("--task", "new")["images"] == []
    assert trace(daemon, "hold", "case-1", "--task", "old", "--why", "counsel").returncode == 0
    held = plan("--before", FAR, "--yes", "--why", "plan 7")
    assert (held["held"], held["images"]) == (3, [])
    assert trace(daemon, "release", "case-1", "--why", "settled", state=True).returncode == 0
    gone = {"image": other_image, "archive": first.archive.digest, "bytes": first.archive.size, "position": None}
    assert plan("--task", "old")["images"] == [gone]
    assert f"would remove the archive of image {other_image[:19]}, {first.archive.size} bytes" in trace(
        daemon, "prune", "--task", "old"
    ).stdout  # fmt: skip
    assert old.exists()
    assert daemon.entries(entries.PruneImage) == []

    # The archive will not go: the tombstone is written, and the daemon dies before the removal.
    aside = daemon.place / "aside.tar"
    old.rename(aside)
    old.mkdir()
    stuck = trace(daemon, "prune", "--task", "old", "--yes", "--why", "plan 8")
    assert "the archive cannot be removed" in stuck.stderr, stuck
    (tombstone,) = daemon.entries(entries.PruneImage)
    assert (tombstone.image, tombstone.archive.digest) == (other_image, first.archive.digest)
    assert (tombstone.why, tombstone.by) == ("plan 8", 0)
    daemon.stop(signal.SIGKILL)
    old.rmdir()
    aside.rename(old)
    shown = trace(daemon, "verify", state=True)
    assert shown.returncode == 0, shown.stdout
    assert "it is still here" in shown.stdout

    # The next start does what the tombstone says, and no more; also by the ledger alone.
    for left in daemon.state.glob("state.db*"):
        left.unlink()
    daemon.start()
    assert not old.exists()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [f"{second.image.removeprefix('sha256:')}.json", new.name, f"{second.archive.digest}.cdx.json"]
    )
    shown = trace(daemon, "verify", state=True)
    assert shown.returncode == 0, shown.stdout
    assert f"the archive of image {other_image}" in shown.stdout
    assert "still here" not in shown.stdout
    acts = subprocess.run(
        [daemon.python, "-m", "runner", "admin", "log", "--state", str(daemon.state)], capture_output=True, text=True
    )
    assert f"archive {first.archive.digest[:16]}" in acts.stdout
    assert daemon.entries(entries.PruneImage) == [tombstone]
    assert len(archived(2)) == 2

    # An image that comes back is archived anew, and is an entry again; another start of it is none.
    daemon.stop()
    serve(daemon, other_image, "again")
    third = archived(3)[2]
    assert third.image == other_image
    daemon.stop()
    serve(daemon, other_image, "and-again")
    again = folder / f"{third.archive.digest}.tar"
    assert again.exists()
    assert daemon.verifies()
    daemon.stop()
    assert len(daemon.entries(entries.Image)) == 3
    # Nobody may take an archive away in silence.
    again.unlink()
    assert not daemon.verifies()
