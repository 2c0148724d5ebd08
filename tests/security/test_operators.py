"""admin.sock knows who asks: by uid or by a proven key, each within its roles, everybody else a stranger."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from house import Daemon

from runner.errors import RunnerError
from runner.ledger import entry as entries
from runner.token.keys import SigningKey, private_file
from runner.token.operator import sign_operator
from runner.wire import admin
from runner.wire.frame import Decoder, FrameReader, encode

pytestmark = pytest.mark.docker

GROUP = "nogroup"
KEYS = {name: SigningKey(name.encode().ljust(32, b".")) for name in ("carl", "eve")}
NOBODY, DEMO = pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("runner-demo").pw_uid
OPERATORS = f"""
[users]
operators_group = "{GROUP}"
[[operators]]
name = "ann"
uid = 0
roles = ["approver", "containment", "auditor", "policy-author"]
[[operators]]
name = "bob"
uid = "nobody"
roles = ["auditor"]
[[operators]]
name = "carl"
key = "{KEYS["carl"].public.jwk()["x"]}"
roles = ["containment"]
"""


def runner(
    daemon: Daemon, *command: str, user: str = "", key: str = "", group: bool = True
) -> subprocess.CompletedProcess[str]:
    """The command line, as a person at a terminal uses it: as another user, perhaps with a key of one's own."""
    account = pwd.getpwnam(user or "root")
    chosen: list[str] = []
    if key:
        file = daemon.place / f"{key}-{account.pw_uid}.key"
        if not file.exists():
            file.write_bytes(private_file(KEYS[key]))
            file.chmod(0o600)
            os.chown(file, account.pw_uid, account.pw_gid)
        chosen = ["--operator-key", str(file)]
    extra = [pwd.getpwnam("nobody").pw_gid] if group else []
    return subprocess.run(
        [sys.executable, "-m", "runner", *chosen, *command, "--socket", str(daemon.place / "run" / "admin.sock")],
        user=account.pw_uid, group=account.pw_gid if group else 12345, extra_groups=extra,
        capture_output=True, text=True, timeout=60, check=False, cwd="/",
    )  # fmt: skip


class Wire:
    """A connection to admin.sock, frame by frame."""

    def __init__(self, daemon: Daemon) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(daemon.place / "run" / "admin.sock"))
        self._decoder: Decoder[Any] = Decoder(admin.ToOperator, elements=4096, depth=8)
        self._reader = FrameReader(1 << 20)

    def ask(self, message: admin.FromOperator) -> Any:
        """The answer, None when the daemon hung up."""
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(encode(message))
            while data := self.sock.recv(65_536):
                for body in self._reader.feed(data):
                    return self._decoder.decode(body)
        return None

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def refusals(daemon: Daemon, uid: int, code: str) -> list[entries.Refusals]:
    """What was counted of this uid; refusals are written once a second."""
    found: list[entries.Refusals] = []

    def look() -> bool:
        found[:] = [each for each in daemon.entries(entries.Refusals) if (each.uid, each.code) == (uid, code)]
        return bool(found)

    daemon.wait(look, 15)
    return found


def test_root_is_the_operator_where_none_is_named(daemon: Daemon) -> None:
    who = daemon.ask(admin.Whoami())
    assert (who.name, who.uid, who.key) == ("root", 0, "")
    assert "containment" in who.roles
    assert (daemon.place / "run" / "admin.sock").stat().st_mode & 0o777 == 0o600
    handed = daemon.credentials(task="t-root")
    token = next(each for each in reversed(daemon.entries(entries.Token)) if each.who.task == "t-root")
    assert (token.by, token.operator) == (0, entries.Operator(name="root", uid=0))
    with daemon.connect(handed) as agent:
        assert agent.call("shell_run", {"argv": ["true"]}).ok
    refused = runner(daemon, "admin", "whoami", key="carl")  # a key that nobody is known by is not forgiven for root
    assert refused.returncode == 3
    assert "unauthenticated" in refused.stderr


def test_each_operator_is_known_and_held_to_its_roles(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config=OPERATORS)
    sock = (daemon.place / "run" / "admin.sock").stat()
    assert (sock.st_mode & 0o777, sock.st_uid, sock.st_gid) == (0o660, 0, pwd.getpwnam("nobody").pw_gid)
    with daemon.connect(task="t-1") as agent:
        assert agent.call("shell_run", {"argv": ["true"]}).ok
        # By uid: bob, an auditor. He sees tasks, and ends none.
        bob = json.loads(runner(daemon, "admin", "whoami", "--json", user="nobody").stdout)
        assert (bob["name"], bob["known_by"], bob["uid"], bob["roles"]) == ("bob", "uid", NOBODY, ["auditor"])
        assert "t-1" in runner(daemon, "task", "list", user="nobody").stdout
        refused = runner(daemon, "task", "end", "t-1", user="nobody")
        assert refused.returncode == 3
        for words in ("you are operator bob", f"uid {NOBODY}", "role containment", "ann, carl"):
            assert words in refused.stderr
        assert agent.call("shell_run", {"argv": ["true"]}).ok
        (counted,) = refusals(daemon, NOBODY, "denied")
        assert "operator bob" in counted.detail
        # By key: the same uid, but carl now, whose word counts.
        carl = json.loads(runner(daemon, "admin", "whoami", "--json", user="nobody", key="carl").stdout)
        assert (carl["name"], carl["key"]) == ("carl", KEYS["carl"].public.thumbprint)
        done = runner(daemon, "task", "end", "t-1", "--why", "enough", user="nobody", key="carl")
        assert done.returncode == 0, done.stderr
    (ended,) = daemon.entries(entries.TaskEnd)
    assert ended.operator == entries.Operator(name="carl", uid=NOBODY, key=KEYS["carl"].public.thumbprint)
    assert ended.by == NOBODY
    (token,) = daemon.entries(entries.Token)
    assert token.operator == entries.Operator(name="ann", uid=0)
    # Revoking names its operator as well.
    daemon.ask(admin.Revoke(kind="task", value="t-1", why="enough"))
    (revoked,) = daemon.entries(entries.Revoke)
    assert revoked.operator == entries.Operator(name="ann", uid=0)
    assert daemon.verifies()


def test_everybody_else_is_a_stranger(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config=OPERATORS)
    assert "not allowed to open" in runner(daemon, "admin", "whoami", user="runner-demo", group=False).stderr
    stranger = runner(daemon, "admin", "whoami", user="runner-demo")  # past the mode, and named by nobody
    assert stranger.returncode == 3
    assert f"uid {DEMO} is no operator" in stranger.stderr
    eve = runner(daemon, "admin", "whoami", user="runner-demo", key="eve")  # her key is her own, and nobody's here
    assert eve.returncode == 3
    assert "unauthenticated" in eve.stderr
    assert runner(daemon, "admin", "whoami", user="runner-demo", key="carl").returncode == 0  # the twin
    daemon.wait(lambda: sum(each.count for each in refusals(daemon, DEMO, "unauthenticated")) == 2, 15)
    assert all(each.detail.startswith("admin.sock: ") for each in refusals(daemon, DEMO, "unauthenticated"))


def test_a_proof_is_good_once_here_and_now(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config=OPERATORS)
    carl, eve = KEYS["carl"], KEYS["eve"]
    thumb = carl.public.thumbprint

    def prove(key: SigningKey, **change: str) -> Any:
        with Wire(daemon) as wire:
            challenge = wire.ask(admin.Hello())
            over = {"audience": challenge.audience, "nonce": challenge.nonce} | change
            proof = sign_operator(key, **over)
            answer = wire.ask(admin.Prove(key=thumb, proof=proof))
            if isinstance(answer, admin.Refused):
                assert wire.ask(admin.Whoami()) is None  # one attempt, and the connection is over
            else:
                assert wire.ask(admin.Whoami()).name == "carl"
                assert wire.ask(admin.Hello()).refusal.code == "protocol"
            used.append(proof)
            return answer

    used: list[str] = []
    assert prove(carl).name == "carl"
    for answer in (prove(eve), prove(carl, nonce="another"), prove(carl, audience="runner:another")):
        assert (answer.refusal.code, answer.refusal.reason) == (
            "unauthenticated",
            "the operator's proof was not accepted",
        )
    with Wire(daemon) as wire:  # what was accepted once is nothing on another connection
        wire.ask(admin.Hello())
        assert wire.ask(admin.Prove(key=thumb, proof=used[0])).refusal.code == "unauthenticated"
    with Wire(daemon) as wire:  # and nothing without a challenge
        assert wire.ask(admin.Prove(key=thumb, proof=used[0])).refusal.code == "protocol"
    daemon.wait(lambda: sum(each.count for each in refusals(daemon, 0, "unauthenticated")) == 4, 15)


def test_an_operator_that_was_taken_out_is_one_no_longer(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config=OPERATORS)
    config: Path = daemon.place / "runner.toml"
    with Wire(daemon) as wire, Wire(daemon) as other:
        challenge = wire.ask(admin.Hello())
        proof = sign_operator(KEYS["carl"], audience=challenge.audience, nonce=challenge.nonce)
        assert wire.ask(admin.Prove(key=KEYS["carl"].public.thumbprint, proof=proof)).name == "carl"
        assert other.ask(admin.Whoami()).name == "ann"
        config.write_text(config.read_text().replace(KEYS["carl"].public.jwk()["x"], KEYS["eve"].public.jwk()["x"]))
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.wait(lambda: "is in force" in daemon.said(), 30)
        assert wire.ask(admin.ListTasks()).refusal.code == "unauthenticated"
        assert other.ask(admin.Whoami()).name == "ann"  # the twin
    assert runner(daemon, "admin", "whoami", key="carl").returncode == 3
    assert "carl" in runner(daemon, "admin", "whoami", key="eve").stdout


def test_a_configuration_that_locks_everybody_out_does_not_start(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(start=False, config='[[operators]]\nname = "bob"\nuid = "nobody"\nroles = ["auditor"]\n')
    with pytest.raises(AssertionError):
        daemon.start()
    assert "operators.bob.uid" in daemon.said()
    assert "operators_group" in daemon.said()
    with pytest.raises(RunnerError):
        daemon.ask(admin.Whoami())
