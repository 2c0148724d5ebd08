"""Leases of uids: distinct, host-wide, never while a process of that uid lives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.engine.uids import UidRange, uids_in_use
from runner.errors import RunnerError

FIRST = 4_000_000_000  # no account and no process has these


def proc_with(folder: Path, *uids: int) -> Path:
    for number, uid in enumerate(uids, 1):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "status").write_text(f"Name:\tx\nUid:\t0\t{uid}\t0\t0\n")
    folder.mkdir(exist_ok=True)
    return folder


def test_leases_are_distinct_and_come_back(tmp_path):
    uids = UidRange(FIRST, 3, folder=tmp_path / "locks", proc=proc_with(tmp_path / "proc"))
    leases = [uids.lease() for _ in range(3)]
    assert [lease.uid for lease in leases] == [FIRST, FIRST + 1, FIRST + 2]
    with pytest.raises(RunnerError, match="every sandbox uid"):
        uids.lease()
    leases[1].release()
    leases[1].release()
    again = uids.lease()
    assert again.uid == FIRST + 1
    for lease in (*leases, again):
        lease.release()


def test_another_daemon_on_the_host_gets_other_uids(tmp_path):
    proc = proc_with(tmp_path / "proc")
    ours = UidRange(FIRST, 2, folder=tmp_path / "locks", proc=proc).lease()
    theirs = UidRange(FIRST, 2, folder=tmp_path / "locks", proc=proc).lease()
    assert {ours.uid, theirs.uid} == {FIRST, FIRST + 1}
    ours.release()
    theirs.release()


def test_a_uid_with_a_process_is_passed_over_and_its_lock_is_free_again(tmp_path):
    busy = UidRange(FIRST, 2, folder=tmp_path / "locks", proc=proc_with(tmp_path / "proc", FIRST))
    lease = busy.lease()
    assert lease.uid == FIRST + 1
    lease.release()
    quiet = UidRange(FIRST, 2, folder=tmp_path / "locks", proc=proc_with(tmp_path / "quiet"))
    lease = quiet.lease()
    assert lease.uid == FIRST
    lease.release()


def test_a_uid_with_an_account_is_passed_over(tmp_path):
    lease = UidRange(0, 5_000_000_000, folder=tmp_path / "locks", proc=proc_with(tmp_path / "proc")).lease()
    assert lease.uid > 0
    lease.release()


def test_lock_files_are_roots_own_and_not_followed(tmp_path):
    folder = tmp_path / "locks"
    folder.mkdir()
    (folder / f"uid-{FIRST}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        UidRange(FIRST, 1, folder=folder, proc=proc_with(tmp_path / "proc")).lease()
    assert not (tmp_path / "elsewhere").exists()


def test_every_kind_of_uid_counts_as_in_use(tmp_path):
    assert uids_in_use(proc_with(tmp_path / "proc", 7, 8)) == {0, 7, 8}
    assert os.getuid() in uids_in_use()


def test_a_uid_that_owns_files_is_kept_for_them_while_they_exist(tmp_path):
    ours = UidRange(FIRST, 2, folder=tmp_path / "locks", proc=proc_with(tmp_path / "proc"))
    disk = tmp_path / "disk"
    disk.mkdir()
    lease = ours.lease(disk)
    lease.release()
    assert lease.uid == FIRST + 1
    others = [ours.lease()]
    assert others[0].uid == FIRST
    with pytest.raises(RunnerError, match="every sandbox uid"):
        ours.lease()  # the other is nobody's now, and still not to be had
    with pytest.raises(RunnerError, match="owns the task's disk"):
        ours.lease_again(FIRST + 1, tmp_path / "another")
    again = ours.lease_again(FIRST + 1, disk)
    with pytest.raises(RunnerError, match="owns the task's disk"):
        ours.lease_again(FIRST + 1, disk)
    again.release()
    disk.rmdir()
    others.append(ours.lease())
    assert others[1].uid == FIRST + 1
    for other in others:
        other.release()


def test_a_kept_uid_is_not_given_while_a_process_runs_as_it(tmp_path):
    proc = proc_with(tmp_path / "proc", FIRST)
    uids = UidRange(FIRST, 1, folder=tmp_path / "locks", proc=proc)
    with pytest.raises(RunnerError, match="owns the task's disk"):
        uids.lease_again(FIRST, tmp_path)
    (proc / "1/status").write_text("Uid:\t0\t0\t0\t0\n")
    uids.lease_again(FIRST, tmp_path).release()
