"""kill -9 of every part at every step of a call, and what must be true afterwards.

`cell` puts a call at a step (`holds.py`), lets its victim die, brings the daemon back if that ended it, and checks:
no container, mount, process, uid lock, folder, temporary file or descriptor is left; the call stands in the trace
exactly as often as it happened, with the truth about it; the ledger verifies; a new call works.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from house import EVERY_TOOL, Daemon, alive, forks
from soak.holds import HOLDS, KEY_TOOL, Held, Hold, Scene
from soak.raw import Raw
from soak.service import Service

from runner.client.errors import Unavailable
from runner.engine.uids import FOLDER as UIDS
from runner.errors import EXIT_UNAVAILABLE, RunnerError
from runner.ledger import entry as entries
from runner.wire import admin

# What the trace may say of the call, by the step it stood in and who died: absent (no entry of it), cancelled, exited,
# interrupted, killed, unavailable; `-` where there is no such victim yet. More than one letter where two messages race:
# each is then true of the order that happened.
_TRUTHS = """
step        nobody client parent gate engine recorder egress broker supervisor launcher terminate dockerd-stop dockerd-kill
frame       e      a      a      a    e      a        e      e      e          eiu      a         e            e
decide      e      ac     aei    a    eiu    aei      e      e      eiu        eiu      ae        eiu          eiu
record_call e      c      ai     ai   eiu    ai       e      e      eiu        eiu      eku       eiu          eiu
claim       e      c      ei     i    eiu    i        e      e      -          -        eku       u            u
provide     e      c      ei     i    eiu    i        e      e      iu         eiu      eku       iu           eiu
issue       e      c      ei     i    eiu    i        eu     u      iu         eiu      eku       -            -
listen      e      c      ei     i    iu     i        eu     eku    iu         eiu      eku       -            -
serve       e      c      ei     i    eiu    i        u      eku    iu         eiu      eku       -            -
start       e      c      ei     i    eiu    i        e      e      i          eiu      eku       i            eiu
launch      e      c      ei     i    eiu    i        e      e      i          i        eku       i            eiu
execute     e      c      i      i    i      i        e      e      i          i        k         i            i
judge       e      c      i      i    ei     i        ek     ek     i          i        ek        -            -
request     e      c      i      i    i      i        k      k      i          i        k         -            -
credit      e      c      i      i    ei     i        e      e      ei         ei       ek        ei           ei
keep        e      c      i      i    ei     i        e      e      ei         ei       ek        ei           ei
deliver     e      c      i      i    i      i        e      e      i          i        k         i            i
close       e      e      ei     i    e      i        e      e      e          e        e         -            -
revoke      e      e      ei     i    e      i        e      e      e          e        e         -            -
seal        e      e      ei     ei   e      ei       e      e      e          e        e         e            e
answer      e      e      e      e    e      e        e      e      e          e        e         e            e
replay      e      c      i      i    i      i        e      e      i          i        k         i            i
moment      e      ace    aei    aei  eiu    aei      e      e      eiu        eiu      aeku      eiu          eiu
"""  # noqa: E501 - a table
_WORDS = {word[0]: word for word in ("absent", "cancelled", "exited", "interrupted", "killed", "unavailable")}
(_, *_COLUMNS), *_ROWS = (line.split() for line in _TRUTHS.strip().splitlines())
TRUTHS = {
    (step, victim): {_WORDS[letter] for letter in letters}
    for step, *cells in _ROWS
    for victim, letters in zip(_COLUMNS, cells, strict=True)
    if letters != "-"
}
DOCKER_VICTIMS = ("dockerd-stop", "dockerd-kill")
VICTIMS = tuple(victim for victim in _COLUMNS if victim not in DOCKER_VICTIMS)
RESTARTED = ("engine", "egress", "broker")  # by parent, which goes on
ENDS_THE_DAEMON = ("parent", "gate", "recorder", "terminate")
_TAKES_THE_SANDBOX = ("engine", "supervisor", *DOCKER_VICTIMS)
WARM = "warm"  # the task of most cells; a cell that needs a cold one makes it


@dataclasses.dataclass
class Row:
    """One cell of the matrix, as it went."""

    step: str
    victim: str
    said: str = ""  # the call's outcomes in the trace
    left: str = ""  # what was left behind, "" for nothing
    seconds: float = 0.0  # from the daemon's readiness to nothing left
    wrong: str = ""


class Before:
    """What a daemon held on this host before the blow."""

    def __init__(self, daemon: Daemon, docker: Callable[[], Any]) -> None:
        parent = psutil.Process(daemon.pid)
        self.family = [parent, *parent.children()]
        self.inside: list[psutil.Process] = []
        for pid in daemon.sandbox_pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                self.inside += [process, *process.children(recursive=True)]
        api = docker()
        try:
            self.mounts = {
                api.inspect_container(item["Id"])["GraphDriver"]["Data"].get("MergedDir", item["Id"])
                for item in daemon.containers()
            }
        finally:
            api.close()
        self.containers = {item["Id"] for item in daemon.containers()}


class Matrix:
    """A daemon and the cells that are tried on it, one after the other. `seconds` bounds every clean-up."""

    def __init__(
        self, daemon: Daemon, *, uids: range, service: Service, seconds: float = 5.0, docker: Any = None
    ) -> None:
        self.daemon = daemon
        self.service = service
        self.seconds = seconds
        self._uids = uids
        self._docker = docker  # a private engine, for its own rows
        self._handed = b""
        self._count = 0
        self._backs: Counter[str] = Counter()  # restarts of each part under this parent
        self._seen = 0  # and in the log, when a cell begins

    # --- one cell -------------------------------------------------------------------------------------------

    def cell(self, hold: Hold, victim: str) -> Row:
        """Hold a call, strike, look. Never raises for what the daemon did wrong: the row says it."""
        self._count += 1
        row = Row(hold.name, victim)
        held: Held | None = None
        scene: Scene | None = None
        try:
            if self._backs[victim]:
                self._again()  # parent restarts a part ever more slowly
            scene = self._scene()
            counts, self._seen = self._descriptors(), self.daemon.said().count(f"{victim} is back")
            held = hold.enter(scene)
            before = Before(self.daemon, self.daemon.docker)
            self._strike(victim, held, scene)
            held.thaw()
            if hold.name == "frame" and victim not in ENDS_THE_DAEMON:
                self._settled(victim, before)
            # A client that is alive goes on in the end; but whoever has lost its sandbox does not wait for it.
            if victim == "nobody" or hold.name in ("frame", "credit") or victim not in _TAKES_THE_SANDBOX:
                self._go_on(held, victim)
            if hold.name != "frame" or victim in ENDS_THE_DAEMON:
                self._recover(victim)
            began = time.monotonic()
            row.said = self._said(scene.intent, hold.name, victim)
            asked = self.service.asked(scene.intent)
            row.left = self._left(victim, before)
            row.seconds = round(time.monotonic() - began, 2)
            self._close(scene)
            self._works_again()
            row.left = row.left or self._grown(victim, counts)
            if self.service.asked(scene.intent) > asked:
                row.left = "requests after the outcome"
            row.wrong = self._judged(row)
        except (AssertionError, psutil.Error, OSError, RunnerError) as error:
            row.wrong = f"{type(error).__name__}: {error}"[:1500]
            if held is not None:
                held.thaw()
            self._again()
        finally:
            self.service.answers.set()
            if scene is not None:
                self._close(scene)
        return row

    def _scene(self) -> Scene:
        """A warm task: its sandbox is there, its launcher idle."""
        if not self._handed:
            tools = {name: {} for name in (*EVERY_TOOL, KEY_TOOL, "egress")}
            self._handed = self.daemon.credentials(task=WARM, ttl_s=86_000, profile="net", tools=tools)
        self._works()
        self.daemon.wait(lambda: len(self.daemon.sandbox_pids()) == 1, 20)
        (pid,) = self.daemon.sandbox_pids()
        return Scene(self.daemon, self._handed, f"cell-{self._count}-{os.getpid()}", psutil.Process(pid), self.service)

    def _close(self, scene: Scene) -> None:
        for client in (scene.client, *scene.extra):
            client.sock.close()
        for task in self.daemon.ask(admin.ListTasks()).tasks:
            if task.task != WARM:
                self.daemon.ask(admin.EndTask(task=task.task, why="its cell is over"))

    def _works(self) -> None:
        with self.daemon.connect(self._handed) as runner:
            done = runner.call("shell_run", {"argv": ["echo", "works"]})
            assert done.stdout == b"works\n", done
            done = runner.call(KEY_TOOL, {"argv": ["sh", "-c", "echo $SERVICE_KEY"]})
            assert done.stdout.startswith(b"rnr-"), done

    def _works_again(self) -> None:
        """A new call works, however often a retryable refusal comes first, for a bounded time."""
        deadline = time.monotonic() + self.seconds
        while True:
            try:
                return self._works()
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _again(self) -> None:
        """After a failed cell: a fresh process tree, whatever state the old one is in."""
        for process in [*psutil.Process(self.daemon.pid).children(), psutil.Process(self.daemon.pid)]:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)
        if self._docker is not None and not self._docker.running:
            self._docker.start()
        with contextlib.suppress(Exception):
            self.daemon.stop()
        self.daemon.start()
        self._backs.clear()

    def _go_on(self, held: Held, victim: str) -> None:
        if victim not in (*ENDS_THE_DAEMON, "client"):
            held.release()
            self._drain(held.client)

    def _drain(self, client: Raw) -> None:
        """Read what a patient client would read."""
        client.sock.settimeout(20)
        while (message := client.next()) is not None:
            if type(message).__name__ in ("Result", "Refused") and getattr(message, "number", 0) < 100:
                return

    # --- the blow ---------------------------------------------------------------------------------------------

    def _strike(self, victim: str, held: Held, scene: Scene) -> None:
        daemon = self.daemon
        if victim == "client":
            held.client.sock.close()
        elif victim == "parent":
            psutil.Process(daemon.pid).kill()
        elif victim == "terminate":
            psutil.Process(daemon.pid).terminate()
        elif victim == "supervisor":
            scene.supervisor.kill()
        elif victim == "launcher":
            _, *launchers = forks(scene.supervisor.pid)  # the first makes the others
            busy = {parent for each in scene.tools() if (parent := each.parent()) in launchers}
            for each in busy or launchers:  # without a tool, whichever the call was handed to, or will be
                with contextlib.suppress(psutil.NoSuchProcess):  # the death of the first may have ended the others
                    each.kill()
        elif victim in DOCKER_VICTIMS:
            self._docker.end(signal.SIGTERM if victim == "dockerd-stop" else signal.SIGKILL)
        elif victim != "nobody":
            daemon.child(victim).kill()

    def _settled(self, victim: str, before: Before) -> None:
        """Wait until the daemon has noticed."""
        if victim in RESTARTED or victim in DOCKER_VICTIMS:
            self._recover(victim)
        elif victim == "supervisor":
            self.daemon.wait(lambda: not any(alive(each.pid) for each in before.inside), 20)
            time.sleep(0.05)

    def _recover(self, victim: str) -> None:
        if victim in ENDS_THE_DAEMON:
            status = self.daemon.ended()
            expected = {"parent": -signal.SIGKILL, "terminate": 0}.get(victim, EXIT_UNAVAILABLE)
            assert status == expected, f"the daemon ended with {status}, not {expected}"
            self.daemon.start()  # at once: whoever is still dying has to be waited for by the daemon itself
        elif victim in RESTARTED:
            self.daemon.wait(lambda: self.daemon.said().count(f"{victim} is back") > self._seen, 60)
            self.daemon.wait(lambda: self.daemon.ask(admin.Status()).engine, 10)
            self._backs[victim] += 1
        elif victim in DOCKER_VICTIMS and not self._docker.running:
            self._docker.start()

    # --- what is left -----------------------------------------------------------------------------------------

    def _said(self, intent: str, step: str, victim: str) -> str:
        """The outcomes of the call, in words; waits for one where one must come."""
        allowed = TRUTHS[step, victim]
        deadline = time.monotonic() + self.seconds
        while True:
            calls = [entry.call for entry in self.daemon.entries(entries.Call) if entry.intent == intent]
            ends = [entry.outcome for entry in self.daemon.entries(entries.Outcome) if entry.call in calls]
            settled = len(ends) == len(calls) and (calls or victim in ENDS_THE_DAEMON or allowed == {"absent"})
            if settled or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        if not calls:
            return "absent"
        if len(calls) == len(ends) == 1:
            return str(ends[0])
        return f"{len(calls)} calls, outcomes {ends}"

    def _left(self, victim: str, before: Before) -> str:
        """Wait until nothing of the old is there; what is, in words, when it stays."""
        deadline = time.monotonic() + self.seconds
        while left := self._leftovers(victim, before):
            if time.monotonic() > deadline:
                return left
            time.sleep(0.02)
        return ""

    def _leftovers(self, victim: str, before: Before) -> str:
        daemon, found = self.daemon, []
        status = daemon.ask(admin.Status())
        if status.running:
            found.append(f"{status.running} calls")
        containers = {item["Id"] for item in daemon.containers()}
        gone = victim not in ("nobody", "client", "launcher", "egress", "broker")
        if len(containers) != status.sandboxes:
            found.append(f"{len(containers)} containers for {status.sandboxes} sandboxes")
        if gone and before.containers & containers and victim != "supervisor":
            found.append("a container of before")
        if victim in ENDS_THE_DAEMON:
            found += [f"process {each.pid}" for each in before.family if alive(each.pid)]
        old = before.containers - containers
        if old == before.containers:
            found += [
                f"process {each.pid} of a tool" for each in before.inside if each.is_running() and alive(each.pid)
            ]
            mounts = Path("/proc/self/mountinfo").read_text()
            found += [f"mount {path}" for path in before.mounts if path in mounts]
        if open_still := self.service.connections(daemon):
            found.append(f"{open_still} connections to the service")
        found += [f"a listener in sandbox {pid}" for pid in daemon.sandbox_pids() if _listens(pid)]
        folders = list((daemon.place / "run" / "sandboxes").iterdir())
        if len(folders) != status.sandboxes:
            found.append(f"{len(folders)} folders for {status.sandboxes} sandboxes")
        locked = [uid for uid in self._uids if _locked(UIDS / f"uid-{uid}")]
        if len(locked) != status.sandboxes:
            found.append(f"{len(locked)} uid locks for {status.sandboxes} sandboxes")
        temporary = [
            str(path) for path in daemon.state.rglob("*") if path.parent.name == "tmp" or path.suffix == ".new"
        ]
        found += [f"half a file {path}" for path in temporary]
        return ", ".join(found)

    def _descriptors(self) -> dict[int, int]:
        """Of each child. Engine's sockets do not count: its client of Docker keeps up to 64 connections open."""
        engine = self.daemon.child("engine").pid
        found = {each.pid: each.num_fds() for each in psutil.Process(self.daemon.pid).children()}
        found[engine] = sum(not _target(path).startswith("socket:") for path in Path(f"/proc/{engine}/fd").iterdir())
        return found

    def _grown(self, victim: str, before: dict[int, int]) -> str:
        """Descriptors of processes that lived on, when there are more than before for good."""
        deadline = time.monotonic() + self.seconds
        while True:
            now = self._descriptors()
            grown = [
                f"{now[pid] - before[pid]} descriptors of {pid}"
                for pid in now.keys() & before
                if now[pid] > before[pid] + 1
            ]
            # One more: the connection of the new call may not be closed on gate's side yet; a leak adds up instead.
            if not grown or time.monotonic() > deadline:
                return ", ".join(grown)
            time.sleep(0.05)

    def _judged(self, row: Row) -> str:
        wrong = []
        if row.said not in TRUTHS[row.step, row.victim]:
            wrong.append(f"the trace says {row.said}, not {' or '.join(sorted(TRUTHS[row.step, row.victim]))}")
        if row.left:
            wrong.append(f"left behind: {row.left}")
        if not self.daemon.verifies():
            wrong.append("the ledger does not verify")
        return "; ".join(wrong)


def _listens(pid: int) -> bool:
    """Whether anybody listens in the network namespace of that process."""
    try:
        lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return False
    return any(line.split()[3] == "0A" for line in lines)


def _target(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:
        return ""


def _locked(path: Path) -> bool:
    """Whether somebody holds the lock on this file."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def cells(victims: tuple[str, ...] = VICTIMS) -> list[tuple[Hold, str]]:
    """Every cell of the matrix."""
    return [(hold, victim) for victim in victims for hold in HOLDS if (hold.name, victim) in TRUTHS]
