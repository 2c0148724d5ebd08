"""A sub-agent's credentials from its parent's: what is not asked stays narrow, what is wider is named."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from runner.cli import token
from runner.client import CallError, Credentials, attenuate, descriptor
from runner.config import Limits
from runner.token import credentials as handed
from runner.token.claims import VerifiedChain, verify_chain
from runner.token.issue import mint_root
from runner.token.keys import SigningKey

RUN = CliRunner()
ISSUER, HOLDER = SigningKey(b"\1" * 32), SigningKey(b"\2" * 32)
NOW = 1_800_000_000
UNDER_SRC = {"constraint_type": "path_containment", "root": "/workspace/src"}
DEEPER = {"constraint_type": "path_containment", "root": "/workspace/src/a"}
FEW = {"constraint_type": "range", "max": 100, "optional": True}
TOOLS: dict[str, Any] = {"fs_read": {"path": UNDER_SRC, "limit": FEW}, "fs_list": {}, "shell_run": {}}


def held(*, depth: int = 3, now: int = NOW, ttl: int = 3600) -> Credentials:
    root = mint_root(
        issuer="https://i.example", key=ISSUER, holder=HOLDER.public, agent="boss", owner="ann", task="t-1",
        session="s-1", profile="default", tools=TOOLS, now=now, expires=now + ttl, jti="root", depth=depth,
    )  # fmt: skip
    return handed.credentials((root,), HOLDER, "/run/agent.sock")


def verified(given: Credentials, now: int = NOW) -> VerifiedChain:
    return verify_chain(given.chain, {"https://i.example": (ISSUER.public,)}, now, "d", Limits())


def test_three_levels() -> None:
    first = attenuate(["fs_read", "fs_list"], agent="lead", ttl_s=600, depth=1, credentials=held(), now=NOW)
    second = attenuate({"fs_read": {"path": DEEPER}}, agent="worker", credentials=first, now=NOW)
    for given, names, tools in (
        (first, ("lead",), {"fs_read": TOOLS["fs_read"], "fs_list": {}}),
        (second, ("lead", "worker"), {"fs_read": {"path": DEEPER, "limit": FEW}}),
    ):
        seen = verified(given)
        assert seen.tools == tools
        assert seen.principal.asserted == names
        assert (seen.principal.agent, seen.principal.owner, seen.principal.task) == ("boss", "ann", "t-1")
        assert seen.expires == NOW + 600
        assert given.socket == "/run/agent.sock"
    keys = {given.signing_key().public for given in (held(), first, second)}
    assert len(keys) == 3  # a parent's key signs nothing for its child
    with pytest.raises(CallError, match="any further"):
        attenuate(["fs_read"], credentials=second, now=NOW)


def test_what_is_not_asked_stays_and_what_is_null_goes() -> None:
    made = attenuate({"fs_read": {"limit": None}, "shell_run": {"argv": FEW}}, credentials=held(), now=NOW)
    assert verified(made).tools == {"fs_read": {"path": UNDER_SRC}, "shell_run": {"argv": FEW}}
    assert verified(attenuate("fs_read", credentials=held(), now=NOW)).tools == {"fs_read": TOOLS["fs_read"]}
    assert verified(attenuate([], credentials=held(), now=NOW)).tools == {}


@pytest.mark.parametrize(
    ("wish", "options", "field", "allowed"),
    [
        (["fs_write"], {}, "fs_write", "fs_list, fs_read, shell_run"),
        (
            {"fs_read": {"path": {**UNDER_SRC, "root": "/"}}},
            {},
            "fs_read.path",
            "a path within /workspace/src",
        ),
        ({"fs_read": {"path": None}}, {}, "fs_read.path", "a path within /workspace/src"),
        ({"fs_read": {"path": {**DEEPER, "optional": True}}}, {}, "fs_read.path", "a path within /workspace/src"),
        ({"fs_read": {"limit": {**FEW, "max": 101}}}, {}, "fs_read.limit", "at most 100"),
        ({"fs_read": {"mode": FEW}}, {}, "fs_read.mode", "limit, path"),
        ({"fs_read": {"*": {"constraint_type": "wildcard"}}}, {}, "fs_read.*", "limit, path"),
        (["fs_list"], {"ttl_s": 3601}, "ttl", "3600 s"),
        (["fs_list"], {"ttl_s": 0}, "ttl", "3600 s"),
        (["fs_list"], {"depth": 3}, "depth", "2 more"),
        (["fs_list"], {"depth": -1}, "depth", "2 more"),
        (["fs_list"], {"now": NOW + 3600}, "ttl", ""),
        (["fs_list"], {"agent": "../x"}, "", ""),
        (["FS"], {}, "", ""),
        ({"fs_list": {"*": None}}, {}, "fs_list", ""),
        ({"shell_run": {"argv": None, "stdin": None}}, {}, "shell_run", ""),
        ({"fs_read": {"path": {"constraint_type": "regex", "pattern": "."}}}, {}, "", ""),
    ],
)
def test_a_wish_for_more_is_told_where_and_what_would_do(
    wish: Any, options: dict[str, Any], field: str, allowed: str
) -> None:
    with pytest.raises(CallError) as caught:
        attenuate(wish, **({"credentials": held(), "now": NOW} | options))
    said = caught.value.refused
    assert (said.code, said.field) == ("token", field)
    assert allowed in said.allowed
    assert said.next_step


def test_a_holder_that_is_not_ours_is_not_derived_from() -> None:
    stolen = handed.credentials(held().chain, SigningKey(b"\3" * 32), "")
    with pytest.raises(CallError, match="not the parent's holder key"):
        attenuate(["fs_list"], credentials=stolen, now=NOW)


def test_a_descriptor_is_sealed_and_inherited() -> None:
    made = attenuate(["fs_list"], credentials=held(), now=NOW)
    number = descriptor(made)
    try:
        assert fcntl.fcntl(number, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
        code = f"import os,sys; sys.stdout.buffer.write(os.pread({number}, 1 << 20, 0))"
        read = subprocess.run([sys.executable, "-c", code], pass_fds=[number], capture_output=True, check=True)
        assert handed.parse(read.stdout) == made
    finally:
        os.close(number)


# --- the shell --------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    import time

    path = tmp_path / "mine.cred"
    path.write_bytes(handed.encode(held(now=int(time.time()))))
    path.chmod(0o600)
    return path


def invoke(*words: str, **options: Any) -> Any:
    return RUN.invoke(token.app, ["attenuate", *words], **options)


def test_from_a_file_to_a_file(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "sub.cred"
    narrow = "fs_read:" + json.dumps({"path": DEEPER, "limit": None})
    words = ["--tool", narrow, "--tool", "fs_list", "--agent", "sub", "--ttl", "5m", "--depth", "1"]
    done = invoke(*words, "--from", str(source), "--out", str(out), "--json")
    assert done.exit_code == 0, done.output
    assert out.stat().st_mode & 0o777 == 0o600
    made = handed.parse(out.read_bytes())
    facts = json.loads(done.stdout)
    assert (facts["agent"], facts["tools"], facts["depth"], facts["further"]) == ("sub", ["fs_list", "fs_read"], 1, 1)
    secrets = [*made.chain, made.key, made.leaf.rpartition(".")[2]]
    assert not [text for text in secrets if text in done.output]
    seen = RUN.invoke(token.app, ["inspect", str(out), "--json"])  # what a holder may look at: claims, no text
    assert [one["claims"]["del_depth"] for one in json.loads(seen.stdout)["tokens"]] == [0, 1]
    assert not [text for text in secrets if text in seen.output]
    again = invoke(*words, "--from", str(source), "--out", str(out))
    assert "never overwritten" in str(again.exception)
    assert handed.parse(out.read_bytes()) == made


def test_an_open_file_is_no_place_for_credentials(source: Path, tmp_path: Path) -> None:
    source.chmod(0o640)
    done = invoke("--tool", "fs_list", "--from", str(source), "--out", str(tmp_path / "x"))
    assert "others may read it" in str(done.exception)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "where",
    [
        [], ["--out", "x", "--out-fd", "1"], ["--out-fd", "999"], ["--out", "x", "--", "true"],
        ["--out-fd", "1", "--ttl", "x"], ["--out-fd", "1", "--ttl", "0s"],
        ["--out-fd", "1", "--tool", 'fs_list:{"path":{"constraint_type":"exact","value":"x"}}'],  # named twice
    ],
)  # fmt: skip
def test_usage(source: Path, where: list[str]) -> None:
    assert invoke("--tool", "fs_list", "--from", str(source), *where).exit_code == 2


def runner(*words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "runner", "token", "attenuate", *words], timeout=60, **options)


def test_a_descriptor_that_cannot_be_written_is_said(source: Path) -> None:
    with source.open("rb") as closed:
        done = invoke("--tool", "fs_list", "--from", str(source), "--out-fd", str(closed.fileno()))
    assert done.exit_code == 2, done.exception
    assert "takes no credentials" in done.output


def test_pipes_and_descriptors(source: Path) -> None:
    """`-` in, descriptor 1 out: what is said to the person goes to stderr."""
    with source.open("rb") as piped:
        done = runner("--tool", "fs_list", "--from", "-", "--out-fd", "1", stdin=piped, capture_output=True, check=True)
    made = handed.parse(done.stdout)
    assert set(verified(made, now=int(held_now(made))).tools) == {"fs_list"}
    assert b"fs_list" in done.stderr
    assert made.key.encode() not in done.stderr


def held_now(made: Credentials) -> float:
    from runner.token.issue import own_claims

    return own_claims(made.leaf).iat


def test_a_command_gets_the_narrower_credentials_and_no_other_descriptor(source: Path) -> None:
    """The parent's own descriptor is open while the command is started, and named in its environment."""
    code = (
        "import json, os; n = int(os.environ['RUNNER_CREDENTIALS_FD']);"
        "print(json.dumps([n, os.pread(n, 1 << 20, 0).decode(), os.listdir('/proc/self/fd')]))"
    )
    with source.open("rb") as mine:
        environment = {**os.environ, "RUNNER_CREDENTIALS_FD": str(mine.fileno())}
        done = runner(
            "--tool", "fs_list", "--agent", "sub", "--", sys.executable, "-c", code,
            env=environment, pass_fds=[mine.fileno()], capture_output=True, check=True,
        )  # fmt: skip
    number, text, names = json.loads(done.stdout)
    made = handed.parse(text.encode())
    assert len(made.chain) == 2
    assert {int(name) for name in names} - {0, 1, 2, number} <= {max(int(name) for name in names)}  # listdir's own
    parent = handed.parse(source.read_bytes())
    assert made.key != parent.key
    assert parent.key not in text
