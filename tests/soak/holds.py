"""Where a call can be held: every place at which the pipeline waits, reached by stopping a neighbour, never by code.

What the pipeline waits for is read from its source (`waits`), so that a step added there without a hold here fails a
test. Steps between two waits are one turn of gate's loop: nobody sees between them, and a call that is stopped there
is one that stands before them (`decide`) or after them (`record`).
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import random
import re
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil
from house import forks, programs
from soak.raw import Raw

from runner import pipeline
from runner.client.errors import CallError
from runner.ledger import entry as entries
from runner.wire import admin, agent
from runner.wire.frame import encode

if TYPE_CHECKING:
    from house import Daemon
    from soak.service import Service

KEY_TOOL = "key_run"  # of reached.py: a network and a credential
_ASKS = """
import os, sys, time, urllib.request
if sys.argv[2]:
    print("go", flush=True)
    sys.stdin.readline()
headers = {"Authorization": "Bearer " + os.environ["SERVICE_KEY"]}
with urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers=headers), timeout=50) as answer:
    print(answer.status, flush=True)
    answer.read()
while "/now" in sys.argv[1] and not os.path.exists("ended"):
    time.sleep(0.02)
"""
WAITING = ["sh", "-c", "echo go; read line; echo $line"]  # runs until its stdin says more


def steps() -> tuple[str, ...]:
    """The numbered steps of pipeline.py, in their order."""
    found = re.findall(r"(\d)\. ([a-z]+)", "\n".join(re.findall(r"# (.*)", inspect.getsource(pipeline))))
    return tuple(name for _, name in sorted(found))


def waits() -> frozenset[str]:
    """Everything outside itself that the pipeline waits for."""
    tree = ast.parse(inspect.getsource(pipeline.Pipeline))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)}
    found = {ast.unparse(node.value.func) for node in ast.walk(tree) if isinstance(node, ast.Await)}  # type: ignore[attr-defined] # a coroutine is always called here
    found |= {
        ast.unparse(item.context_expr)
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncWith)
        for item in node.items
    }
    return frozenset(name for name in found if name.removeprefix("self.") not in own)


@dataclasses.dataclass
class Held:
    """A call at a step. `intent` finds it in the trace; `release` lets it go on; `frozen` are stopped neighbours."""

    intent: str
    client: Raw
    release: Callable[[], None]
    number: int = 1
    frozen: tuple[psutil.Process, ...] = ()

    def thaw(self) -> None:
        for process in self.frozen:
            if process.is_running():
                process.send_signal(signal.SIGCONT)


class Scene:
    """A daemon with one warm task, in which a call is about to be held."""

    def __init__(
        self, daemon: Daemon, handed: bytes, intent: str, supervisor: psutil.Process, service: Service
    ) -> None:
        self.daemon = daemon
        self.service = service
        self.handed = handed
        self.intent = intent
        self.supervisor = supervisor
        self.client = Raw(daemon, handed).open()
        self.extra: list[Raw] = []

    def stop(self, process: psutil.Process) -> psutil.Process:
        process.send_signal(signal.SIGSTOP)
        self.daemon.wait(lambda: process.status() == psutil.STATUS_STOPPED, 10)
        return process

    def send(self, argv: list[str], tool: str = "shell_run", **more: Any) -> None:
        self.client.send(self.client.ask(tool, {"argv": argv}, intent=self.intent, **more))

    def running(self, count: int = 1) -> None:
        """Wait until gate has that many calls under way."""
        self.daemon.wait(lambda: self.daemon.ask(admin.Status()).running == count, 20)

    def held(self, release: Callable[[], None], *frozen: psutil.Process) -> Held:
        return Held(self.intent, self.client, release, frozen=frozen)

    def tools(self) -> list[psutil.Process]:
        return programs(self.supervisor.pid)

    def waiting_tool(self, **more: Any) -> None:
        """A call that runs and waits for its stdin."""
        self.send(WAITING, stdin=True, **more)
        assert self.client.until(agent.Output).data == b"go\n"

    def feed(self) -> None:
        self.client.send(agent.Stdin(number=1, data=b"on\n", eof=True))

    def fill(self) -> None:
        """Have gate owe the client more than its socket takes: it does not read what it asks for."""
        self.client.send(*(agent.ListTools(number=number) for number in range(100, 400)))

    def do(self, script: str) -> None:
        """In the same workspace, from another connection of the task; again where its sandbox was just going."""

        def done() -> bool:
            try:
                with self.daemon.connect(self.handed) as runner:
                    return bool(runner.call("shell_run", {"argv": ["sh", "-c", script]}).ok)
            except CallError:
                return False

        self.daemon.wait(done, 20)

    def recorded(self) -> None:
        """Wait until the call's entry is on disk: what comes with it in one group would be lost with it."""
        self.daemon.wait(lambda: any(entry.intent == self.intent for entry in self.daemon.entries(entries.Call)), 20)

    def sealed(self) -> bool:
        calls = {entry.call for entry in self.daemon.entries(entries.Call) if entry.intent == self.intent}
        return any(entry.call in calls for entry in self.daemon.entries(entries.Outcome))


def frame(scene: Scene) -> Held:
    """Half of the call's frame has arrived."""
    data = encode(scene.client.call(["echo", "x"], intent=scene.intent))
    scene.client.sock.sendall(data[:-1])
    return scene.held(lambda: scene.client.sock.sendall(data[-1:]))


def decide(scene: Scene) -> Held:
    """The frame lies in gate's socket: nothing of authenticate, authorize, approve, plan has happened."""
    gate = scene.stop(scene.daemon.child("gate"))
    scene.send(["echo", "x"])
    return scene.held(lambda: None, gate)


def record_call(scene: Scene) -> Held:
    """Decided and planned; the recorder does not answer."""
    recorder = scene.stop(scene.daemon.child("recorder"))
    scene.send(["echo", "x"])
    scene.running()
    return scene.held(lambda: None, recorder)


def claim(scene: Scene) -> Held:
    """Recorded; engine does not answer, so that there is no sandbox."""
    scene.client.sock.close()
    scene.client = Raw(scene.daemon, scene.daemon.credentials()).open()
    engine = scene.stop(scene.daemon.child("engine"))
    scene.send(["echo", "x"])
    scene.client.until(agent.Accepted)
    return scene.held(lambda: None, engine)


def provide(scene: Scene) -> Held:
    """Recorded; PID 1 does not take the tool's code."""
    supervisor = scene.stop(scene.supervisor)
    asked = scene.client.ask("fs_list", {"path": "."}, intent=scene.intent)
    scene.client.send(asked)
    scene.client.until(agent.Accepted)
    return scene.held(lambda: None, supervisor)


def start(scene: Scene) -> Held:
    """Recorded and sent to PID 1, which does not start it."""
    supervisor = scene.stop(scene.supervisor)
    scene.send(["echo", "x"])
    scene.client.until(agent.Accepted)
    return scene.held(lambda: None, supervisor)


def launch(scene: Scene) -> Held:
    """Handed to its launcher, which does not start it."""
    launchers = [scene.stop(each) for each in forks(scene.supervisor.pid)]
    scene.send(["echo", "x"])
    scene.client.until(agent.Accepted)
    return scene.held(lambda: None, *launchers)


def execute(scene: Scene) -> Held:
    """The tool runs."""
    scene.waiting_tool()
    return scene.held(scene.feed)


def credit(scene: Scene) -> Held:
    """The tool has ended; its output waits in the sandbox for a client without credit."""
    scene.send(["echo", "x"], window=0)
    scene.client.until(agent.Accepted)
    scene.daemon.wait(lambda: not scene.tools(), 20)
    return scene.held(lambda: scene.client.send(agent.Credit(number=1, bytes=100)))


def keep(scene: Scene) -> Held:
    """More output than the recorder, which is stopped, has room for."""
    scene.send(["sh", "-c", "read line; head -c 4000000 /dev/zero"], stdin=True, window=65536)
    scene.client.until(agent.StdinCredit)
    scene.recorded()
    recorder = scene.stop(scene.daemon.child("recorder"))
    scene.feed()
    _read_on(scene.client)
    return scene.held(lambda: _read_on(scene.client, to_the_end=True), recorder)


def _read_on(client: Raw, *, to_the_end: bool = False) -> None:
    """Take output and give credit for it until nothing more comes, or until the result."""
    while to_the_end or not client.quiet(0.5):
        message = client.next()
        if message is None or isinstance(message, agent.Result | agent.Refused):
            client._waiting.insert(0, message)
            return
        if isinstance(message, agent.Output):
            client.send(agent.Credit(number=1, bytes=len(message.data)))


def deliver(scene: Scene) -> Held:
    """Filtered output waits in gate for a client that does not read; the tool runs on."""
    begin, end = f"{scene.intent}-begin", f"{scene.intent}-end"
    wait = "until [ -e {} ]; do sleep 0.02; done; "
    scene.send(["sh", "-c", wait.format(begin) + "echo x; touch told; " + wait.format(end)])
    scene.client.until(agent.Accepted)
    scene.fill()
    scene.do("rm -f told; touch " + begin + "; until [ -e told ]; do sleep 0.02; done")
    time.sleep(0.1)  # what the guest sent last is on its way to gate
    return scene.held(lambda: scene.do("touch " + end))


def seal(scene: Scene) -> Held:
    """The tool has ended; the recorder does not answer."""
    scene.waiting_tool()
    scene.recorded()
    recorder = scene.stop(scene.daemon.child("recorder"))
    scene.feed()
    scene.daemon.wait(lambda: not scene.tools(), 20)
    time.sleep(0.1)  # what the tool said last comes with the result
    return scene.held(lambda: None, recorder)


def answer(scene: Scene) -> Held:
    """Sealed; the result waits in gate for a client that does not read."""
    scene.send(["sh", "-c", f"until [ -e {scene.intent} ]; do sleep 0.02; done"])
    scene.client.until(agent.Accepted)
    scene.fill()
    scene.do(f"touch {scene.intent}")
    scene.daemon.wait(scene.sealed, 20)
    return scene.held(lambda: None)


def replay(scene: Scene) -> Held:
    """A second request with the key of a call that runs."""
    scene.waiting_tool(idempotency_key=scene.intent)
    again = Raw(scene.daemon, scene.handed).open()
    scene.extra.append(again)
    again.send(again.ask("shell_run", {"argv": WAITING}, idempotency_key=scene.intent, intent=scene.intent, stdin=True))
    assert again.until(agent.Accepted).replayed
    return scene.held(scene.feed)


def issue(scene: Scene) -> Held:
    """The sandbox is there; the broker does not answer."""
    broker = scene.stop(scene.daemon.child("broker"))
    return _begun(scene, broker)


def listen(scene: Scene) -> Held:
    """The credential is issued; engine, which makes the listener, does not answer."""
    engine = scene.stop(scene.daemon.child("engine"))
    return _begun(scene, engine)


def serve(scene: Scene) -> Held:
    """The listener is there; egress, which is to serve it and to say whom to trust, does not answer."""
    egress = scene.stop(scene.daemon.child("egress"))
    return _begun(scene, egress)


def _begun(scene: Scene, *stopped: psutil.Process) -> Held:
    scene.send(["echo", "x"], KEY_TOOL)
    scene.client.until(agent.Accepted)
    scene.running()
    time.sleep(0.1)  # the messages before the one that is not answered
    return scene.held(lambda: None, *stopped)


def judge(scene: Scene) -> Held:
    """The tool has asked for something; the recorder, without which no request is allowed, does not answer."""
    scene.send(asks(scene, "/then", wait=True), KEY_TOOL, stdin=True)
    assert scene.client.until(agent.Output).data == b"go\n"
    scene.recorded()
    recorder = scene.stop(scene.daemon.child("recorder"))
    scene.feed()
    time.sleep(0.3)  # connect, CONNECT, handshake, request
    assert not scene.service.asked(scene.intent)
    return scene.held(lambda: None, recorder)


def request(scene: Scene) -> Held:
    """The service has the request and the credential, and does not answer."""
    scene.service.answers.clear()
    scene.send(asks(scene, "/held"), KEY_TOOL)
    scene.daemon.wait(lambda: scene.service.asked(scene.intent), 20)
    return scene.held(scene.service.answers.set)


def close(scene: Scene) -> Held:
    """The tool has ended; egress does not say that nothing of it passes any more."""
    return _over(scene, "egress")


def revoke(scene: Scene) -> Held:
    """The tool has ended; the broker does not say that its leases are dead."""
    return _over(scene, "broker")


def _over(scene: Scene, part: str) -> Held:
    scene.send(asks(scene, "/now", wait=True), KEY_TOOL, stdin=True)
    assert scene.client.until(agent.Output).data == b"go\n"
    scene.recorded()
    stopped = scene.stop(scene.daemon.child(part)) if part == "broker" else None
    scene.do("rm -f ended")
    scene.feed()
    assert scene.client.until(agent.Output).data == b"200\n"
    if stopped is None:
        stopped = scene.stop(scene.daemon.child(part))
    scene.do("touch ended")
    scene.daemon.wait(lambda: not scene.tools(), 20)
    time.sleep(0.1)  # the guest's word of its end
    return scene.held(lambda: None, stopped)


def asks(scene: Scene, path: str, *, wait: bool = False) -> list[str]:
    """A program that asks the service for this, when its stdin says so, and lives until the file `ended` is there."""
    return ["python3", "-c", _ASKS, scene.service.url(path + "?" + scene.intent), "wait" if wait else ""]


def moment(scene: Scene) -> Held:
    """Wherever it is by then: a warm call takes about as long as this may wait."""
    scene.send(["echo", "x"])
    time.sleep(random.random() * 0.005)
    return scene.held(lambda: None)


@dataclasses.dataclass(frozen=True)
class Hold:
    """One way to hold a call: the steps it stands in, and what pipeline.py waits for there."""

    enter: Callable[[Scene], Held]
    steps: tuple[str, ...]
    waits: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.enter.__name__


HOLDS = (
    Hold(frame, ("authenticate",)),
    Hold(decide, ("authenticate", "authorize", "approve", "plan")),
    Hold(record_call, ("plan", "record"), ("record.call",)),
    Hold(claim, ("execute",), ("reply.accepted", "self._executor.start")),
    Hold(issue, ("lease",), ("self._executor.start",)),
    Hold(listen, ("lease",), ("self._executor.start",)),
    Hold(serve, ("lease",), ("self._executor.start",)),
    Hold(provide, ("execute",), ("self._executor.start",)),
    Hold(start, ("execute",), ("execution", "execution.next")),
    Hold(launch, ("execute",), ("execution.next",)),
    Hold(execute, ("execute",), ("execution.next",)),
    Hold(judge, ("execute",), ("execution.next",)),
    Hold(request, ("execute",), ("execution.next",)),
    Hold(close, ("lease",), ("lease",)),
    Hold(revoke, ("lease",), ("lease",)),
    Hold(credit, ("execute",), ("execution.next", "delivery.finish")),
    Hold(keep, ("execute",), ("delivery.take",)),
    Hold(deliver, ("execute",), ("delivery.take",)),
    Hold(seal, ("record",), ("execution.looked_at", "pump.close", "passed.consult_value", "record.outcome")),
    Hold(answer, ("reply",), ("reply.result", "self.filters.remembered")),
    Hold(moment, ()),
    Hold(replay, ("authenticate",), ("idempotency.replay",)),
)
