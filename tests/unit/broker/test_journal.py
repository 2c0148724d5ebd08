"""The journal of dynamic leases: what is handed out is in it, and what a crash cut is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.broker import journal as module
from runner.broker.journal import FILE, Journal, Outstanding
from runner.errors import RunnerError

KEY = bytes(range(32))


def lease(number: int) -> Outstanding:
    return Outstanding(f"l-{number}", "vault", "db", f"database/creds/x/{number}", 1e9)


def left(folder: Path) -> set[str]:
    journal = Journal(folder, KEY)
    found = set(journal.outstanding)
    journal.close()
    return found


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=40))
def test_what_was_made_and_is_not_gone_is_left(steps: list[tuple[bool, int]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        expected: set[str] = set()
        journal = Journal(Path(place), KEY)
        for made, number in steps:
            if made:
                journal.made(lease(number))
                expected.add(f"l-{number}")
            else:
                journal.gone(f"l-{number}")
                expected.discard(f"l-{number}")
        journal.close()
        assert left(Path(place)) == expected
        assert left(Path(place)) == expected  # and reading it changed nothing


def test_a_cut_at_any_byte_loses_only_what_was_cut(tmp_path: Path) -> None:
    journal = Journal(tmp_path, KEY)
    ends = []
    for number in range(4):
        journal.made(lease(number))
        ends.append((tmp_path / FILE).stat().st_size)
    journal.close()
    whole = (tmp_path / FILE).read_bytes()
    for size in range(len(whole) + 1):
        (tmp_path / FILE).write_bytes(whole[:size])
        assert left(tmp_path) == {f"l-{number}" for number, end in enumerate(ends) if end <= size}
        (tmp_path / FILE).write_bytes(whole[:size] + bytes(64))  # the file had grown, its data had not come
        assert left(tmp_path) == {f"l-{number}" for number, end in enumerate(ends) if end <= size}


def test_damage_before_the_last_line_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path, KEY)
    journal.made(lease(0))
    end = (tmp_path / FILE).stat().st_size
    for number in range(1, 4):
        journal.made(lease(number))
    journal.close()
    whole = (tmp_path / FILE).read_bytes()
    for place in range(4, end):  # a length that was changed may look like a cut: then it is one
        (tmp_path / FILE).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(RunnerError) as caught:
            Journal(tmp_path, KEY)
        assert caught.value.refused.code == "key"
    swapped = whole[end : 2 * end] + whole[:end] + whole[2 * end :]
    (tmp_path / FILE).write_bytes(swapped)
    with pytest.raises(RunnerError):
        Journal(tmp_path, KEY)
    (tmp_path / FILE).write_bytes(whole)
    assert len(left(tmp_path)) == 4


def test_a_handle_is_not_in_the_clear_nor_in_any_text(tmp_path: Path) -> None:
    journal = Journal(tmp_path, KEY)
    made = Outstanding("l-1", "idp", "token", "bearer-canary-77", 1e9)
    journal.made(made)
    assert b"bearer-canary-77" not in (tmp_path / FILE).read_bytes()
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert "bearer-canary-77" not in repr(made)
    assert journal.outstanding["l-1"].handle == "bearer-canary-77"
    journal.close()


def test_it_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DEAD", 10)
    journal = Journal(tmp_path, KEY)
    journal.made(lease(1000))
    most = 0
    for number in range(200):
        journal.made(lease(number))
        journal.gone(f"l-{number}")
        most = max(most, (tmp_path / FILE).stat().st_size)
    journal.close()
    assert most < 16 * 200
    assert left(tmp_path) == {"l-1000"}


def test_what_the_disk_does_not_take_is_not_handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, KEY)
    journal.made(lease(0))

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fdatasync", fail)
        with pytest.raises(RunnerError) as caught:
            journal.made(lease(1))
    assert caught.value.refused.code == "unavailable"
    with pytest.raises(RunnerError):  # nobody knows what the file holds: nothing more until the next start
        journal.made(lease(2))
    journal.close()
    assert left(tmp_path) >= {"l-0"}


WRITER = """
import sys
from pathlib import Path
from runner.broker.journal import Journal, Outstanding
journal = Journal(Path(sys.argv[1]), bytes(range(32)))
number = len(journal.outstanding)
while True:
    journal.made(Outstanding(f"l-{number}", "vault", "db", "handle", 1e9))
    print(number, flush=True)
    number += 1
"""


def test_killed_at_any_moment_every_lease_that_was_handed_out_is_left(tmp_path: Path) -> None:
    for round_ in range(8):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            said = [int(process.stdout.readline()) for _ in range(2 + 3 * round_)]
            os.kill(process.pid, signal.SIGKILL)
            said += map(int, process.stdout.read().split())
        assert {f"l-{number}" for number in range(said[-1] + 1)} <= left(tmp_path)
