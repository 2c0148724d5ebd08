"""Who may read the interpreter, and one line an event."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

from runner.errors import RunnerError
from runner.serve import log, privilege
from runner.serve.places import folder, identity


def test_a_user_that_cannot_reach_the_interpreter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privilege, "user_id", lambda name: (65_000, 65_000))
    private = tmp_path / "home"
    private.mkdir()
    python = private / "python"
    python.write_bytes(b"")
    for place in (tmp_path, *tmp_path.parents):
        if place.stat().st_uid == os.getuid() and not place.stat().st_mode & 0o001:
            place.chmod(0o711)
    monkeypatch.setattr(sys, "executable", str(python))
    python.chmod(0o755)
    private.chmod(0o755)
    privilege.interpreter_readable("somebody")
    private.chmod(0o700)
    with pytest.raises(RunnerError) as refused:
        privilege.interpreter_readable("somebody")
    assert str(private) in refused.value.refused.reason
    private.chmod(0o755)
    python.chmod(0o700)
    with pytest.raises(RunnerError):
        privilege.interpreter_readable("somebody")


def test_unknown_users_and_groups_name_the_remedy() -> None:
    for ask in (privilege.user_id, privilege.group_id):
        with pytest.raises(RunnerError) as refused:
            ask("no-such-name-at-all")
        assert "scripts/setup" in refused.value.refused.next_step


def test_the_environment_keeps_only_what_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"PATH": "p", "SECRET": "s", "KEPT": "k"})
    privilege.clear_environment(keep=("KEPT",))
    assert os.environ == {"PATH": "p", "KEPT": "k"}


def test_folders_are_made_and_never_taken_from_a_link_or_from_somebody_else(tmp_path: Path) -> None:
    own = (os.getuid(), os.getgid())
    folder(tmp_path / "a" / "b", 0o700, own)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(RunnerError) as refused:
            folder(tmp_path / name, 0o777, own)
        assert "not a folder" in refused.value.refused.reason
    assert (tmp_path / "a").stat().st_mode & 0o777 != 0o777


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65_000, 65_000)
    with pytest.raises(RunnerError):
        folder(tmp_path / "theirs", 0o700, (0, 0))


def test_the_identity_is_made_once_and_never_guessed(tmp_path: Path) -> None:
    path = tmp_path / "instance"
    made = identity(path)
    assert identity(path) == made
    for wrong in ("", "../x\n", "R" * 99):
        path.write_text(wrong)
        with pytest.raises(RunnerError):
            identity(path)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunnerError):
        identity(path)


def test_a_log_line_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        log.configure("gate")
        try:
            raise ValueError("two\nlines \x1b[2J \ud800")
        except ValueError:
            logging.getLogger("x").exception("failed\nwith %s", "\u202e")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.isascii() or all(char.isprintable() or char == "\n" for char in said)
    assert " gate ERROR " in said
