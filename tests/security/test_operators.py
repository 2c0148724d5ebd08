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
from house import ISSUER, Daemon

from runner.cli.init import lay_out
from runner.client.errors import CallError
from runner.errors import RunnerError
from runner.ledger import entry as entries
from runner.token.keys import SigningKey, private_file, public_file
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
    for command in ("status", "task list", "token revoke --everything --why x", "trace hold x --why x", "admin whoami"):
        closed = runner(daemon, *command.split(), user="runner-demo", group=False)
        assert closed.returncode == 4, closed.stderr
        assert "not allowed to open" in closed.stderr
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


def test_a_refused_reload_is_an_entry(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    lay_out(tmp_path / "catalogue")
    daemon = make_daemon(catalogue=tmp_path / "catalogue")
    before = daemon.ask(admin.Status())
    policy, config = tmp_path / "catalogue/policies/base.cedar", daemon.place / "runner.toml"
    good = policy.read_text(), config.read_text()

    def hangup(count: int) -> None:
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.wait(lambda: len(daemon.entries(entries.RefusedReload)) == count, 30)

    policy.write_text(good[0] + "\npermit (principal, action, resource) when { nonsense };\n")
    hangup(1)
    refused = runner(daemon, "admin", "reload", "--why", "a try")
    assert refused.returncode == 5
    policy.write_text(good[0])
    config.write_text(good[1] + "\nunheard_of = 1\n")
    hangup(3)
    one, two, three = daemon.entries(entries.RefusedReload)
    assert (one.by, one.operator, two.by, two.operator) == (-1, None, 0, entries.Operator(name="root", uid=0))
    assert (one.code, two.code, three.code, two.why) == ("policy", "policy", "config", "a try")
    assert one.offered == two.offered  # of the same files
    assert len(one.offered) == 64
    assert one.offered != before.catalogue
    assert three.offered == ""
    assert "nonsense" in one.reason + one.field
    assert "runner.toml" in three.field
    config.write_text(good[1])
    assert daemon.ask(admin.Status()).catalogue == before.catalogue
    assert daemon.ask(admin.Reload()).position  # the twin: nothing was wrong with these
    assert len(daemon.entries(entries.RefusedReload)) == 3
    said = subprocess.run(
        [sys.executable, "-m", "runner", "admin", "log", "--state", str(daemon.state), "--kind", "refused_reload"],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert f"host (its process): catalogue {one.offered[:16]} refused, policy: " in said
    assert "root (uid 0): catalogue" in said
    assert "files that could not be read whole refused, config: " in said
    assert daemon.verifies()


# --- a second person ------------------------------------------------------------------------------------

TWO = (
    f'[users]\noperators_group = "{GROUP}"\n'
    '[[operators]]\nname = "ann"\nuid = 0\nroles = ["approver", "containment", "auditor", "policy-author"]\n'
    '[[operators]]\nname = "bob"\nuid = "nobody"\nroles = ["policy-author"]\n'
    f'[[operators]]\nname = "carl"\nkey = "{KEYS["carl"].public.jwk()["x"]}"\nroles = ["auditor"]\n'
)
PERMIT, NARROWED = 'permit (principal, action in [Action::"shell_run", ', "permit (principal, action in ["


@pytest.fixture
def guarded(make_daemon: Callable[..., Daemon], tmp_path: Path) -> Callable[..., tuple[Daemon, Path]]:
    """Daemons whose policy takes two operators, and their policy file."""

    def make(config: str = "", *, acts: str = '"activate-policy"') -> tuple[Daemon, Path]:
        lay_out(tmp_path / "catalogue")
        daemon = make_daemon(start=False, catalogue=tmp_path / "catalogue", config=TWO + config)
        file = daemon.place / "runner.toml"
        file.write_text(f"two_person = [{acts}]\n" + file.read_text())
        daemon.start()
        return daemon, tmp_path / "catalogue/policies/base.cedar"

    return make


def confirm(daemon: Daemon, id_: str, user: str = "nobody", key: str = "") -> subprocess.CompletedProcess[str]:
    return runner(daemon, "admin", "confirm", id_, user=user, key=key)


def test_activating_policy_takes_two(guarded: Callable[..., tuple[Daemon, Path]]) -> None:
    daemon, policy = guarded()
    first = daemon.ask(admin.Status())
    old = policy.read_text()
    new = old.replace(PERMIT, NARROWED, 1)
    assert new != old

    def shell() -> bool:
        with daemon.connect() as agent:
            try:
                return agent.call("shell_run", {"argv": ["true"]}).ok
            except CallError as error:
                if error.code != "denied":
                    raise
                return False

    # A signal names nobody, so it cannot be the first of two.
    policy.write_text(new)
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait(lambda: "takes two operators" in daemon.said(), 30)
    daemon.wait(lambda: daemon.entries(entries.RefusedReload), 30)
    # Ann asks; it waits, and nothing has changed.
    asked = json.loads(runner(daemon, "admin", "reload", "--why", "no shell", "--json").stdout)
    assert (asked["state"], asked["changes"], asked["can"]) == ("waits", ["policies/base.cedar"], ["bob"])
    (pending,) = daemon.entries(entries.Pending)
    assert (pending.operator, pending.why) == (entries.Operator(name="ann", uid=0), "no shell")
    assert daemon.ask(admin.Status()).policy == first.policy
    assert shell()
    # Not by herself, not by one without the role, not once it was altered.
    own = confirm(daemon, pending.id, "root")
    assert own.returncode == 3
    assert "you are ann, who asked for it" in own.stderr
    assert "role policy-author" in confirm(daemon, pending.id, key="carl").stderr
    policy.write_text(new + "\n// and one thing more\n")
    altered = confirm(daemon, pending.id)
    assert altered.returncode == 3
    assert "altered since" in altered.stderr
    assert daemon.ask(admin.Status()).policy == first.policy
    by_signal, by_two = daemon.entries(entries.RefusedReload)  # and none of what waits
    assert (by_signal.operator, by_signal.code) == (None, "denied")
    assert (by_two.operator, by_two.confirmed) == (pending.operator, entries.Operator(name="bob", uid=NOBODY))
    assert (by_two.pending, by_two.code) == (pending.id, "conflict")
    # It survives a restart, of which the old files are in force again.
    policy.write_text(old)
    assert daemon.stop() == 0
    daemon.start()
    assert pending.id in runner(daemon, "admin", "pending").stdout
    policy.write_text(new)
    assert shell()
    done = confirm(daemon, pending.id)
    assert done.returncode == 0, done.stderr
    assert not shell()
    (swap,) = daemon.entries(entries.Reload)
    assert (swap.operator, swap.confirmed) == (
        entries.Operator(name="ann", uid=0),
        entries.Operator(name="bob", uid=NOBODY),
    )
    assert (swap.pending, swap.before, swap.after) == (pending.id, pending.before, pending.after)
    assert "nothing waits" in confirm(daemon, pending.id).stderr
    assert runner(daemon, "admin", "pending").stdout == ""
    said = subprocess.run(
        [sys.executable, "-m", "runner", "admin", "log", "--state", str(daemon.state), "--diff"],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert f"{pending.id} confirmed by bob (uid {NOBODY})" in said
    assert "    -" + next(line for line in old.splitlines() if PERMIT in line) in said
    assert daemon.verifies()


def test_what_decides_who_decides_takes_two_as_well(
    guarded: Callable[..., tuple[Daemon, Path]], tmp_path: Path
) -> None:
    daemon, _ = guarded()
    config: Path = daemon.place / "runner.toml"
    whole = config.read_text()
    roots = SigningKey(b"r" * 32)
    for change in (
        ("two_person = [", "two_person = [] #"),
        ('uid = "nobody"', 'uid = "runner-demo"'),
        ("[[issuers]]", "[policy]\nrequire_signature = false\npublic_keys = ['issuer.pub']\n[[issuers]]"),
    ):
        assert change[0] in whole
        config.write_text(whole.replace(*change))
        asked = runner(daemon, "admin", "reload", "--json")
        assert json.loads(asked.stdout)["state"] == "waits", change
    config.write_text(whole)
    key = daemon.place / "issuer.pub"
    kept = key.read_bytes()
    key.write_bytes(public_file(roots.public, ISSUER))  # not a byte of the catalogue differs
    asked = runner(daemon, "admin", "reload", "--json")
    waits = json.loads(asked.stdout)
    assert (waits["state"], waits["before"]) == ("waits", waits["after"])
    # Whoever confirms is told which key, since no catalogue and so no difference of two holds it.
    assert f"an issuer's key that it adds: {roots.public.thumbprint}" in waits["changes"]
    assert f"an issuer's key that it retires: {daemon.issuer.public.thumbprint}" in waits["changes"]
    key.write_bytes(kept)
    # The twin: a tool's text is one operator's to change, and the entry says whose act it was.
    manifest = tmp_path / "catalogue/tools/shell_run/tool.toml"
    manifest.write_text(manifest.read_text() + "\n# a remark\n")
    assert json.loads(runner(daemon, "admin", "reload", "--why", "words", "--json").stdout)["state"] == "in force"
    (swap,) = daemon.entries(entries.Reload)
    assert (swap.operator, swap.confirmed, swap.why) == (entries.Operator(name="ann", uid=0), None, "words")
    assert daemon.verifies()


def test_releasing_takes_two(guarded: Callable[..., tuple[Daemon, Path]]) -> None:
    daemon, _ = guarded(
        "[[operators]]\nname = 'dora'\nuid = 'runner-demo'\nroles = ['containment']\n", acts='"release"'
    )
    agent = {"agent": "a-closed", "task": "t-1"}
    old = daemon.credentials(**agent)
    closed = runner(
        daemon, "token", "revoke", "--agent", "a-closed", "--until-released", "--why", "odd calls", "--json"
    )
    assert json.loads(closed.stdout)["until"] == "runner token release --agent a-closed"
    release = ("token", "release", "--agent", "a-closed", "--why", "the prompt was mended")
    # Not by one without the role; by one with it, it waits, and nothing is open.
    assert "role containment" in runner(daemon, *release, user="nobody").stderr
    asked = json.loads(runner(daemon, *release, "--json").stdout)
    assert (asked["state"], asked["act"], asked["can"]) == ("waits", "release", ["dora"])
    mint = ("token", "mint", "--agent", "a-closed", "--owner", "o", "--task", "t-2", "--tool", "shell_run")
    mint += ("--key", str(daemon.place / "issuer.key"))
    mint += ("--holder-key", str(daemon.place / "h"), "--out", str(daemon.place / "t"))
    refused = runner(daemon, *mint)
    assert refused.returncode == 3
    assert "runner token release --agent a-closed" in refused.stderr
    assert not (daemon.place / "t").exists()
    # Not by herself; not by bob, who may do other things; and not what has been closed again since.
    assert "you are ann, who asked" in confirm(daemon, asked["id"], "root").stderr
    assert "role containment" in confirm(daemon, asked["id"]).stderr
    daemon.ask(admin.Revoke(kind="agent", value="a-closed", why="again", until_released=True))
    again = confirm(daemon, asked["id"], "runner-demo")
    assert again.returncode == 3
    assert "has revoked it again since ann asked" in again.stderr
    gone = runner(daemon, "admin", "withdraw", asked["id"], "--why", "stale", user="nobody")
    assert "may not `withdraw release`" in gone.stderr
    assert runner(daemon, "admin", "withdraw", asked["id"], "--why", "stale").returncode == 0
    asked = json.loads(runner(daemon, *release, "--json").stdout)
    daemon.stop(signal.SIGKILL)
    daemon.start()
    assert asked["id"] in runner(daemon, "admin", "pending").stdout
    assert "a-closed" in runner(daemon, "status").stdout
    assert confirm(daemon, asked["id"], "runner-demo").returncode == 0
    (entry,) = daemon.entries(entries.Reopen)
    assert (entry.operator, entry.confirmed) == (
        entries.Operator(name="ann", uid=0),
        entries.Operator(name="dora", uid=DEMO),
    )
    assert runner(daemon, *mint).returncode == 0
    with daemon.connect(**agent | {"task": "t-3"}) as later:
        assert later.call("shell_run", {"argv": ["true"]}).ok
    with pytest.raises(CallError) as dead:
        daemon.connect(old)
    assert dead.value.code == "revoked"
    # One alone does not take the second person out either.
    config = daemon.place / "runner.toml"
    config.write_text(config.read_text().replace("two_person", "# two_person", 1))
    assert json.loads(runner(daemon, "admin", "reload", "--json").stdout)["state"] == "waits"
    said = subprocess.run(
        [sys.executable, "-m", "runner", "admin", "log", "--state", str(daemon.state), "--kind", "reopen"],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    for words in ("ann (uid 0): agent a-closed", f"confirmed by dora (uid {DEMO})", "closed at", "-> open", "mended"):
        assert words in said
    assert daemon.verifies()


def test_what_waits_expires(guarded: Callable[..., tuple[Daemon, Path]]) -> None:
    daemon, policy = guarded("[limits]\npending_act_s = 1\n")
    policy.write_text(policy.read_text().replace(PERMIT, NARROWED, 1))
    waits = daemon.ask(admin.Reload())
    assert isinstance(waits, admin.Waits)
    daemon.wait(lambda: not daemon.ask(admin.ListPending()).acts, 20)
    late = confirm(daemon, waits.act.id)
    assert late.returncode == 3
    assert "expired" in late.stderr
    assert daemon.entries(entries.Reload) == []
