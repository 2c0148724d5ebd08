"""The sealed store: what goes in comes out, and nothing that was changed does."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.broker import store as module
from runner.broker.secret import Secret
from runner.broker.store import MAX_SECRETS, Store
from runner.errors import RunnerError
from runner.wire.broker import MAX_SECRET, MIN_SECRET

KEY = bytes(range(32))
NOW = "2026-01-01T00:00:00.000000Z"

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,20}", fullmatch=True)
values = st.binary(min_size=MIN_SECRET, max_size=200)
fields = st.dictionaries(st.sampled_from(("password", "api_key", "token")), values, min_size=1) | st.fixed_dictionaries(
    {"username": st.binary(max_size=20), "password": values}
)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def kept(folder: Path) -> Store:
    """A store with three secrets."""
    store = Store.open(folder, KEY)
    store.put("one", b"value of one", {}, expect=0, now=NOW)
    store.put("two", b"value of two", {}, expect=0, now=NOW)
    store.put("login", b"", {"username": b"me", "password": b"pass-word"}, expect=0, now=NOW)
    return store


def value(store: Store, name: str) -> bytes | None:
    found = store.get(name)
    return None if found is None else bytes(found.value)


def refused(work: object, *arguments: object, **named: object) -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        work(*arguments, **named)  # type: ignore[operator]
    return caught.value


@given(st.dictionaries(names, values | fields, max_size=6), st.binary(min_size=32, max_size=32))
def test_what_is_put_is_there_after_every_opening(secrets: dict[str, bytes | dict[str, bytes]], key: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        for name, given_ in secrets.items():
            store = Store.open(Path(place), key)
            single, several = (given_, {}) if isinstance(given_, bytes) else (b"", given_)
            assert store.put(name, single, several, expect=0, now=NOW) == 1
        store = Store.open(Path(place), key)
        assert [view.name for view in store.views()] == sorted(secrets)
        for name, given_ in secrets.items():
            found = store.get(name)
            assert found is not None
            if isinstance(given_, bytes):
                assert (found.value, found.fields) == (given_, {})
            else:
                assert found.fields == given_
                main = "password" if "password" in given_ else next(each for each in given_ if each != "username")
                assert found.value == given_[main]


def test_every_flipped_bit_of_the_file_is_found(folder: Path) -> None:
    kept(folder)
    path = folder / module.FILE
    whole = path.read_bytes()
    for place, bit in itertools.product(range(len(whole)), (0, 3, 7)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        assert refused(Store.open, folder, KEY).refused.code == "key"
    path.write_bytes(whole)
    assert value(Store.open(folder, KEY), "one") == b"value of one"


def test_every_cut_and_every_appended_byte_is_found(folder: Path) -> None:
    kept(folder)
    path = folder / module.FILE
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert refused(Store.open, folder, KEY).refused.code == "key"
    path.write_bytes(whole + b"\0")
    assert refused(Store.open, folder, KEY).refused.code == "key"


def test_records_that_were_swapped_do_not_open_even_under_a_seal_that_fits(folder: Path) -> None:
    """The seal finds any change; each record is bound to its name and version besides, in case the seal did not."""
    store = kept(folder)
    whole = (folder / module.FILE).read_bytes()
    body = module._parse(whole, folder)
    by_name = {record.name: record for record in body.records}
    for changed in (
        {"name": "two"},
        {"version": 2},
        {"rotated": "2027-01-01T00:00:00.000000Z"},
        {"fields": ("password",)},
    ):
        moved = module.msgspec.structs.replace(by_name["one"], **changed)
        others = [record for name, record in by_name.items() if name not in ("one", moved.name)]
        forged = module._Body(
            body.wraps, body.generation, tuple(sorted([moved, *others], key=lambda record: record.name))
        )
        data = module._MAGIC + module._encode(forged)
        (folder / module.FILE).write_bytes(data)  # no seal at all
        assert refused(Store.open, folder, KEY).refused.code == "key"
        (folder / module.FILE).write_bytes(data + module._mac(store._data_key, data))
        opened = Store.open(folder, KEY)
        assert "does not open" in refused(opened.get, moved.name).refused.reason
        assert value(opened, "login") == b"pass-word"  # what was left alone still does


def test_another_master_key_is_said_to_be_that(folder: Path) -> None:
    kept(folder)
    said = refused(Store.open, folder, bytes(32)).refused
    assert said.code == "key"
    assert "master key" in said.reason
    assert value(Store.open(folder, KEY), "one") == b"value of one"


def test_an_older_copy_put_back_while_it_is_open_is_found_by_the_next_change(folder: Path) -> None:
    store = kept(folder)
    old = (folder / module.FILE).read_bytes()
    store.put("one", b"another value", {}, expect=1, now=NOW)
    newest = (folder / module.FILE).read_bytes()
    (folder / module.FILE).write_bytes(old)
    assert "replaced" in refused(store.remove, "two", expect=1).refused.reason
    (folder / module.FILE).write_bytes(newest)
    store.remove("two", expect=1)
    assert [view.name for view in Store.open(folder, KEY).views()] == ["login", "one"]


def test_what_cannot_be_read_as_one_way_of_writing_it_is_refused(folder: Path) -> None:
    """A second encoding of the same body under a seal that fits."""
    store = kept(folder)
    body = module._parse((folder / module.FILE).read_bytes(), folder)
    plain = module.msgspec.msgpack.encode(body)
    assert plain[0] == 0x93
    other = module._MAGIC + b"\xdc\x00\x03" + plain[1:]  # an array of three, told in three bytes
    (folder / module.FILE).write_bytes(other + module._mac(store._data_key, other))
    assert "not in order" in refused(Store.open, folder, KEY).refused.reason


def test_a_version_that_is_not_expected_changes_nothing(folder: Path) -> None:
    store = kept(folder)
    before = (folder / module.FILE).read_bytes()
    for name, expect in (("one", 0), ("one", 2), ("new", 1)):
        assert refused(store.put, name, b"long enough", {}, expect=expect, now=NOW).refused.code == "arguments"
        assert refused(store.remove, name, expect=expect + 5).refused.code == "arguments"
    assert (folder / module.FILE).read_bytes() == before
    assert store.put("one", b"long enough", {}, expect=1, now=NOW) == 2
    view = next(view for view in store.views() if view.name == "one")
    assert (view.version, view.created) == (2, NOW)


@pytest.mark.parametrize(
    ("name", "single", "several", "word"),
    [
        ("a", b"1234567", {}, "shorter"),
        ("a", b"", {}, "one value"),
        ("a", b"12345678", {"password": b"12345678"}, "one value"),
        ("a", b"x" * (MAX_SECRET + 1), {}, "longer"),
        ("a", b"", {"username": b"somebody-long"}, "no secret"),
        ("a", b"", {"username": b"me", "password": b"sh0rt"}, "shorter"),
        ("a", b"", {"Password": b"12345678"}, "fields"),
        ("a", b"", {f"f{number}": b"12345678" for number in range(9)}, "fields"),
        ("", b"12345678", {}, "name"),
        ("vault:a", b"12345678", {}, "name"),
        ("../a", b"12345678", {}, "name"),
        ("a\n", b"12345678", {}, "name"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_reason_and_never_shown(
    folder: Path, name: str, single: bytes, several: dict[str, bytes], word: str
) -> None:
    store = Store.open(folder, KEY)
    error = refused(store.put, name, single, several, expect=0, now=NOW)
    assert error.refused.code == "arguments"
    assert word in error.refused.reason
    for secret in (single, several.get("password")):
        assert not secret or secret.decode() not in str(error)
    assert store.views() == ()
    assert store.put("a", b"12345678", {}, expect=0, now=NOW) == 1  # the shortest
    assert store.put("b", b"x" * MAX_SECRET, {}, expect=0, now=NOW) == 1  # the longest


def test_it_holds_so_many_and_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_SECRETS == 1024
    monkeypatch.setattr(module, "MAX_SECRETS", 3)
    store = kept(folder)
    assert "holds 3" in refused(store.put, "four", b"12345678", {}, expect=0, now=NOW).refused.reason
    store.remove("two", expect=1)
    store.put("four", b"12345678", {}, expect=0, now=NOW)


def test_nothing_of_a_value_is_in_the_folder_or_in_any_text(folder: Path) -> None:
    canary = b"canary-8d1f0c5e7a"
    store = Store.open(folder, KEY)
    store.put("one", canary, {}, expect=0, now=NOW)
    for file in folder.iterdir():
        assert canary not in file.read_bytes()
        assert file.stat().st_mode & 0o777 == 0o600
    found = store.get("one")
    assert found is not None
    assert canary == found.value  # it is there
    assert canary.decode() not in repr(found) + repr(store) + repr(store.views())
    found.wipe()
    assert found.value == bytes(len(canary))


def test_a_file_that_others_could_change_or_that_is_a_link_is_refused(folder: Path) -> None:
    kept(folder)
    path = folder / module.FILE
    path.chmod(0o640)
    assert "0640" in refused(Store.open, folder, KEY).refused.reason
    path.chmod(0o600)
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")
    assert refused(Store.open, folder, KEY).refused.code == "key"
    path.unlink()
    (folder / "elsewhere").rename(path)
    assert value(Store.open(folder, KEY), "one") == b"value of one"


@pytest.mark.parametrize("call", ["fsync", "rename", "write"])
def test_a_disk_that_does_not_take_it_leaves_the_old_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store = kept(folder)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if call == "fsync":
            patch.setattr(module.os, "fsync", fail)
        elif call == "rename":
            patch.setattr(Path, "rename", fail)
        else:
            patch.setattr(module.os, "fdopen", fail)
        assert refused(store.put, "one", b"another value", {}, expect=1, now=NOW).refused.code == "unavailable"
    assert value(Store.open(folder, KEY), "one") == b"value of one"


def test_after_a_rename_that_may_not_be_on_disk_nothing_is_answered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, real, calls = kept(folder), os.fsync, 0

    def second(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:  # the folder's
            raise OSError(5, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(module.os, "fsync", second)
    assert refused(store.put, "one", b"another value", {}, expect=1, now=NOW).refused.code == "unavailable"
    assert refused(store.get, "one").refused.code == "unavailable"
    assert refused(store.put, "one", b"another value", {}, expect=1, now=NOW).refused.code == "unavailable"
    assert value(Store.open(folder, KEY), "one") in (b"value of one", b"another value")


def test_a_new_master_key_opens_what_the_old_one_sealed(folder: Path) -> None:
    store, new = kept(folder), bytes(range(1, 33))
    keys = store.key("fingerprint")
    store.rewrap(KEY, new)
    for key in (KEY, new):
        assert value(Store.open(folder, key), "two") == b"value of two"
    store.rewrap(new)
    assert value(Store.open(folder, new), "two") == b"value of two"
    assert Store.open(folder, new).key("fingerprint") == keys  # receipts stay comparable
    refused(Store.open, folder, KEY)


def test_packed_values_are_cut_nowhere() -> None:
    packed = Secret.pack(b"", {"username": b"", "password": b"12345678"})
    assert Secret.unpack(packed, ("username", "password"), "1").fields == {"username": b"", "password": b"12345678"}
    for size in range(len(packed)):
        with pytest.raises(ValueError):
            Secret.unpack(packed[:size], ("username", "password"), "1")
    with pytest.raises(ValueError):
        Secret.unpack(packed, (), "1")


WRITER = """
import sys
from pathlib import Path
from runner.broker.store import Store
store = Store.open(Path(sys.argv[1]), bytes(range(32)))
version = store.version("one")
while True:
    version = store.put("one", b"value %012d" % version, {}, expect=version, now="now")
    print(version, flush=True)
"""


def test_killed_at_any_moment_it_holds_the_old_or_the_new_never_neither(folder: Path) -> None:
    """Real processes, killed while they write as fast as they can."""
    acknowledged = 0
    for round_ in range(12):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(3 + 5 * round_):
                acknowledged = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split()
            acknowledged = int(rest[-1]) if rest else acknowledged
        store = Store.open(folder, KEY)
        version = store.version("one")
        assert version in (acknowledged, acknowledged + 1)  # the last one may have ended unsaid
        assert value(store, "one") == b"value %012d" % (version - 1)
