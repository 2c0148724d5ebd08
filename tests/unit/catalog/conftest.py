"""A small whole catalogue on disk, in the format of the real folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runner.catalog import Catalog, compile_bundle, read_folders
from runner.errors import Refusal, RunnerError

FILTER = """\
{
  "defaultAction": "SCMP_ACT_ERRNO",
  "architectures": ["SCMP_ARCH_X86_64"],
  "groups": {
    "data": {"for": "Reading and writing.", "opens": "What is open already."},
    "sockets": {"for": "Talking.", "opens": "The receive paths."}
  },
  "syscalls": [
    {"group": "data", "comment": "bytes", "names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
    {"group": "sockets", "comment": "local ones", "names": ["socket"], "action": "SCMP_ACT_ALLOW",
     "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
    {"group": "sockets", "comment": "flags behind a pointer", "names": ["clone3"], "action": "SCMP_ACT_ERRNO",
     "errnoRet": 38}
  ]
}
"""
FILES = {
    "tools/count/tool.toml": """\
id = "count"
description = "Counts words."
consequence = "low"
profile = "narrow"
kind = "python"

[paths]
path = "read"

[parameters]
type = "object"
additionalProperties = false
required = ["path"]

[parameters.properties.path]
type = "string"

[parameters.properties.mode]
type = ["string", "null"]

[project]
mode = "String"
""",
    "tools/count/main.py": "def run(call):\n    return {}\n",
    "tools/sh/tool.toml": """\
id = "sh"
description = "Runs a program."
consequence = "high"
profile = "narrow"
kind = "argv"
argv = ["{argv}"]
stdin = true

[parameters]
type = "object"
additionalProperties = false
required = ["argv"]

[parameters.properties.argv]
type = "array"
minItems = 1
items = { type = "string" }
""",
    "profiles/base.toml": """\
name = "base"
kind = "task"
description = "A task."
image = "toolrunner/tools"
seccomp = "base"
tools = ["count", "sh"]
idle_timeout = "90s"

[ceilings]
memory = "128MiB"
cpus = 0.5
pids = 64
workspace = "32MiB"
tmp = "8MiB"
wall = "30s"
""",
    "profiles/narrow.toml": """\
name = "narrow"
kind = "tool"
description = "A call."
isolation = "call"
workspace = "read"
tmp = true
seccomp_deny = ["socket"]
wall = "1500ms"
cpu_time = "1500ms"
""",
    "profiles/seccomp/base.json": FILTER,
    "policies/base.cedar": '@id("all")\npermit(principal, action, resource);\n',
}


class Folders:
    """The files of a catalogue, to be changed by a test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for path, text in FILES.items():
            self.write(path, text)
        (root / "policies").mkdir(exist_ok=True)

    def write(self, path: str, text: str | bytes) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text if isinstance(text, bytes) else text.encode())
        return target

    def edit(self, path: str, old: str, new: str) -> None:
        text = (self.root / path).read_text()
        assert old in text, "the edit of a test must change something"
        self.write(path, text.replace(old, new, 1))

    def compile(self) -> Catalog:
        return compile_bundle(read_folders(self.root / "profiles", self.root / "tools", self.root / "policies"))

    def refusal(self) -> Refusal:
        with pytest.raises(RunnerError) as caught:
            self.compile()
        return caught.value.refused


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


@pytest.fixture
def make_folders(tmp_path: Path) -> Callable[[str], Folders]:
    return lambda name: Folders(tmp_path / name)
