"""`runner exec`: who the agent becomes, what it inherits, and what it does not."""

from __future__ import annotations

import grp
import json
import os
import pwd
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from runner.cli import execute
from runner.config import Limits
from runner.errors import RunnerError, refusal
from runner.token.claims import verify_chain
from runner.token.credentials import parse
from runner.token.keys import SigningKey, private_file, public_file
from runner.wire import admin
from runner.wire.frame import Decoder, FrameReader, encode

ISSUER = "https://issuer.test"
KEY = SigningKey(b"k" * 32)
NOBODY = pwd.getpwnam("nobody")
AGENT = """
import json, os, sys
fd = int(os.environ["RUNNER_CREDENTIALS_FD"])
print(json.dumps({
    "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(), "argv": sys.argv,
    "fds": sorted(int(n) for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")),
    "credentials": os.pread(fd, 1 << 20, 0).decode(), "again": len(os.pread(fd, 1 << 20, 0)),
    "environ": dict(os.environ), "seals": __import__("fcntl").fcntl(fd, 1034),
    "parent": open("/proc/self/cmdline").read(),
}))
"""


class Admin:
    """An admin socket that acknowledges what is announced, or refuses it."""

    def __init__(self, path: Path) -> None:
        self.heard: list[Any] = []
        self.answer: Any = admin.Done(position=1)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        decoder: Decoder[Any] = Decoder(admin.FromOperator, elements=1000, depth=8)
        while True:
            connection, _ = self._socket.accept()
            with connection:
                reader = FrameReader(1 << 16)
                while data := connection.recv(1 << 16):
                    for body in reader.feed(data):
                        self.heard.append(decoder.decode(body))
                        connection.sendall(encode(self.answer))
                    if self.heard:
                        break
                else:
                    return

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self._socket.getsockname())
        self._thread.join(10)
        self._socket.close()


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[tuple[Path, Admin]]:
    """A configuration with its issuer's keys, and an admin socket beside it."""
    (tmp_path / "issuer.key").write_bytes(private_file(KEY, ISSUER))
    (tmp_path / "issuer.key").chmod(0o600)
    (tmp_path / "issuer.pub").write_bytes(public_file(KEY.public, ISSUER))
    config = tmp_path / "runner.toml"
    me = pwd.getpwuid(os.geteuid()).pw_name
    config.write_text(
        f'run = "."\n[peers]\nagents = ["nobody", "{me}"]\n[users]\n'
        f'agents_group = "{grp.getgrgid(NOBODY.pw_gid).gr_name}"\n'
        f'[[issuers]]\nuri = "{ISSUER}"\npublic_key = "issuer.pub"\n'
    )
    server = Admin(tmp_path / "admin.sock")
    yield config, server
    server.close()


def run(config: Path, *args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    code = "import typer; from runner.cli.execute import execute; typer.run(execute)"
    return subprocess.run(
        [sys.executable, "-c", code, "--config", str(config), "--agent", "a", "--task", "t-1", *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        **more,
    )


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_agent_gets_one_descriptor_and_nothing_else(setup: tuple[Path, Admin]) -> None:
    config, server = setup
    read, write = os.pipe()
    grant = 'fs_read={"path":{"constraint_type":"exact","value":"a"}}'
    args = ("--owner", "ann", "--ttl", "10m", "--user", "nobody", "--allow", "fs_list", "--allow", grant)
    done = run(config, *args, "--", "/usr/bin/python3", "-c", AGENT, "--looks-like=an option", pass_fds=(read, write))
    os.close(read)
    os.close(write)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["uid"] == [NOBODY.pw_uid] * 3
    assert seen["gid"] == [NOBODY.pw_gid] * 3
    assert seen["groups"] == sorted({NOBODY.pw_gid, *os.getgrouplist("nobody", NOBODY.pw_gid)})
    assert seen["argv"][1:] == ["--looks-like=an option"]
    assert (seen["environ"]["USER"], seen["environ"]["HOME"]) == ("nobody", NOBODY.pw_dir)
    descriptor = int(seen["environ"]["RUNNER_CREDENTIALS_FD"])
    assert seen["fds"] == [0, 1, 2, descriptor]
    assert seen["seals"] == 0b1111  # nobody can change what others read
    handed = parse(seen["credentials"].encode())
    assert seen["again"] == len(seen["credentials"])
    for secret in (handed.key, handed.chain[0]):
        assert secret not in seen["parent"]
        assert secret not in json.dumps(seen["environ"])
    verified = verify_chain(handed.chain, {ISSUER: (KEY.public,)}, time.time(), "", Limits())
    assert (verified.principal.agent, verified.principal.owner, verified.principal.task) == ("a", "ann", "t-1")
    assert verified.tools == {"fs_list": {}, "fs_read": {"path": {"constraint_type": "exact", "value": "a"}}}
    assert verified.leaf_key == handed.signing_key().public
    assert handed.socket == str(config.parent / "agent.sock")
    (announced,) = server.heard
    assert (announced.jti, announced.digest) == (verified.root_jti, verified.root_digest)
    assert announced.expires - announced.issued == 600


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_announcement_that_is_refused_starts_nothing(setup: tuple[Path, Admin]) -> None:
    config, server = setup
    server.answer = admin.Refused(refusal=refusal("task_ended", "that task is over"))
    done = run(config, "--user", "nobody", "--allow", "x", "--", "/bin/echo", "started")
    assert done.returncode != 0
    assert "that task is over" in done.stderr
    assert "started" not in done.stdout


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_agents_signals_are_as_a_shell_would_leave_them(setup: tuple[Path, Admin]) -> None:
    config, _ = setup
    done = run(config, "--user", "nobody", "--allow", "x", "--", "/bin/grep", "SigIgn", "/proc/self/status")
    assert int(done.stdout.split()[1], 16) & (1 << 12) == 0, "SIGPIPE is ignored"


app = typer.Typer()
app.command()(execute.execute)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--allow", "x", "--user", "no-such-user"], "no user `no-such-user`"),
        (["--allow", "x", "--user", "root"], "root may not be"),
        (["--allow", "x=1", "--user", "nobody"], "not a JSON object"),
        (["--allow", 'x={"a":1,"a":2}', "--user", "nobody"], "not JSON"),
        (["--allow", "x", "--user", "nobody", "--ttl", "soon"], "is not a time"),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="the messages are root's")
def test_a_wrong_command_line_is_explained_before_anything_is_minted(
    setup: tuple[Path, Admin], args: list[str], said: str
) -> None:
    config, server = setup
    done = CliRunner().invoke(app, ["--config", str(config), "--agent", "a", "--task", "t", *args, "--", "/bin/true"])
    assert done.exit_code == 2, done.exception
    assert said in " ".join(done.output.replace("│", " ").split())
    assert not server.heard


@pytest.mark.skipif(os.geteuid() != 0, reason="root must name a user")
def test_root_is_never_an_agent(setup: tuple[Path, Admin]) -> None:
    config, server = setup
    base = ["--config", str(config), "--agent", "a", "--task", "t", "--allow", "x"]
    done = CliRunner().invoke(app, [*base, "--", "/bin/true"])
    assert done.exit_code == 2
    assert "name the user it runs as" in " ".join(done.output.replace("│", " ").split())
    missing = CliRunner().invoke(app, [*base, "--user", "nobody", "--", "/no/such/command"])
    assert missing.exit_code == 2
    assert not server.heard


@pytest.mark.skipif(os.geteuid() != 0, reason="the messages are root's")
def test_what_the_daemon_would_refuse_is_said_at_once(setup: tuple[Path, Admin]) -> None:
    config, server = setup
    base = ["--agent", "a", "--task", "t", "--allow", "x", "--user", "nobody", "--", "/bin/true"]
    text = config.read_text()
    for changed, code in (
        (text.replace('"nobody", ', ""), "config"),
        (text.replace('public_key = "issuer.pub"', 'public_key = "other.pub"'), "key"),
        (text.replace("agents_group = ", 'agents_group = "no-such-group"\n# '), "host"),
        (text.replace("run =", "ran ="), "config"),
    ):
        config.write_text(changed)
        done = CliRunner().invoke(app, ["--config", str(config), *base])
        assert isinstance(done.exception, RunnerError), done.output
        assert done.exception.refused.code == code
        assert done.exception.refused.next_step
    config.write_text(text)
    (config.parent / "issuer.key").chmod(0o644)
    done = CliRunner().invoke(app, ["--config", str(config), *base])
    assert isinstance(done.exception, RunnerError)
    assert "chmod 600" in done.exception.refused.next_step
    assert not server.heard


def test_a_tool_is_named_once_with_either_sign_before_its_map() -> None:
    text = '{"path":{"constraint_type":"exact","value":"a=b:c"}}'
    named = execute.once([execute.parse_allow(f"fs_read={text}"), execute.parse_allow("fs_list")])
    assert named == execute.once([execute.parse_allow(f"fs_read:{text}"), execute.parse_allow("fs_list")])
    assert named == {"fs_read": json.loads(text), "fs_list": {}}
    for twice in (["fs_read", f"fs_read={text}"], [f"fs_read={text}", "fs_read"], ["fs_read"] * 2):
        with pytest.raises(typer.BadParameter, match="named twice"):
            execute.once(map(execute.parse_allow, twice))


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("1h", 3600), ("500ms", 1)])
def test_a_time_to_live_is_at_least_a_second(text: str, seconds: int) -> None:
    assert execute.seconds(text) == seconds
    with pytest.raises(typer.BadParameter):
        execute.seconds("0" + text.lstrip("0123456789"))
