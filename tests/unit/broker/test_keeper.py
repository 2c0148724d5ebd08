"""The master key, and the credentials of providers: who may have put them there, and what a refusal says of them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.broker import master
from runner.broker.keeper import Keeper
from runner.errors import RunnerError

KEY = bytes(range(32))
CANARY = "canary-of-a-credential"


def refused(keeper: Keeper, name: str) -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        keeper.credential(name)
    assert caught.value.refused.code == "unavailable"
    assert CANARY not in str(caught.value)
    return caught.value


def test_a_stored_secret_or_a_file_of_ones_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keeper, file = Keeper(tmp_path, KEY), tmp_path / "token"
    keeper.open().store.put("token", CANARY.encode(), {}, expect=0, now="now")
    assert keeper.credential("token") == CANARY.encode()
    assert "runner secret set" in refused(keeper, "missing").refused.next_step
    refused(keeper, str(file))
    file.write_text(f"{CANARY}\n")
    file.chmod(0o600)
    assert keeper.credential(str(file)) == CANARY.encode()
    file.chmod(0o604)
    error = refused(keeper, str(file))
    assert str(file) not in str(error)  # an agent could read it
    assert str(file) in caplog.text
    file.chmod(0o600)
    for bad in ("", "\n", f"{CANARY}\n{CANARY}", f"{CANARY}\u00e9", f"{CANARY}\r"):
        file.write_bytes(bad.encode())
        refused(keeper, str(file))
    file.rename(tmp_path / "real")
    file.symlink_to(tmp_path / "real")
    refused(keeper, str(file))
    assert CANARY not in caplog.text


@given(st.binary(max_size=120))
def test_only_what_was_made_is_a_master_key(data: bytes) -> None:
    with pytest.raises(RunnerError):
        master.parse(data, "x")
    made = master.fresh()
    assert len(master.parse(made, "x")) == 32
    assert master.parse(made.removesuffix(b"\n"), "x") == master.parse(made, "x")
    for changed in (made + b"\n", made[:-3] + b"=\n", made.replace(b"-1:", b"-2:"), made[:-2] + b"\n", b" " + made):
        with pytest.raises(RunnerError):
            master.parse(changed, "x")


def test_keys_differ() -> None:
    assert len({master.fresh() for _ in range(64)}) == 64


def test_a_key_file_that_others_could_read_is_refused(tmp_path: Path) -> None:
    keeper, path = Keeper(tmp_path, None), tmp_path / master.FILE
    path.write_bytes(master.fresh())
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(RunnerError) as caught:
            keeper.open()
        assert caught.value.refused.code == "key"
    path.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(path, 12_345, 12_345)
        with pytest.raises(RunnerError):
            keeper.open()
        os.chown(path, 0, 0)
    assert keeper.open() is keeper.open()


def test_no_credential_of_systemd_is_none_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    assert master.from_credential("") is None
    assert master.from_credential(str(tmp_path)) is None
    (tmp_path / master.CREDENTIAL).write_bytes(master.fresh())
    key = master.from_credential(str(tmp_path))
    assert key is not None
    assert len(key) == 32
    (tmp_path / master.CREDENTIAL).write_bytes(b"x")
    with pytest.raises(RunnerError):
        master.from_credential(str(tmp_path))
