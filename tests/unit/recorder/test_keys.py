"""The signing key: made once, kept private, replaced only inside the log (`test_rotate.py`)."""

from __future__ import annotations

import stat
from pathlib import Path
from types import ModuleType

import pytest

from runner.errors import RunnerError
from runner.ledger.note import Signer
from runner.recorder.keys import load_or_create_key


def test_it_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    first = load_or_create_key(folder, "toolrunner/a")
    again = load_or_create_key(folder, "toolrunner/a")
    assert first.private_bytes_raw() == again.private_bytes_raw()
    assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "key.pub").stat().st_mode) == 0o644
    assert (folder / "key.pub").read_text() == Signer("toolrunner/a", first).verifier.text + "\n"
    assert sorted(path.name for path in folder.iterdir()) == ["key", "key.pub"]


def test_a_ledger_is_not_continued_under_a_new_key(sample: ModuleType, tmp_path: Path) -> None:
    sample.write(tmp_path, 1)
    with pytest.raises(RunnerError, match="missing") as caught:
        load_or_create_key(tmp_path / "ledger", sample.ORIGIN)
    assert caught.value.refused.code == "key"
    assert not (tmp_path / "ledger/key").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_an_open_key_is_refused(tmp_path: Path, mode: int) -> None:
    load_or_create_key(tmp_path, "toolrunner/a")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(RunnerError, match="others") as caught:
        load_or_create_key(tmp_path, "toolrunner/a")
    assert caught.value.refused.code == "key"


@pytest.mark.parametrize("content", [b"", b"noise", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(RunnerError, match="not an Ed25519") as caught:
        load_or_create_key(tmp_path, "toolrunner/a")
    assert caught.value.refused.code == "key"
    assert path.read_bytes() == content


def test_a_link_is_refused(tmp_path: Path) -> None:
    load_or_create_key(tmp_path / "real", "toolrunner/a")
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger/key").symlink_to(tmp_path / "real/key")
    with pytest.raises(RunnerError):
        load_or_create_key(tmp_path / "ledger", "toolrunner/a")
