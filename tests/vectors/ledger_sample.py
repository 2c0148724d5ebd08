"""Entries and ledgers for tests of the record, made without a daemon.

Run as a program it is a recorder under load: `python ledger_sample.py STATE` appends and commits until it is killed,
and prints the durable size after every commit.
"""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runner.ledger import entry as entries
from runner.ledger.note import Signer
from runner.recorder.keys import load_or_create_key
from runner.recorder.log import Recorder

ORIGIN = "toolrunner/test"
NOW = "2026-01-02T03:04:05.000006Z"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
VKEY = Signer(ORIGIN, KEY).verifier.text
SALT = b"s" * 16


def kept(data: bytes) -> entries.Content:
    """What an entry says of salted content."""
    return entries.Content(digest=hashlib.sha256(SALT + data).hexdigest(), size=len(data))


def start() -> entries.Start:
    config = b"[daemon]"
    return entries.Start(
        time=NOW,
        instance="test",
        version="0",
        host="h",
        boot="b",
        config=entries.Content(digest=hashlib.sha256(config).hexdigest(), size=len(config)),
        catalogue="",
        policy="",
        previous="none",
    )


def stop() -> entries.Stop:
    return entries.Stop(time=NOW, instance="test", reason="asked", clean=True)


def call(
    number: int,
    *,
    effect: str = "allow",
    planned: bool = True,
    task: str = "t",
    tool: str = "fs_read",
    intent: str = "",
) -> entries.Call:
    """The `number`-th call; ids grow with numbers."""
    plan = entries.Planned(
        sandbox="s", isolation="launcher", profile="readonly", plan=kept(b"plan"), wall_ms=1000, output=1000
    )
    return entries.Call(
        time=NOW,
        call=f"c{number:08d}",
        who=entries.Who(agent="a", owner="o", task=task, session="s"),
        peer=entries.PeerProcess(uid=1000, pid=2),
        chain=("root",),
        leaf="0" * 64,
        proof="p",
        tool=tool,
        arguments=kept(f"arguments {number}".encode()),
        decision=entries.Decided(effect=effect, reason="because"),
        plan=plan if planned else None,
        intent=intent,
    )


def outcome(number: int, *, task: str = "t", kind: str = "exited") -> entries.Outcome:
    return entries.Outcome(
        time=NOW,
        call=f"c{number:08d}",
        task=task,
        outcome=kind,
        exit_code=0,
        used=entries.Used(wall_us=1500),
        stdout=entries.Stream(digest=kept(b"out").digest, size=3, delivered=3),
    )


def egress(number: int, request: int = 1, *, effect: str = "allow", task: str = "t", **more: object) -> entries.Egress:
    """A request of the `number`-th call."""
    fields: dict[str, object] = {"protocol": "https", "host": "api.test", "port": 443, "visibility": "full"}
    fields |= {"time": NOW, "call": f"c{number:08d}", "task": task, "request": request, **more}
    return entries.Egress(**fields, decision=entries.Decided(effect=effect, reason="because"))  # type: ignore[arg-type]


def egress_end(number: int, request: int = 1, *, task: str = "t", **more: object) -> entries.EgressEnd:
    """Its end."""
    fields = {
        "time": NOW,
        "call": f"c{number:08d}",
        "task": task,
        "request": request,
        "address": "198.51.100.9",
        **more,
    }
    return entries.EgressEnd(**fields)  # type: ignore[arg-type]


def alert(number: int, *, task: str = "t", **more: object) -> entries.Alert:
    """Something critical in the `number`-th call."""
    fields = {"time": NOW, "call": f"c{number:08d}", "task": task, "what": "credential key", "where": "body", **more}
    return entries.Alert(**fields)  # type: ignore[arg-type]


def open_recorder(state: Path, key: Ed25519PrivateKey = KEY, clock: Callable[[], float] = lambda: 0.0) -> Recorder:
    """A recorder whose checkpoint file follows every commit (its clock jumps), unless `clock` says otherwise."""
    ticks = itertools.count(step=10)
    return Recorder.open(state, ORIGIN, key, lambda: NOW, clock if clock() else lambda: float(next(ticks)))


def add(recorder: Recorder, *added: entries.AnyEntry) -> None:
    """Append entries, with the content they name: that of every third call ahead of them, as large content comes."""
    for entry in added:
        contents: tuple[bytes, ...] = ()
        if isinstance(entry, entries.Call):
            contents = (SALT + f"arguments {int(entry.call[1:])}".encode(), SALT + b"plan")
        elif isinstance(entry, entries.Outcome):
            contents = (SALT + b"out",)
        elif isinstance(entry, entries.Start):
            recorder.store(b"[daemon]")
        if isinstance(entry, entries.Call | entries.Outcome) and int(entry.call[1:]) % 3 == 0:
            for data in contents:
                recorder.store(data)
            contents = ()
        recorder.append(entries.encode(entry), contents)


def pairs(first: int, count: int) -> Iterator[entries.AnyEntry]:
    """`count` calls, each followed by its outcome."""
    for number in range(first, first + count):
        yield call(number)
        yield outcome(number)


def write(state: Path, calls: int, group: int = 5, *, stopped: bool = True) -> int:
    """A whole ledger: start, calls in groups, and a stop unless it shall look like a crash. Returns its size."""
    recorder = open_recorder(state)
    add(recorder, start())
    for first in range(0, calls, group):
        add(recorder, *pairs(first, min(group, calls - first)))
        recorder.commit()
        recorder.tidy()
    if stopped:
        add(recorder, stop())
        recorder.close()
    else:
        recorder.commit()
        recorder._release()
    return recorder.size


def _under_load(state: Path) -> None:
    recorder = Recorder.open(state, ORIGIN, load_or_create_key(state / "ledger", ORIGIN), lambda: NOW)
    number = int(recorder.newest_call[1:] or -1) + 1 if recorder.newest_call else 0
    recorder.seal_interrupted(NOW)
    print(recorder.commit(), flush=True)
    for group in itertools.cycle((1, 7, 64, 3)):
        add(recorder, *pairs(number, group))
        add(recorder, call(number + group))  # a call that is open when the kill comes
        size = recorder.commit()
        print(size, flush=True)
        recorder.tidy()
        add(recorder, outcome(number + group))
        number += group + 1


if __name__ == "__main__":
    _under_load(Path(sys.argv[1]))
