"""What a receipt must hold, on a real daemon: AARM R5 and R6 (aarm-dev/docs, conformance/requirements.mdx), field by
field, and the process that called, by what engine saw of it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from house import Daemon

from runner.client import CallError
from runner.evidence.content import SALT, ContentReader
from runner.ledger import entry as entries
from runner.ledger.schema import schema
from runner.token import credentials
from runner.token.issue import derive
from runner.token.keys import SigningKey, generate

ECHO = {"argv": ["/bin/echo", "x"]}


def handed_on(handed: bytes, *names: str) -> bytes:
    """Credentials that holder after holder derived for the next."""
    parsed = credentials.parse(handed)
    for number, name in enumerate(names):
        holder = SigningKey(generate())
        token = derive(
            parsed.leaf, parsed.signing_key(), holder=holder.public, tools={"shell_run": {}},
            now=int(time.time()),
            jti=f"derived-{number}-{os.urandom(4).hex()}", agent=name,
        )  # fmt: skip
        parsed = credentials.credentials((*parsed.chain, token), holder, parsed.socket)
    return credentials.encode(parsed)


def content(daemon: Daemon, named: Any, position: int = -1) -> bytes:
    reader = ContentReader(daemon.state / "content")
    try:
        found = reader.get(named.digest, position)
    finally:
        reader.close()
    assert found is not None
    return found


def test_an_allowed_and_a_denied_call_have_every_field_that_aarm_asks_for(daemon: Daemon) -> None:
    handed = daemon.credentials(task="receipt-1", agent="planner", owner="alice", session="s-receipt", depth=2)
    with daemon.connect(handed_on(handed, "worker", "helper")) as runner:
        earlier = runner.call("shell_run", ECHO)
        allowed = runner.call("shell_run", ECHO, intent="say x", because=[earlier.call])
        with pytest.raises(CallError) as denied:
            runner.call("fs_read", {"path": "a"}, intent="read a")
    first, second = daemon.call(allowed.call), daemon.call(denied.value.call)
    for call in (first, second):
        # Action: tool (an operation is a tool of its own here), parameters, timestamp.
        assert call.tool in ("shell_run", "fs_read")
        assert call.arguments.size
        assert call.time.endswith("Z")
        # Context: session, what it had done. Identity: five levels.
        who = call.who
        assert (who.session, who.owner, who.agent, who.task) == ("s-receipt", "alice", "planner", "receipt-1")
        assert who.asserted == ("worker", "helper")
        assert (call.peer.uid, call.peer.pid) == (os.getuid(), os.getpid())
        assert call.profile == "default"
        assert [link.name for link in call.delegation] == ["worker", "helper"]
        assert [link.token for link in call.delegation] == list(call.chain[1:])
        assert all(link.issued < link.expires for link in call.delegation)
        chain = json.loads(content(daemon, call.authority))["chain"]
        assert [set(link["tools"]) for link in chain[1:]] == [{"shell_run"}, {"shell_run"}]
        assert {"fs_read", "shell_run"} <= set(chain[0]["tools"])
        # Decision: result, policy, reason.
        assert call.decision.reason
        assert call.decision.rules
    assert (first.decision.effect, second.decision.effect) == ("allow", "deny")
    assert first.decision.policy
    assert (first.intent, first.because) == ("say x", (earlier.call,))
    assert daemon.call(earlier.call).context == entries.Context(depth=2)
    assert first.context == entries.Context(depth=2, calls=1, untrusted=1, tools=("shell_run",))
    assert second.context == entries.Context(depth=2, calls=2, untrusted=2, tools=("shell_run",))
    # Outcome, with who measured what it used.
    outcome = daemon.outcome(allowed.call)
    assert (outcome.outcome, outcome.exit_code) == ("exited", 0)
    assert outcome.stdout.delivered == outcome.stdout.size == 2
    assert outcome.used.sources["wall_us"] == "guest"
    assert set(outcome.used.sources) <= {name for name in outcome.used.__struct_fields__ if getattr(outcome.used, name)}
    # Signature: of the checkpoint over it.
    assert daemon.verifies()


def test_the_process_that_called_is_named_as_the_kernel_names_it(daemon: Daemon) -> None:
    with daemon.connect(task="receipt-2", tools={"shell_run": {}}) as runner:
        peers = [daemon.call(runner.call("shell_run", ECHO).call).peer for _ in range(2)]
    assert peers[0] == peers[1]  # found once per connection
    peer = peers[0]
    assert peer.problem == ""
    assert peer.digest == hashlib.sha256(Path("/proc/self/exe").read_bytes()).hexdigest()
    assert peer.executable == str(Path(sys.executable).resolve())
    assert peer.start == int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    assert peer.cgroup.startswith("/")


def test_a_plan_cannot_be_guessed_from_its_digest(daemon: Daemon) -> None:
    with daemon.connect(task="receipt-3", tools={"shell_run": {}}) as runner:
        call = runner.call("shell_run", {"argv": ["/bin/echo", "a secret of few letters"]}).call
    plan = daemon.call(call).plan.plan
    kept = content(daemon, plan)
    assert b"a secret of few letters" in kept
    assert len(kept) == plan.size + SALT
    assert hashlib.sha256(kept[SALT:]).hexdigest() != plan.digest


def test_the_start_entry_says_what_everything_ran_on(daemon: Daemon) -> None:
    start = daemon.entries(entries.Start)[-1]
    found = start.environment
    assert start.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (found.kernel, found.machine) == (os.uname().release, os.uname().machine)
    assert found.python == platform.python_version()
    assert found.engine.startswith("docker ")
    assert found.runtime
    assert found.cgroup_version in (1, 2)
    assert found.clock_source
    assert found.clock_synchronized or found.clock_error_us == 0
    import runner

    package = Path(runner.__file__).parent
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).as_posix()):
        name, data = path.relative_to(package).as_posix().encode(), path.read_bytes()
        total.update(len(name).to_bytes(4, "big") + name + len(data).to_bytes(8, "big") + data)
    assert found.build == total.hexdigest()


def test_every_entry_of_a_daemons_life_validates_against_the_schema(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    with daemon.connect(task="one") as runner:
        runner.call("shell_run", ECHO)
        runner.call("fs_write", {"path": "a", "content": "b"})
        with pytest.raises(CallError):
            runner.call("no_such_tool", {})
    with pytest.raises(CallError):
        daemon.connect(say=False)
    daemon.stop()
    daemon.start()
    daemon.stop()
    validator = jsonschema_rs.validator_for(schema(), validate_formats=True)
    found = [entries.encode(entry) for entry in daemon.entries()]
    kinds = {json.loads(data)["kind"] for data in found}
    assert kinds >= {"start", "stop", "token", "task_begin", "sandbox", "sandbox_end", "call", "outcome", "refusals"}
    for data in found:
        validator.validate(json.loads(data))
    assert daemon.verifies()


BURN = {"argv": ["/usr/bin/python3", "-c", "b = b'x' * (40 << 20)\nfor _ in range(3_000_000): pass"]}


def test_what_the_guest_says_is_held_against_what_the_kernel_counted(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    with daemon.connect(task="burns") as runner:
        runner.call("shell_run", BURN, check=True)
        runner.call("shell_run", ECHO, check=True)
        running = usage(daemon, "burns")
        assert (running["verdict"], running["cgroup_cpu_us"]) == ("running", -1)
        runner.end_task()
    daemon.wait(lambda: daemon.entries(entries.SandboxEnd))
    (ended,) = daemon.entries(entries.SandboxEnd)
    found = usage(daemon, "burns")
    assert (found["calls"], found["unsaid"], found["verdict"]) == (2, 0, "consistent")
    assert (found["cgroup_cpu_us"], found["cgroup_peak"]) == (ended.used.cpu_us, ended.used.memory_peak)
    assert 0 < found["guest_cpu_us"] <= ended.used.cpu_us
    assert 40 << 20 <= found["guest_peak"] <= ended.used.memory_peak
    assert ended.used.source == "cgroup"
    assert daemon.verifies()
    jsonschema_rs.validator_for(schema()).validate(json.loads(entries.encode(ended)))


def usage(daemon: Daemon, task: str) -> dict[str, Any]:
    words = [daemon.python, "-m", "runner", "trace", "usage", task, "--state", str(daemon.state), "--json"]
    (found,) = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    return dict(found)


def test_an_image_is_archived_once_with_its_packages(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(config="archive = true\n")
    with daemon.connect(task="one") as runner:
        runner.call("shell_run", ECHO)
        (sandbox,), api = daemon.containers(), daemon.docker()
        asked = api.exec_create(sandbox["Id"], ["dpkg-query", "-W", "-f", "${Package} ${Version}\n"])
        installed = api.exec_start(asked["Id"]).decode()
        api.close()
    daemon.wait(lambda: daemon.entries(entries.Image))
    with daemon.connect(task="two") as runner:
        runner.call("shell_run", ECHO)
    (image,) = daemon.entries(entries.Image)
    assert image.image == daemon.entries(entries.SandboxBegin)[0].isolation.image
    assert image.problem == ""
    (saved,) = (daemon.state / "engine/images").glob("*.tar")
    assert saved.stem == image.archive.digest == hashlib.sha256(saved.read_bytes()).hexdigest()
    bill = json.loads(content(daemon, image.sbom))
    listed = {f"{each['name']} {each['version']}" for each in bill["components"]}
    assert listed == set(installed.splitlines())
    assert len(listed) == image.packages > 20
    daemon.stop()
    daemon.start()
    with daemon.connect(task="three") as runner:
        runner.call("shell_run", ECHO)
    assert daemon.verifies()
    jsonschema_rs.validator_for(schema()).validate(json.loads(entries.encode(image)))
    daemon.stop()
    with saved.open("r+b") as file:
        file.write(b"another")
    assert not daemon.verifies()
    saved.unlink()
    assert not daemon.verifies()  # nobody said that it may go
    shutil.rmtree(daemon.state / "engine")
    assert daemon.verifies()  # the folder is engine's, and need not be where the ledger is read: a note says so
    assert daemon.entries(entries.Image) == [image]  # the second run had nothing new to say of it
