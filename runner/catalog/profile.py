"""profiles/<name>.toml and profiles/seccomp/<name>.json, checked and turned into profiles with numbers in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, get_args

import msgspec

from runner.catalog.egress import check_delivery, compile_rules
from runner.catalog.files import Contents
from runner.catalog.filters import check_labels
from runner.catalog.labels import FilesFile, compile_files
from runner.catalog.place import Place
from runner.config import RuleFile, decode_toml, milliseconds, parse_toml, size
from runner.errors import RunnerError, refuse
from runner.model import (
    Action,
    Ceilings,
    Consequence,
    Delivery,
    Isolation,
    Lack,
    RawMode,
    Snapshot,
    TaskProfile,
    ToolProfile,
    WorkspaceKind,
)

T = TypeVar("T")

RESERVE = 32 << 20  # memory a sandbox needs beside what its tmpfs may hold: tmpfs is charged to the same limit

_PROFILE = re.compile(r"^[a-z][a-z0-9-]{0,31}\Z")
_IMAGE = re.compile(r"^(sha256:[0-9a-f]{64}|[a-z0-9][a-z0-9._/:-]{0,127})\Z")
_SYSCALL = re.compile(r"^[a-z_][a-z0-9_]{1,39}\Z")


class _CeilingsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[ceilings] of a task profile: sizes and times as text."""

    memory: str = "512MiB"
    cpus: float = 1.0
    pids: int = 128
    workspace: str = "256MiB"
    workspace_inodes: int = 65_536
    tmp: str = "32MiB"
    shm: str | int = 0
    concurrent_calls: int = 4
    open_files: int = 256
    file_size: str = "128MiB"
    wall: str = "60s"
    cpu_time: str = "60s"
    output: str = "8MiB"
    output_rate: str = "64MiB"
    result: str = "256KiB"


class _TaskFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    kind: str
    description: str
    image: str
    seccomp: str
    tools: tuple[str, ...]
    idle_timeout: str = "30m"
    runtime: str = ""
    accept: tuple[Lack, ...] = ()
    workspace_kind: WorkspaceKind = "memory"
    snapshot: Snapshot = "none"
    egress: tuple[RuleFile, ...] = ()
    delivery: tuple[Delivery, ...] = ("inject",)
    labels: dict[str, Action] = {}
    files: tuple[FilesFile, ...] = ()
    raw: RawMode | dict[Consequence, RawMode] = "never"  # one word for all consequences, or a word each
    ceilings: _CeilingsFile = _CeilingsFile()


class _ToolProfileFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    kind: str
    description: str
    isolation: Isolation
    workspace: Literal["none", "read", "write"]
    tmp: bool = False
    seccomp_deny: tuple[str, ...] = ()
    wall: str = ""
    cpu_time: str = ""
    output: str = ""
    open_files: int = 0
    file_size: str = ""


def compile_filters(files: Mapping[str, bytes], contents: Contents) -> dict[str, bytes]:
    """The filters, each JSON that refuses by default. Engine compiles them; here only what a reader can tell."""
    found: dict[str, bytes] = {}
    for path, data in files.items():
        if not path.startswith("seccomp/"):
            continue
        name = f"profiles/{path}"
        if not path.endswith(".json") or path.count("/") != 1:
            raise refuse("profile", "not a seccomp/<name>.json file", field=name, next_step="move or remove it")
        try:
            spec = msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise refuse("profile", f"not a JSON object: {error}", field=name) from None
        if str(spec.get("defaultAction", "")) not in ("SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL"):
            raise refuse("profile", "defaultAction must refuse: SCMP_ACT_ERRNO or SCMP_ACT_KILL_PROCESS", field=name)
        contents.plain(data)
        found[path.removeprefix("seccomp/").removesuffix(".json")] = data
    return found


def compile_profiles(
    files: Mapping[str, bytes], contents: Contents
) -> tuple[dict[str, TaskProfile], dict[str, ToolProfile]]:
    tasks: dict[str, TaskProfile] = {}
    tools: dict[str, ToolProfile] = {}
    for path, text in files.items():
        if path.startswith("seccomp/"):
            continue
        name = f"profiles/{path}"
        if not path.endswith(".toml") or "/" in path or not _PROFILE.match(path.removesuffix(".toml")):
            raise refuse("profile", "not a <name>.toml file", field=name, next_step="move or remove it")
        contents.plain(text)
        stem = path.removesuffix(".toml")
        data = parse_toml(text, name, "profile")
        if data.get("name") != stem:
            raise refuse(
                "profile", f"name: must be the file's name, `{stem}`", field=Place(name, text, "profile").at("name")
            )
        if data.get("kind") == "task":
            task = decode_toml(text, _TaskFile, name, "profile", data)
            filter_file = {f"seccomp/{task.seccomp}.json": files.get(f"seccomp/{task.seccomp}.json", b"")}
            tasks[stem] = _task_profile(task, name, text, contents.archive({path: text, **filter_file}))
        elif data.get("kind") == "tool":
            tool = decode_toml(text, _ToolProfileFile, name, "profile", data)
            tools[stem] = _tool_profile(tool, name, text, contents.archive({path: text}))
        else:
            raise refuse("profile", 'kind: must be "task" or "tool"', field=Place(name, text, "profile").at("kind"))
    return tasks, tools


class _Fields:
    """Reads one table's values, naming file, line and key when one is wrong."""

    def __init__(self, place: Place, *section: str) -> None:
        self._place = place
        self._section = section

    def wrong(self, key: str, reason: str, next_step: str = "") -> RunnerError:
        path = (*self._section, key)
        return self._place.wrong(f"{'.'.join(path)}: {reason}", *path, next_step=next_step)

    def amount(self, key: str, value: T, parse: Callable[[T], int], least: int = 1) -> int:
        """`value` parsed, not below `least`, and small enough for every kernel interface it meets."""
        try:
            number = parse(value)
        except (ValueError, OverflowError) as error:
            raise self.wrong(key, str(error)) from None
        if not least <= number <= 1 << 46:
            raise self.wrong(key, f"{value} is less than the least that works, {least}, or absurdly large")
        return number


def _task_profile(task: _TaskFile, name: str, text: bytes, digest: str) -> TaskProfile:
    place, given = Place(name, text, "profile"), task.ceilings
    top, field = _Fields(place), _Fields(place, "ceilings")
    if not _IMAGE.match(task.image):
        raise top.wrong("image", "must be an image id (sha256:…) or a lower-case image name")
    if not task.tools:
        raise top.wrong("tools", "a task profile without tools allows nothing", "name at least one tool")
    ceilings = Ceilings(
        memory=field.amount("memory", given.memory, size, RESERVE),
        cpus_milli=field.amount("cpus", given.cpus, lambda cpus: round(cpus * 1000), 10),
        pids=field.amount("pids", given.pids, int, 8),
        workspace=field.amount("workspace", given.workspace, size, 1 << 20),
        workspace_inodes=field.amount("workspace_inodes", given.workspace_inodes, int, 64),
        tmp=field.amount("tmp", given.tmp, size, 64 << 10),
        shm=field.amount("shm", given.shm, size, 0),
        concurrent_calls=field.amount("concurrent_calls", given.concurrent_calls, int),
        open_files=field.amount("open_files", given.open_files, int, 32),
        file_size=field.amount("file_size", given.file_size, size),
        wall_ms=field.amount("wall", given.wall, milliseconds, 10),
        cpu_s=field.amount("cpu_time", given.cpu_time, _seconds),
        output=field.amount("output", given.output, size, 1024),
        output_rate=field.amount("output_rate", given.output_rate, size, 1024),
        result=field.amount("result", given.result, size, 1024),
    )
    on_disk = task.workspace_kind == "disk"
    needed = (0 if on_disk else ceilings.workspace) + ceilings.tmp + ceilings.shm + RESERVE
    if ceilings.memory < needed:
        least = amount_text(needed)
        what = "tmp + shm" if on_disk else "workspace + tmp + shm"
        reason = f"is less than {what} + {amount_text(RESERVE)} = {least}; tmpfs is charged to it"
        raise field.wrong("memory", reason, f"raise memory to {least} or lower the others")
    return TaskProfile(
        name=task.name,
        description=task.description,
        digest=digest,
        image=task.image,
        seccomp=task.seccomp,
        ceilings=ceilings,
        tools=task.tools,
        idle_timeout_s=top.amount("idle_timeout", task.idle_timeout, _seconds),
        runtime=task.runtime,
        accept=tuple(sorted(set(task.accept))),
        workspace_kind=task.workspace_kind,
        snapshot=task.snapshot,
        egress=compile_rules(task.egress, place),
        delivery=check_delivery(task.delivery, place),
        labels=check_labels(task.labels, place),
        files=compile_files(task.files, place),
        raw=task.raw if isinstance(task.raw, dict) else dict.fromkeys(get_args(Consequence), task.raw),
    )


def _tool_profile(tool: _ToolProfileFile, name: str, text: bytes, digest: str) -> ToolProfile:
    field = _Fields(Place(name, text, "profile"))
    for call in tool.seccomp_deny:
        if not _SYSCALL.match(call):
            raise field.wrong("seccomp_deny", f"`{call[:64]}` is not the name of a system call")
    return ToolProfile(
        name=tool.name,
        description=tool.description,
        digest=digest,
        isolation=tool.isolation,
        workspace=tool.workspace,
        tmp=tool.tmp,
        seccomp_deny=tool.seccomp_deny,
        wall_ms=field.amount("wall", tool.wall, milliseconds, 10) if tool.wall else 0,
        cpu_s=field.amount("cpu_time", tool.cpu_time, _seconds) if tool.cpu_time else 0,
        output=field.amount("output", tool.output, size, 1024) if tool.output else 0,
        open_files=field.amount("open_files", tool.open_files, int, 32) if tool.open_files else 0,
        file_size=field.amount("file_size", tool.file_size, size) if tool.file_size else 0,
    )


def _seconds(text: str) -> int:
    return -(-milliseconds(text) // 1000)


def amount_text(count: int) -> str:
    """A size as the files write it: in the largest unit that divides it."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return f"{count}B"
