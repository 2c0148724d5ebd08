"""The cases of `scripts/soak`. A new one: a function that takes Options and returns a report with `good`, decorated."""

from __future__ import annotations

import array
import asyncio
import contextlib
import dataclasses
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from house import Daemon, forks, programs
from soak import disk, flat, matrix, race
from soak.dockerd import Dockerd
from soak.mutants import mutate, valid
from soak.raw import Raw
from soak.service import Service

from runner.client import connect_async
from runner.client.errors import CallError
from runner.engine import image
from runner.engine.docker import Docker
from runner.ledger import entry as entries
from runner.wire import admin, agent


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line said; 0 and "" are a case's own."""

    count: int = 0
    seconds: float = 0
    only: str = ""
    seed: int = 0
    dockerd: bool = False


@dataclasses.dataclass(frozen=True)
class Case:
    """One long run."""

    name: str
    says: str
    run: Callable[[Options], dict[str, Any]]


CASES: dict[str, Case] = {}


def case(name: str, says: str) -> Callable[[Callable[[Options], dict[str, Any]]], Callable[[Options], dict[str, Any]]]:
    """Make a function a case."""

    def add(run: Callable[[Options], dict[str, Any]]) -> Callable[[Options], dict[str, Any]]:
        CASES[name] = Case(name, says, run)
        return run

    return add


def progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def a_service() -> Iterator[Service]:
    """A service on loopback, and the catalogue of tools that reach it."""
    with tempfile.TemporaryDirectory(prefix="toolrunner-soak-") as place:
        Path(place).chmod(0o711)
        service = Service(Path(place))
        try:
            yield service
        finally:
            service.close()


@contextlib.contextmanager
def a_daemon(
    config: str = "", engine: Dockerd | None = None, service: Service | None = None
) -> Iterator[tuple[Daemon, range]]:
    """A daemon of its own, with a range of uids of its own. Gone afterwards, containers and all."""
    first = 500_000 + random.randrange(10_000) * 64
    uids = range(first, first + 64)
    place = Path(tempfile.mkdtemp(prefix="toolrunner-soak-"))
    place.chmod(0o711)
    docker = Docker()
    built = image.build(docker, os.environ.get("TOOLRUNNER_BASE", image.BASE))
    docker.close()
    own = f'docker_host = "{engine.host}"\n' if engine else ""
    config = f"{own}uid_first = {first}\nuid_count = 64\n{config}\n{service.config if service else ''}"
    daemon = Daemon(place, built, config=config, catalogue=service.folder if service else None)
    daemon.docker_host = engine.host if engine else ""
    try:
        daemon.start()
        if service is not None:
            service.open(daemon)
        yield daemon, uids
    finally:
        daemon.stop()
        left = daemon.containers()
        shutil.rmtree(place)
        assert not left, f"containers are left: {left}"


# --- kill-matrix ---------------------------------------------------------------------------------------------


@case("kill-matrix", "kill -9 of every part at every step of a call; --count rounds of the whole matrix (1)")
def kill_matrix(options: Options) -> dict[str, Any]:
    """Every cell, `count` times."""
    limits = "[limits]\ndrain_s = 1.0\nkill_grace_s = 2.0\n"
    rows: list[matrix.Row] = []
    with a_service() as service, a_daemon(limits, service=service) as (daemon, uids):
        rows += _rounds(matrix.Matrix(daemon, uids=uids, service=service), matrix.cells(), options)
    if options.dockerd:
        docker = Docker()
        built = image.build(docker, image.BASE)
        docker.close()
        with a_service() as service, Dockerd(built) as engine, a_daemon(limits, engine, service) as (daemon, uids):
            tried = matrix.Matrix(daemon, uids=uids, service=service, docker=engine)
            rows += _rounds(tried, matrix.cells(matrix.DOCKER_VICTIMS), options)
    wrong = [f"{row.victim}:{row.step}: {row.wrong}" for row in rows if row.wrong]
    slowest = max((row.seconds for row in rows), default=0.0)
    return {
        "good": not wrong and bool(rows),
        "cells": len(rows),
        "slowest clean-up, seconds": slowest,
        "wrong": wrong,
        "table": _table(rows),
    }


def _rounds(tried: matrix.Matrix, cells: list[tuple[Any, str]], options: Options) -> list[matrix.Row]:
    rows = []
    for _ in range(options.count or 1):
        for hold, victim in cells:
            if options.only not in ("", victim, hold.name, f"{victim}:{hold.name}"):
                continue
            rows.append(tried.cell(hold, victim))
            row = rows[-1]
            progress(f"{victim:13} {row.step:12} {row.said:12} {row.seconds:5.2f} s {row.wrong}")
    return rows


def _table(rows: list[matrix.Row]) -> list[str]:
    """Victims down, steps across; each cell says what the trace said, with ! where something was wrong."""
    steps = list(dict.fromkeys(row.step for row in rows))
    lines = ["| victim | " + " | ".join(steps) + " |", "| --- " * (len(steps) + 1) + "|"]
    for victim in dict.fromkeys(row.victim for row in rows):
        said = []
        for step in steps:
            found = [row for row in rows if (row.victim, row.step) == (victim, step)]
            words = Counter((row.said or "?") + ("!" if row.wrong else "") for row in found)
            said.append(", ".join(words) or "–")
        lines.append(f"| {victim} | " + " | ".join(said) + " |")
    return lines


# --- calls -----------------------------------------------------------------------------------------------------


@case("calls", "--count calls in one run (100,000): descriptors, memory, threads, files, containers stay flat")
def calls(options: Options) -> dict[str, Any]:
    """Eight at a time, argv and Python tools, over one connection; a sample every twentieth of the way."""
    with a_daemon() as (daemon, _):
        return _stays_flat(options, daemon, daemon.credentials(ttl_s=86_000), options.count or 100_000, _some_calls)


@case("network-calls", "--count calls with a network and a credential (10,000): the same, egress and broker too")
def network_calls(options: Options) -> dict[str, Any]:
    """Four at a time; each has its listener, lease and placeholder, and one in ten asks the service for something."""
    with a_service() as service, a_daemon(service=service) as (daemon, _):
        handed = daemon.credentials(ttl_s=86_000, profile="net", tools={"key_run": {}, "egress": {}})

        async def some(daemon: Daemon, handed: bytes, count: int) -> None:
            await _some_network_calls(daemon, handed, count, service)

        report = _stays_flat(options, daemon, handed, options.count or 10_000, some)
        asked = sum(entry.network.requests for entry in daemon.entries(entries.Outcome) if entry.network is not None)
        report["requests"] = asked
        report["good"] = report["good"] and asked == len(service.arrived) and not service.connections(daemon)
        return report


def _stays_flat(options: Options, daemon: Daemon, handed: bytes, count: int, some: Any) -> dict[str, Any]:
    """`some(daemon, handed, number)` calls again and again, and what grows meanwhile."""
    asyncio.run(some(daemon, handed, min(2000, max(100, count // 20))))
    samples = [(0.0, flat.sample(daemon))]
    began = time.monotonic()
    done, step = 0, max(1, count // 20)
    while done < count and not (options.seconds and time.monotonic() - began > options.seconds):
        asyncio.run(some(daemon, handed, step))
        done += step
        samples.append((float(done), flat.sample(daemon)))
        now = samples[-1][1]
        progress(f"{done} calls, gate {now['MiB gate']:.1f} MiB, recorder {now['MiB recorder']:.1f} MiB, "
                 f"egress {now['MiB egress']:.1f} MiB, {done / (time.monotonic() - began):.0f}/s")  # fmt: skip
    rate = done / (time.monotonic() - began)
    found = flat.slopes(samples, 10_000)
    sealed = len(daemon.entries(entries.Outcome))
    verified, clean = daemon.verifies(), flat.log_is_clean(daemon)
    grown = flat.grown(found)
    return {
        "good": not grown and verified and clean and sealed >= done,
        "calls": done,
        "calls a second": round(rate),
        "outcomes in the ledger": sealed,
        "verifies": verified,
        "growth per 10,000 calls": found,
        "grown": grown,
    }


async def _some_network_calls(daemon: Daemon, handed: bytes, count: int, service: Service) -> None:
    ask = (
        "import os, sys, urllib.request as r; "
        "q = r.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + os.environ['SERVICE_KEY']}); "
        "print(r.urlopen(q, timeout=60).status)"
    )
    async with connect_async(credentials=handed, socket=daemon.place / "run" / "agent.sock") as runner:
        left = iter(range(count))

        async def one_after_the_other() -> None:
            for number in left:
                argv = ["/bin/echo", "200"] if number % 10 else ["python3", "-c", ask, service.url("/flat")]
                done = await runner.call("key_run", {"argv": argv})
                assert done.stdout == b"200\n", done

        await asyncio.gather(*(one_after_the_other() for _ in range(4)))


async def _some_calls(daemon: Daemon, handed: bytes, count: int) -> None:
    async with connect_async(credentials=handed, socket=daemon.place / "run" / "agent.sock") as runner:
        left = iter(range(count))

        async def one_after_the_other() -> None:
            for number in left:
                if number % 50:
                    done = await runner.call("shell_run", {"argv": ["/bin/echo", str(number)]})
                    assert done.stdout == f"{number}\n".encode(), done
                else:
                    assert (await runner.call("fs_list", {"path": "."})).ok

        await asyncio.gather(*(one_after_the_other() for _ in range(8)))


# --- frames ----------------------------------------------------------------------------------------------------


@case("frames", "mutated sessions: --count frames (1,000,000) or --seconds; no crash, no hang, no traceback")
def frames(options: Options) -> dict[str, Any]:
    """Case S14."""
    chance = random.Random(options.seed)
    with a_daemon() as (daemon, _):
        sent = throw_frames(daemon, chance, options.count or 1_000_000, options.seconds, say=progress)
        with daemon.connect() as runner:
            works = runner.call("shell_run", {"argv": ["true"]}).ok
        verified, clean = daemon.verifies(), flat.log_is_clean(daemon)
    good = works and verified and clean and sent["growth MiB"] < 32
    return {"good": good, **sent, "verifies": verified, "log without tracebacks": clean}


def throw_frames(
    daemon: Daemon, chance: random.Random, count: int, seconds: float = 0, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Send mutated frames until `count` were, or for `seconds`; an honest neighbour is served all the while."""
    handed = daemon.credentials(ttl_s=86_000)
    base = valid("eyJhbGciOiJFZERTQSJ9.e30.AAAA")
    sent = opened = 0
    before, began, told = 0, time.monotonic(), time.monotonic()
    with daemon.connect() as neighbour:
        while sent < count and not (seconds and time.monotonic() - began > seconds):
            client = Raw(daemon, handed)
            opened += 1
            if chance.random() < 0.9:
                client.open()
            for _ in range(200):
                batch = [mutate(chance, base) for _ in range(chance.choice((1, 1, 2, 8)))]
                sent += len(batch)
                try:
                    client.sock.sendall(b"".join(batch))
                    client.sock.settimeout(0)
                    if not client.sock.recv(1 << 16):
                        break
                except BlockingIOError:
                    continue
                except OSError:
                    break
            client.sock.close()
            if opened % 200 == 0:
                assert neighbour.call("shell_run", {"argv": ["true"]}).ok
                before = before or flat.memory(daemon)  # after a warm-up
            if time.monotonic() - told > 10:
                told = time.monotonic()
                say(f"{sent} frames over {opened} connections, gate {flat.memory(daemon) / (1 << 20):.1f} MiB")
        assert neighbour.call("shell_run", {"argv": ["true"]}).ok
    growth = (flat.memory(daemon) - before) / (1 << 20) if before else 0.0
    return {"frames": sent, "connections": opened, "growth MiB": round(growth, 1),
            "frames a second": round(sent / (time.monotonic() - began))}  # fmt: skip


# --- connections -------------------------------------------------------------------------------------------------


@case("connections", "--count rounds (20) of a thousand connections that stall, dribble, half-close, pass descriptors")
def connections(options: Options) -> dict[str, Any]:
    """Bounded memory and descriptors, and a neighbour that is served in every round."""
    chance, rounds = random.Random(options.seed), options.count or 20
    slowest = 0.0
    with a_daemon("[limits]\nhello_timeout_s = 2.0\nconnections_per_uid = 32\n") as (daemon, _):
        with daemon.connect() as neighbour:
            assert neighbour.call("shell_run", {"argv": ["true"]}).ok
            samples = [(0.0, flat.sample(daemon))]
            for number in range(rounds):
                held = [_bad_client(daemon, chance) for _ in range(1000)]
                began = time.monotonic()
                assert neighbour.call("shell_run", {"argv": ["true"]}).ok
                slowest = max(slowest, time.monotonic() - began)
                for sock in held:
                    sock.close()
                daemon.wait(lambda: daemon.ask(admin.Status()).connections == 1, 30)
                samples.append((float(number + 1), flat.sample(daemon)))
                progress(
                    f"round {number + 1}: gate {samples[-1][1]['MiB gate']:.1f} MiB, neighbour {slowest:.3f} s at worst"
                )
        verified, clean = daemon.verifies(), flat.log_is_clean(daemon)
    found = flat.slopes(samples, 10)
    grown = flat.grown(found)
    return {
        "good": not grown and verified and clean,
        "rounds": rounds,
        "neighbour at worst, seconds": round(slowest, 3),
        "growth per 10 rounds": found,
        "grown": grown,
    }


def _bad_client(daemon: Daemon, chance: random.Random) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    while True:
        try:
            sock.connect(str(daemon.place / "run" / "agent.sock"))
            break
        except BlockingIOError:  # more wait to be accepted than the kernel keeps: the flood's own trouble
            time.sleep(0.01)
    with contextlib.suppress(OSError):
        match chance.randrange(5):
            case 0:
                sock.sendall(b"\0\0\1")
            case 1:
                sock.shutdown(socket.SHUT_WR)
            case 2:
                rights = array.array("i", [0] * 100)
                sock.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            case 3:
                sock.sendall(chance.randbytes(100))
    return sock


# --- faults ------------------------------------------------------------------------------------------------------


@case("faults", "calls of four tasks for --seconds (600) while one in twenty meets a fault")
def faults(options: Options) -> dict[str, Any]:
    """Clients that vanish, tools that crash, launchers and supervisors that are killed, garbage, cancels."""
    chance, seconds = random.Random(options.seed), options.seconds or 600
    ends: Counter[str] = Counter()
    with a_daemon("maximum = 16\n") as (daemon, _):
        tasks = [daemon.credentials(ttl_s=86_000) for _ in range(4)]
        began, told, done = time.monotonic(), time.monotonic(), 0
        samples: list[tuple[float, dict[str, float]]] = []
        while time.monotonic() - began < seconds:
            for handed in tasks:
                done += 1
                ends[_one(daemon, handed, chance)] += 1
            if not samples or time.monotonic() - told > max(1.0, seconds / 20):
                told = time.monotonic()
                daemon.wait(lambda: daemon.ask(admin.Status()).running == 0, 30)
                samples.append((float(done), flat.sample(daemon)))
                progress(f"{done} calls, {dict(ends)}")
        daemon.wait(lambda: daemon.ask(admin.Status()).running == 0, 30)
        status = daemon.ask(admin.Status())
        daemon.wait(lambda: len(daemon.containers()) == daemon.ask(admin.Status()).sandboxes, 30)
        planned = {entry.call for entry in daemon.entries(entries.Call) if entry.plan is not None}
        sealed = Counter(entry.call for entry in daemon.entries(entries.Outcome))
        once = planned == set(sealed) and set(sealed.values()) <= {1}
        verified, clean = daemon.verifies(), flat.log_is_clean(daemon)
    found = flat.slopes(samples, 10_000)
    # Guests are new ones after each kill, and few samples make a noisy slope: what adds up is what counts.
    grown = [name for name in flat.grown(found) if "guest" not in name and samples[-1][0] > 2000]
    good = once and verified and clean and not grown
    return {"good": good, "calls": done, "ends": dict(ends), "sandboxes at the end": status.sandboxes,
            "every call sealed once": once, "growth per 10,000 calls": found, "grown": grown}  # fmt: skip


def _one(daemon: Daemon, handed: bytes, chance: random.Random) -> str:
    """One call, with a fault in one of twenty. Returns how it ended for its client."""
    fault = (
        chance.choice(("client", "tool", "launcher", "supervisor", "garbage", "cancel"))
        if chance.random() < 0.05
        else ""
    )
    client = Raw(daemon, handed)
    try:
        client.open()
        argv = ["sh", "-c", "echo go; read x; echo on"] if fault else ["echo", secrets.token_hex(4)]
        client.send(client.call(argv, stdin=bool(fault)))
        if fault:
            if not isinstance(client.until(agent.Accepted), agent.Accepted):
                return "closed"
            client.until(agent.Output)
            _meet(daemon, client, fault, chance)
        while (message := client.next()) is not None:
            if isinstance(message, agent.Result):
                return f"{fault or 'no fault'}: {message.outcome.kind}"
            if isinstance(message, agent.Refused):
                return f"{fault or 'no fault'}: {message.refusal.code}"
    except (CallError, AssertionError, OSError):
        return f"{fault or 'no fault'}: connection lost"
    finally:
        client.sock.close()
    return f"{fault or 'no fault'}: connection closed"


def _meet(daemon: Daemon, client: Raw, fault: str, chance: random.Random) -> None:
    if fault == "client":
        client.sock.close()
    elif fault == "garbage":
        client.sock.sendall(chance.randbytes(64))
    elif fault == "cancel":
        client.send(agent.Cancel(number=1))
    else:
        pids = daemon.sandbox_pids()
        supervisor = psutil.Process(chance.choice(pids))
        with contextlib.suppress(psutil.Error):
            victims = {"tool": programs, "launcher": forks}.get(fault, lambda pid: [])(supervisor.pid)
            (victims or [supervisor])[-1].kill()
        client.send(agent.Stdin(number=1, eof=True))  # whoever's sandbox it was not goes on


# --- disk --------------------------------------------------------------------------------------------------------


@case("disk", "each system call by which the recorder changes its disk fails in turn, in every way (L04); --only CALL")
def disk_faults(options: Options) -> dict[str, Any]:
    """About 3,000 faults; then files cut short by the kernel at --count sizes (200)."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # thousands of ledgers are made here
    with tempfile.TemporaryDirectory(dir=memory, prefix="toolrunner-soak-") as place, disk.Workers() as workers:
        sweep = disk.Sweep(workers, Path(place))
        counts = sweep.counts()
        for call, most in counts.items():
            if options.only in ("", call):
                for fault in disk.sites(call):
                    tried = sum(sweep.fault(call, fault, nth) for nth in range(1, most + 1))
                    progress(f"{call}: {tried} of {most} with {fault}, {len(sweep.wrong)} wrong")
        for size in range(1, 120_000, 120_000 // (options.count or 200)):
            sweep.cut(size)
    return {
        "good": not sweep.wrong and sum(sweep.tried.values()) > 0,
        "faults": sum(sweep.tried.values()),
        "calls of one run": counts,
        "ended the recorder": sweep.ended[disk.REFUSED],
        "survived": sweep.ended[disk.DONE],
        "kinds of place": len(sweep.places),
        "wrong": sweep.wrong,
    }


# --- lost-power --------------------------------------------------------------------------------------------------


@case("lost-power", "--count disks (5,000) after a lost power (L06), and a fifth as many killed recorders (L03)")
def lost_power(options: Options) -> dict[str, Any]:
    """The suite's own tests, with the counts that the cases ask for."""
    count = options.count or 5000
    raised = {"RUNNER_STATES": str(count), "RUNNER_KILLS": str(count // 5), "RUNNER_SEED": str(options.seed)}
    killed = "security/test_ledger.py::test_killed_at_any_moment_nothing_acknowledged_is_lost"
    tests = ("unit/recorder/test_reordered.py", killed)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", *(Path(__file__).parents[1] / test for test in tests)],
        env=os.environ | raised,
        stdout=sys.stderr,
        check=False,
    )
    return {"good": run.returncode == 0, "disks": count, "killed recorders": count // 5}


# --- races -------------------------------------------------------------------------------------------------------


@case(
    "races",
    "--count calls (1,000) of five agents at a time, and forbidden ones: what was decided is what runs (P07)",
)
def races(options: Options) -> dict[str, Any]:
    """Case P07."""
    each = -(-(options.count or 1000) * 3 // 2 // race.AGENTS)  # two in three run
    with a_daemon("maximum = 16\n") as (daemon, _):
        told = race.run(daemon, each)
        checked, wrong = race.compared(daemon, told)
        verified = daemon.verifies()
    good = not told.wrong and not wrong and verified and checked == len(told.ran) >= (options.count or 1000)
    return {"good": good, "calls that ran": len(told.ran), "refused": told.refused, "compared with their plan": checked,
            "wrong": [*told.wrong, *wrong], "verifies": verified}  # fmt: skip
