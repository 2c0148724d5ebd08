"""What a power loss may leave (case L06): recorded writes, replayed in part, torn, and in another order.

A run of the recorder is recorded at the calls it makes. A crash point is chosen, then what the disk had by then: data
that was fsynced before it, and names whose folder was; of everything later, any part. Writes may be there in single
512-byte sectors with zeros or nothing between them, names changed or not, each independent of the other, which is
more than any real file system does (the method of ALICE, Pillai et al., OSDI 2014). Every such state must verify, and
hold all that was acknowledged before the crash. The content store, which SQLite writes, is not modelled here.
RUNNER_STATES raises the number of states, RUNNER_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runner.evidence.verify import verify
from runner.ledger import entry as entries
from runner.ledger.note import Verifier
from runner.recorder.recovery import recover

STATES = int(os.environ.get("RUNNER_STATES", "2000"))
REOPENED = 100  # one in so many is also opened, written to and stopped
SECTOR = 512


class Log:
    """The calls of one run in order: ("name", path, file), ("gone", path), ("write", file, data), ("sync", file),
    ("names", folder), ("acknowledged", size). A file is a number, so that it keeps its data under another name."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path) -> None:
        self.steps: list[tuple[Any, ...]] = []
        self._root = str(root)
        self._files: dict[int, int] = {}  # descriptor -> file
        self._folders: dict[int, str] = {}  # descriptor -> folder
        self._names: dict[str, int] = {}
        for name in ("open", "close", "write", "fsync", "fdatasync", "rename", "unlink"):
            patch.setattr(os, name, self._recorded(getattr(self, name), getattr(os, name)))

    @staticmethod
    def _recorded(note: Any, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            done = real(*args, **kwargs)
            note(done, *args)
            return done

        return call

    def _inside(self, path: Any) -> str:
        text = os.fspath(path)
        return os.path.relpath(text, self._root) if text.startswith(self._root) else ""

    def open(self, descriptor: int, path: Any, flags: int, *_: Any) -> None:
        name = self._inside(path)
        if flags & os.O_DIRECTORY:
            self._folders[descriptor] = name
        elif name and name != "lock" and flags & (os.O_WRONLY | os.O_RDWR):
            if name not in self._names or flags & os.O_TRUNC:
                self._names[name] = len(self.steps)
                self.steps.append(("name", name, self._names[name]))
            self._files[descriptor] = self._names[name]

    def close(self, _done: None, descriptor: int) -> None:
        self._files.pop(descriptor, None)
        self._folders.pop(descriptor, None)

    def write(self, count: int, descriptor: int, data: bytes) -> None:
        if descriptor in self._files:
            self.steps.append(("write", self._files[descriptor], bytes(data[:count])))

    def fsync(self, _done: None, descriptor: int) -> None:
        if descriptor in self._files:
            self.steps.append(("sync", self._files[descriptor]))
        elif descriptor in self._folders:
            self.steps.append(("names", self._folders[descriptor]))

    fdatasync = fsync

    def rename(self, _done: None, source: Any, target: Any) -> None:
        old, new = self._inside(source), self._inside(target)
        if not old:
            return
        self._names[new] = self._names.pop(old)
        self.steps.append(("moved", old, new, self._names[new]))

    def unlink(self, _done: None, path: Any) -> None:
        name = self._inside(path)
        if self._names.pop(name, None) is not None:
            self.steps.append(("gone", name))


def run(sample: ModuleType, log: Log, state: Path) -> None:
    """Two runs, the first over a bundle's end; every acknowledged size is noted."""
    beacon = entries.encode(entries.Beacon(time=sample.NOW, instance="i", calls=0, running=0, tasks=0))
    for first, groups in ((0, (230, 1, 9, 40)), (1000, (3, 1))):
        recorder = sample.open_recorder(state)
        sample.add(recorder, sample.start())
        for number, count in enumerate(groups, first):
            sample.add(recorder, *sample.pairs(number, 1))
            for _ in range(count):
                recorder.append(beacon)
            log.steps.append(("acknowledged", recorder.commit()))
            recorder.tidy()
        sample.add(recorder, sample.stop())
        recorder.close()
        log.steps.append(("acknowledged", recorder.size))


def after(steps: list[tuple[Any, ...]], rng: random.Random) -> tuple[dict[str, bytes], int]:
    """A disk after power was lost behind `steps`: files by name, and what had been acknowledged."""
    named: dict[str, int] = {}
    synced = {file: place for place, (what, file, *_) in enumerate(steps) if what == "sync"}
    folders = {folder: place for place, (what, folder, *_) in enumerate(steps) if what == "names"}
    data: dict[int, bytearray] = {}
    acknowledged = 0
    lazy = rng.random()  # how much of what was not synced is lost, from nothing to all
    for place, step in enumerate(steps):
        match step:
            case ("name" | "moved" | "gone", name, *rest):
                folder = str(Path(name).parent)
                if place < folders.get(folder, -1) or rng.random() > lazy:
                    if step[0] != "name":
                        named.pop(name, None)
                    if rest:
                        named[rest[-2] if step[0] == "moved" else name] = rest[-1]
            case ("write", file, written):
                held = data.setdefault(file, bytearray())
                if place < synced.get(file, -1) or rng.random() > lazy:
                    held += written
                else:
                    held += torn(written, rng)
            case ("acknowledged", size):
                acknowledged = size
    return {name: bytes(data.get(file, b"")) for name, file in named.items()}, acknowledged


def torn(written: bytes, rng: random.Random) -> bytes:
    """Part of a write: any of its sectors, zeros for others, and an end before its own."""
    kept = bytearray(written)
    for start in range(0, len(kept), SECTOR):
        if rng.random() < 0.4:
            kept[start : start + SECTOR] = bytes(len(kept[start : start + SECTOR]))
    del kept[rng.randrange(len(kept) + 1) :]
    return bytes(kept)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of disks are made here."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as name:
        yield Path(name)


@pytest.mark.timeout(60 + STATES // 20)
def test_any_part_of_what_was_not_synced_may_be_lost(
    sample: ModuleType, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, ledger = memory / "recorded", memory / "state/ledger"
    with monkeypatch.context() as patch:
        log = Log(patch, recorded / "ledger")
        run(sample, log, recorded)
    kinds = {step[0] for step in log.steps}
    assert kinds == {"name", "moved", "gone", "write", "sync", "names", "acknowledged"}
    recorded_size = max(step[1] for step in log.steps if step[0] == "acknowledged")
    verifier = Verifier.parse(sample.VKEY)
    seed = int(os.environ.get("RUNNER_SEED", "0")) or random.randrange(1 << 32)
    print(f"RUNNER_SEED={seed}")
    rng = random.Random(seed)
    cut = behind = 0
    for number in range(STATES):
        steps = log.steps[: rng.randrange(1, len(log.steps) + 1)]
        files, acknowledged = after(steps, rng)
        for name, content in files.items():
            (ledger / name).parent.mkdir(parents=True, exist_ok=True)
            (ledger / name).write_bytes(content)
        what = (seed, number, len(steps), steps[-1][:2])
        if (ledger / "tail").exists():
            report = verify(ledger, sample.VKEY)
            assert report.ok, (what, report)
            assert report.signed >= acknowledged, what
            cut += any("no whole record" in note for note in report.notes)
        ledger.mkdir(parents=True, exist_ok=True)
        found = recover(ledger, verifier)
        assert (found.signed if found else 0) >= acknowledged, what
        behind += found is not None and found.signed < recorded_size
        if number % REOPENED == 0:
            recorder = sample.open_recorder(memory / "state")
            recorder.seal_interrupted(sample.NOW)
            sample.add(recorder, *sample.pairs(5000, 130), sample.stop())
            recorder.close()
            assert verify(ledger, sample.VKEY).ok, what
        shutil.rmtree(memory / "state")
    assert cut > STATES // 50  # torn groups are among the states, not only whole ones
    assert behind
