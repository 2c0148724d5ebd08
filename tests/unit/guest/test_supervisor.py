"""What PID 1 keeps between calls: jails by their key, rulesets that still name what is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runner.guest import supervisor, walls
from runner.guest.supervisor import Supervisor
from runner.wire import guest


def jail(key: str, **changes: Any) -> dict[str, Any]:
    """As it comes out of the JSON that gate sends."""
    spec = guest.JailSpec(key=key, read=("/usr",), write=(), execute=("/usr",), seccomp="", open_files=64, file_size=1)
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(spec)) | changes
    return found


@pytest.fixture
def keeper() -> Supervisor:
    made = object.__new__(Supervisor)
    made._jails, made._rulesets = {}, {}
    return made


def test_a_jail_is_spelled_out_once_and_then_named(keeper: Supervisor) -> None:
    with pytest.raises(ValueError, match="no jail"):
        keeper._jail("a")
    assert keeper._jail(jail("a")) == keeper._jail("a") == keeper._jail(jail("a")) == jail("a")
    assert keeper._jail(jail("b", open_files=65)) != keeper._jail("a")


@pytest.mark.parametrize("change", [{"read": ["/"]}, {"open_files": 65}, {"seccomp": "AAAA"}, {"extra": 1}])
def test_a_key_never_stands_for_another_jail(keeper: Supervisor, change: dict[str, Any]) -> None:
    keeper._jail(jail("a"))
    with pytest.raises(ValueError, match="one key"):
        keeper._jail(jail("a", **change))


def test_both_sides_forget_the_jail_that_was_spelled_out_first(keeper: Supervisor) -> None:
    assert supervisor._MAX_JAILS == guest.MAX_JAILS
    for number in range(guest.MAX_JAILS):
        keeper._jail(jail(str(number)))
    assert keeper._jail("0") == jail("0")
    keeper._jail(jail("one more"))
    assert len(keeper._jails) == guest.MAX_JAILS
    with pytest.raises(ValueError, match="no jail"):
        keeper._jail("0")
    assert keeper._jail("1") == jail("1")


@pytest.mark.parametrize("named", [True, False])
def test_a_start_may_carry_either(keeper: Supervisor, named: bool) -> None:
    spec = msgspec.convert(jail("a"), guest.JailSpec)
    start = guest.Start(
        tool="t", kind="argv", isolation="call", jail="a" if named else spec, credit=1, wall_ms=1, cpu_s=1, result=1
    )
    encoded = msgspec.json.encode(start)
    assert msgspec.json.decode(encoded, type=guest.Start) == start
    keeper._jail(jail("a"))
    assert keeper._jail(msgspec.json.decode(encoded)["jail"]) == jail("a")


def test_a_ruleset_stands_until_one_of_its_folders_is_another(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    ruleset = object.__new__(walls.Ruleset)
    ruleset.places = {}
    assert ruleset.stands()
    status = folder.stat()
    ruleset.places = {str(folder): (status.st_dev, status.st_ino)}
    assert ruleset.stands()
    folder.rename(tmp_path / "moved")
    assert not ruleset.stands()
    folder.mkdir()
    assert not ruleset.stands()
    folder.rmdir()
    folder.symlink_to(tmp_path / "moved")
    assert not ruleset.stands()
    folder.unlink()
    (tmp_path / "moved").rename(folder)
    assert ruleset.stands()


def test_a_ruleset_is_made_once_and_goes_with_its_jail(keeper: Supervisor) -> None:
    keeper._abi = walls.landlock_abi()
    given = keeper._jail(jail("0"))
    made = keeper._ruleset(given)
    assert keeper._ruleset(given) is made
    os.fstat(made.descriptor)
    for number in range(1, guest.MAX_JAILS + 1):
        keeper._jail(jail(str(number)))
    assert not keeper._rulesets
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made.descriptor)
