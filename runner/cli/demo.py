"""`runner demo`: a private daemon, an agent that works through it, the evidence checked afterwards. All real parts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import psutil
import typer

from runner.catalog import shared
from runner.cli import demo_service
from runner.cli.demo_evidence import attempts, searched
from runner.cli.demo_network import SERVICE
from runner.cli.demo_search import Search, Searched, live
from runner.cli.demo_service import Service
from runner.cli.keys import write_new
from runner.errors import EXIT_TOOL, RunnerError, refuse
from runner.serve.privilege import require_root, user_id
from runner.token.keys import SigningKey, generate, private_file, public_file

AGENT_USER = "runner-demo"
_ISSUER = "https://demo.invalid/issuer"
_MAX_FILE = 1 << 20
_MAX_FILES = 2000
_START_S = 90.0
_TOOLS = (
    "fs_list",
    "fs_read",
    "fs_search",
    "python_run",
    "shell_run",
    "workspace_put",
    "orders_run",
    "badge_run",
    "egress",
)
_WRITE = (
    'fs_write={"path":{"constraint_type":"path_containment","root":"/workspace/reports"},'
    '"*":{"constraint_type":"wildcard"}}'
)

_INTRODUCTION = """\
An agent (plain Python here, no model) does real work through a daemon that trusts it with nothing: it holds a token
that says what it may do, and every tool runs in a container of its task. A service on this host wants a key: a tool
may use it, and nobody holds it. → is what the agent asks, ← what it gets.
"""

_CONFIG = """\
{folders}state = "{place}/state"
run = "{place}/run"

[peers]
agents = ["{user}"]

[[issuers]]
uri = "{issuer}"
public_key = "issuer.pub"

[sandboxes]
archive = false

[telemetry]
export = "file"
{network}"""


def demo(
    repo: Annotated[
        Path | None, typer.Option(help="A source tree, with git history if it has one; the package's own by default.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the state folder for a look at the trace.")] = False,
) -> None:
    """Watch an agent work through the daemon, be refused, be stopped, and its trace be verified. Takes about 15 s."""
    require_root()
    user_id(AGENT_USER)
    began = time.monotonic()
    print(_INTRODUCTION, flush=True)
    place = Path(tempfile.mkdtemp(prefix="toolrunner-demo-"))
    try:
        place.chmod(0o711)
        source = _source(repo, place)
        with Service() as service:
            _configure(place, service)
            with _daemon(place) as daemon:
                _keep(place, {demo_service.SECRET: service.key, demo_service.BADGE: service.badge})
                found: list[Searched] = []
                service.on_answer = lambda: found.extend(_live(place, service, daemon))
                failures = _agent(place, source, service)
        _heading("8. Where the key was: looked for as it is, in base64, in hex and backwards")
        failures += searched(place, service, found)
        failures += _evidence(place)
    finally:
        if keep:
            print(f"\nkept: {place}")
        else:
            shutil.rmtree(place)
    seconds = time.monotonic() - began
    if failures:
        things = "1 thing" if failures == 1 else f"{failures} things"
        print(f"\n✗ {things} went otherwise than the demo tells ({seconds:.0f} s); see ✗ above, and `runner doctor`")
        raise typer.Exit(EXIT_TOOL)
    print(f"\n✓ the demo is over: {seconds:.0f} s, nothing is left running")


def _heading(text: str) -> None:
    print(f"\n\033[1m── {text}\033[0m" if sys.stdout.isatty() else f"\n── {text}", flush=True)


# --- input ---------------------------------------------------------------------------------------------------


def _source(repo: Path | None, place: Path) -> Path:
    """A copy that the agent's user can read: the tree, and its history as text."""
    root = (repo or shared("tools").parent).resolve()
    if not root.is_dir():
        raise refuse("arguments", "not a folder", field=str(root))
    found = place / "source"
    count = 0
    for path in _files(root):
        target = found / "tree" / path.relative_to(root)
        if count < _MAX_FILES and not path.is_symlink() and path.is_file() and path.stat().st_size <= _MAX_FILE:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            count += 1
    history = _git(root, "log", "-n", "1000", "--date=short", "--pretty=format:%h %ad %s")
    if history:
        (found / "HISTORY.txt").write_text(history, encoding="utf-8")
    for path in (found, *found.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    print(
        f"input: {count} files of {root}"
        + (f", {len(history.splitlines())} commits" if history else ", no git history")
    )
    return found


def _files(root: Path) -> list[Path]:
    listed = _git(root, "ls-files", "-z")
    if listed:
        return [root / name for name in listed.split("\0") if name]
    return [path for path in sorted(root.rglob("*")) if "__pycache__" not in path.parts and ".git" not in path.parts]


def _git(root: Path, *arguments: str) -> str:
    """What git says, "" where there is no git or no repository. Root may look at another user's repository."""
    command = ["git", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def _configure(place: Path, service: Service) -> None:
    key = SigningKey(generate())
    write_new(place / "issuer.key", private_file(key, _ISSUER))
    write_new(place / "issuer.pub", public_file(key.public, _ISSUER), 0o644)
    folders, network = demo_service.lay_out(place / "catalogue", service)
    config = _CONFIG.format(place=place, user=AGENT_USER, issuer=_ISSUER, folders=folders, network=network)
    write_new(place / "runner.toml", config.encode(), 0o644)


# --- processes -----------------------------------------------------------------------------------------------


def _runner(*arguments: str, show: bool = True) -> list[str]:
    if show:
        print(f"$ runner {' '.join(arguments)}", flush=True)
    return [sys.executable, "-m", "runner", *arguments]


@contextlib.contextmanager
def _daemon(place: Path) -> Iterator[int]:
    """A daemon of its own, stopped at the end, whatever happens. Yields its process's number."""
    _heading("0. A private daemon: parent, gate, engine, recorder, egress, broker")
    log = place / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _runner("serve", "--config", str(place / "runner.toml")),
            stdin=subprocess.DEVNULL,
            stderr=output,
            stdout=output,
        )
    try:
        _wait_ready(process, log)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while "serving: instance" not in log.read_text(encoding="utf-8", errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            why = next((line.split("CRITICAL ", 1)[1] for line in lines if "CRITICAL " in line), "it did not start")
            reason, _, next_step = why.partition(" · next: ")
            raise refuse("unavailable", reason, next_step=next_step or "run `runner doctor`")
        time.sleep(0.05)
    print("   ready", flush=True)


def _keep(place: Path, keys: dict[str, str]) -> None:
    """Give the broker the keys, as an operator does: a value goes through a pipe, never through argv."""
    subprocess.run(_runner("secret", "init", "--config", str(place / "runner.toml")), check=True)
    sock = str(place / "run" / "admin.sock")
    for name, key in keys.items():
        subprocess.run(_runner("secret", "set", name, "--stdin", "--socket", sock), input=key.encode(), check=True)


def _agent(place: Path, source: Path, service: Service) -> int:
    """The agent, as its own user, with a token on an inherited descriptor."""
    heard = place / "heard"
    write_new(heard, b"")
    os.chown(heard, *user_id(AGENT_USER))
    grants = [option for grant in (*_TOOLS, _WRITE) for option in ("--allow", grant)]
    arguments = ["exec", "--agent", "demo-agent", "--task", "demo", "--user", AGENT_USER]
    print(f"$ runner {' '.join(arguments)} --allow fs_list --allow … -- python agent.py", flush=True)
    command = _runner(
        *arguments,
        "--owner",
        "you",
        "--config",
        str(place / "runner.toml"),
        "--key",
        str(place / "issuer.key"),
        *grants,
        "--",
        sys.executable,
        "-m",
        "runner.cli.demo_agent",
        show=False,
    )
    where = {name: getattr(demo_service, name.upper()) for name in ("orders", "status", "elsewhere")}
    environment = {
        **os.environ,
        "RUNNER_DEMO_SOURCE": str(source),
        "RUNNER_DEMO_HEARD": str(heard),
        SERVICE: json.dumps({**where, "port": service.port}),
    }
    return abs(subprocess.run(command, env=environment, check=False, cwd="/").returncode)


# --- the key ------------------------------------------------------------------------------------------------


def _live(place: Path, service: Service, daemon: int) -> list[Searched]:
    """What lives, looked through while the service answers a call that holds the key."""
    try:
        instance = (place / "state" / "instance").read_text(encoding="utf-8").strip()
        return live(Search(service.key), daemon, instance, user_id(AGENT_USER)[0])
    except (OSError, psutil.Error, RunnerError) as error:  # found nowhere because looked at nowhere: `searched` says so
        print(f" ✗ UNEXPECTED: cannot look at what lives: {error}", flush=True)
        return []


# --- evidence ------------------------------------------------------------------------------------------------


def _evidence(place: Path) -> int:
    """List, show and verify what was recorded; then show that a flipped byte is found."""
    _heading("9. The evidence: every call, decision, request and outcome, signed")
    failures = attempts(place)
    state = ("--state", str(place / "state"))
    failures += _call("trace", "list", "--limit", "8", *state)
    listed = subprocess.run(
        _runner("trace", "list", "--effect", "deny", "--json", *state, show=False), capture_output=True, check=True
    )
    for denied in json.loads(listed.stdout)[:1]:
        failures += _call("trace", "show", denied["call"]["call"], *state)
    failures += _call("trace", "verify", *state)
    _heading("10. The same ledger with one byte flipped")
    damaged = place / "damaged"
    shutil.copytree(place / "state" / "ledger", damaged / "ledger")
    tail = damaged / "ledger" / "tail"
    data = bytearray(tail.read_bytes())
    data[len(data) // 2] ^= 0x01
    tail.write_bytes(data)
    print(f"   byte {len(data) // 2} of ledger/tail: {data[len(data) // 2] ^ 1:#04x} → {data[len(data) // 2]:#04x}")
    if _call("trace", "verify", "--no-content", "--state", str(damaged)) == 0:
        print(" ✗ UNEXPECTED: the flipped byte was not found")
        failures += 1
    return failures


def _call(*arguments: str) -> int:
    return int(subprocess.run(_runner(*arguments), check=False).returncode != 0)
