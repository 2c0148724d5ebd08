"""Reading and compiling a whole catalogue: what it holds, and what parent refuses to read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.catalog import archive, compile_bundle, read_bundle, read_folders, shared
from runner.catalog.files import MAX_FILE, MAX_FILES
from runner.config import Config
from runner.errors import RunnerError
from runner.wire.guest import code_digest


def test_a_whole_catalogue(folders: Any) -> None:
    catalog = folders.compile()
    assert set(catalog.tools) == {"count", "sh"}
    assert catalog.tools["sh"].argv == ("{argv}",)
    assert catalog.tools["count"].files == {"main.py": b"def run(call):\n    return {}\n"}
    base, narrow = catalog.task_profiles["base"], catalog.tool_profiles["narrow"]
    assert (base.ceilings.memory, base.ceilings.cpus_milli, base.ceilings.wall_ms) == (128 << 20, 500, 30_000)
    assert (base.idle_timeout_s, narrow.wall_ms, narrow.cpu_s) == (90, 1500, 2)
    assert catalog.policies == {"base.cedar": b'@id("all")\npermit(principal, action, resource);\n'}
    assert set(catalog.seccomp) == {"base"}


def test_a_disk_workspace_is_not_charged_to_memory(folders: Any) -> None:
    base = folders.compile().task_profiles["base"]
    assert (base.workspace_kind, base.snapshot) == ("memory", "none")
    folders.edit("profiles/base.toml", 'seccomp = "base"', 'seccomp = "base"\nsnapshot = "changed"')
    folders.edit("profiles/base.toml", "32MiB", "8GiB")
    assert "workspace + tmp + shm" in folders.refusal().reason
    folders.edit("profiles/base.toml", 'seccomp = "base"', 'seccomp = "base"\nworkspace_kind = "disk"')
    base = folders.compile().task_profiles["base"]
    assert (base.workspace_kind, base.snapshot, base.ceilings.workspace) == ("disk", "changed", 8 << 30)
    folders.edit("profiles/base.toml", '"128MiB"', '"39MiB"')
    assert folders.refusal().reason.startswith("ceilings.memory: is less than tmp + shm")


def test_every_digest_resolves(folders: Any) -> None:
    catalog = folders.compile()
    for digest, data in catalog.contents.items():
        assert hashlib.sha256(data).hexdigest() == digest
    wanted = {catalog.digest, code_digest(catalog.policies), hashlib.sha256(b"").hexdigest()}
    wanted |= {tool.digest for tool in catalog.tools.values()}
    wanted |= {tool.code_digest for tool in catalog.tools.values() if tool.code_digest}
    wanted |= {each.digest for each in (*catalog.task_profiles.values(), *catalog.tool_profiles.values())}
    wanted |= {hashlib.sha256(data).hexdigest() for data in (*catalog.seccomp.values(), *catalog.policies.values())}
    assert wanted <= set(catalog.contents)


def test_the_code_digest_is_what_the_guest_checks(folders: Any) -> None:
    tool = folders.compile().tools["count"]
    assert tool.code_digest == code_digest({"main.py": b"def run(call):\n    return {}\n"})
    assert folders.compile().tools["sh"].code_digest == ""


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("tools/count/main.py", "tool"),
        ("tools/count/tool.toml", "tool"),
        ("profiles/base.toml", "task"),
        ("profiles/seccomp/base.json", "task"),
        ("policies/base.cedar", "policy"),
    ],
)
def test_a_change_of_a_byte_changes_the_digests_of_what_it_is_in(folders: Any, path: str, changes: str) -> None:
    def digests() -> dict[str, str]:
        catalog = folders.compile()
        return {
            "whole": catalog.digest,
            "tool": catalog.tools["count"].digest,
            "task": catalog.task_profiles["base"].digest,
            "policy": code_digest(catalog.policies),
        }

    before = digests()
    folders.write(path, (folders.root / path).read_bytes() + b"\n")
    after = digests()
    assert {key for key in before if before[key] != after[key]} == {"whole", changes}


def test_the_same_bytes_have_the_same_digest_wherever_they_lie(make_folders: Callable[[str], Any]) -> None:
    assert make_folders("a").compile().digest == make_folders("b").compile().digest


@given(st.dictionaries(st.text(st.characters(codec="ascii"), min_size=1), st.binary(max_size=64), max_size=5))
def test_an_archive_is_what_its_digest_is_of(files: dict[str, bytes]) -> None:
    assert hashlib.sha256(archive(files)).hexdigest() == code_digest(files)


def test_a_bundle_that_was_changed_on_its_way_is_refused(folders: Any) -> None:
    bundle = read_folders(folders.root / "profiles", folders.root / "tools", folders.root / "policies")
    bundle.policies["base.cedar"] = b""
    with pytest.raises(RunnerError, match="digest"):
        compile_bundle(bundle)


def test_a_bundle_survives_its_way_to_another_process(folders: Any) -> None:
    bundle = read_folders(folders.root / "profiles", folders.root / "tools", folders.root / "policies")
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(bundle), type=type(bundle))
    assert compile_bundle(again).digest == folders.compile().digest


def test_config_names_the_folders_and_travels(folders: Any) -> None:
    text = b'state = "s"\n'
    where = {name: str(folders.root / name) for name in ("profiles", "tools", "policies")}
    bundle = read_bundle(Config(**where), folders.root / "runner.toml", text)
    catalog = compile_bundle(bundle)
    assert catalog.config.state == str(folders.root / "s")
    assert catalog.contents[hashlib.sha256(text).hexdigest()] == text


def test_a_broken_config_in_a_bundle_is_refused_with_its_line(folders: Any) -> None:
    where = {name: str(folders.root / name) for name in ("profiles", "tools", "policies")}
    bundle = read_bundle(Config(**where), Path("runner.toml"), b'state = "s"\nstaet = 1\n')
    with pytest.raises(RunnerError) as caught:
        compile_bundle(bundle)
    assert (caught.value.refused.code, caught.value.refused.field) == ("config", "runner.toml:2")


def test_readme_dot_files_and_caches_are_not_part_of_it(folders: Any) -> None:
    before = folders.compile().digest
    for path in ("profiles/README.md", "tools/.hidden", "tools/count/__pycache__/main.pyc", "policies/cases/x.toml"):
        folders.write(path, "x")
    assert folders.compile().digest == before


def _link_file(folders: Any) -> None:
    (folders.root / "tools/count/link.py").symlink_to("/etc/hostname")


def _link_folder(folders: Any) -> None:
    (folders.root / "tools/other").symlink_to("/etc")


def _fifo(folders: Any) -> None:
    os.mkfifo(folders.root / "policies/pipe.cedar")


def _large(folders: Any) -> None:
    folders.write("tools/count/data", b"x" * (MAX_FILE + 1))


def _many(folders: Any) -> None:
    for number in range(MAX_FILES):
        folders.write(f"tools/count/f{number}", "")


def _sum(folders: Any) -> None:
    for number in range(5):
        folders.write(f"tools/count/f{number}", b"x" * MAX_FILE)


def _name(folders: Any) -> None:
    folders.write("tools/count/a b\n.py", "")


def _deep(folders: Any) -> None:
    folders.write("tools/count/a/b/c/d/e/f.py", "")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_link_file, "symbolic link"),
        (_link_folder, "symbolic link"),
        (_fifo, "not a regular file"),
        (_large, "larger than"),
        (_many, "more than"),
        (_sum, "more than"),
        (_name, "characters outside"),
        (_deep, "nest deeper"),
    ],
)
def test_what_parent_does_not_read(folders: Any, spoil: Callable[[Any], None], says: str) -> None:
    assert folders.compile()
    spoil(folders)
    refused = folders.refusal()
    assert says in refused.reason
    assert str(folders.root) in refused.field
    assert "\n" not in refused.field
    assert refused.next_step


def test_a_missing_folder_is_named(folders: Any, tmp_path: Path) -> None:
    with pytest.raises(RunnerError) as caught:
        read_folders(tmp_path / "nowhere", folders.root / "tools", folders.root / "policies")
    assert caught.value.refused.field == str(tmp_path / "nowhere")


def test_an_empty_policy_folder_compiles(folders: Any) -> None:
    (folders.root / "policies/base.cedar").unlink()
    assert folders.compile().policies == {}


def test_the_packages_own_folders_exist() -> None:
    for name in ("profiles", "tools", "policies"):
        assert shared(name).is_dir()
