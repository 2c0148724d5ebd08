"""The parent: root, tiny. Reads the catalogue's bytes, binds the sockets, starts the children, swaps catalogues.

It reads no byte of any agent. When gate or recorder ends, everything ends; when engine ends, it is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from runner.catalog import read_bundle
from runner.config import Config, load_config
from runner.errors import EXIT_UNAVAILABLE, Refusal, RunnerError, exit_status, refusal, refuse
from runner.serve import log, privilege
from runner.serve.children import Child, Children
from runner.serve.places import bound, folder, identity, locked
from runner.wire import parent as wire

_log = logging.getLogger(__name__)
_MAX_KEY = 4096  # a public JWK is a few hundred bytes
_MAX_TRUST = 4 << 20  # a bundle of certificate authorities; the usual one has 220 KB
_BACKOFF_S = (0.2, 1.0, 5.0, 15.0)  # between restarts of a part; the last one repeats
_STABLE_S = 60.0  # a part that lived this long has no failures behind it
_RESTARTED: tuple[wire.Name, ...] = ("engine", "egress", "broker")  # when one of the others ends, everything ends
_REPLACED = ("egress", "broker")  # of those, who is killed when it does not answer: calls get another in a moment
_COMPILING = (*_RESTARTED, "gate")  # who is offered a catalogue
_PREDECESSOR_S = 15.0  # how long a start waits for the children of a parent that was killed to end


class Daemon:
    """The parent's own state: children, the offered catalogue, why it ends."""

    def __init__(self, config: Config, config_path: Path, config_bytes: bytes) -> None:
        self._config = config
        self._config_bytes = config_bytes
        self._config_path = config_path
        self._state = Path(config.state)
        self._run = Path(config.run)
        self._instance = ""
        self._children = Children(self._heard)
        self._dials = -1  # broker's listener, in a network of its own: egress serves it
        self._generation = 0
        self._swapping = asyncio.Lock()  # one catalogue at a time, for whoever is there and whoever comes back
        self._restarting: dict[wire.Name, asyncio.Task[None]] = {}
        self._failures: dict[str, tuple[int, float]] = {}  # part -> in a row, and when it was last started again
        self._bundle: wire.Bundle | None = None
        self._stopping = asyncio.Event()
        self._reason = ""
        self._reload = asyncio.Event()
        self._asked: list[int] = []  # reloads: 0 by a signal, else gate's number of the one an operator asked for
        self._bound: list[Path] = []

    async def serve(self) -> int:
        """Start everything, serve until told to stop or a part that matters ends. Returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, signal.Signals(number).name)
        loop.add_signal_handler(signal.SIGHUP, self._reread, 0)
        held = self._prepare()
        try:
            status = 0
            await self._alone()
            if await self._unless_stopped(self._start()):
                _notify("READY=1")
                _log.info("serving: instance %s, agents on %s", self._instance, self._run / "agent.sock")
                status = await self._supervise()
        except RunnerError as error:
            _log.critical("%s", error.refused.line())
            status = exit_status(error.refused)
        finally:
            await self._end()
            os.close(held)
        return status

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Carry this out, but not beyond the word to stop. Returns whether it was carried out."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if task.done():
            task.result()
            return True
        task.cancel()
        await asyncio.wait((task,))
        return False

    def _stop(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._stopping.set()

    def _reread(self, asked: int) -> None:
        if asked not in self._asked:  # signals before the first is served are one
            self._asked.append(asked)
        self._reload.set()

    def _heard(self, name: str, message: Any, descriptor: int | None) -> None:
        if isinstance(message, wire.Reread) and name == "gate":
            self._reread(message.asked)
        elif isinstance(message, wire.GivenUp) and name == "gate":
            child = self._children.live[message.name]
            if child.run == message.run and not child.ended:
                _log.error("gate has given up %s: it is killed", message.name)
                child.kill()
        elif isinstance(message, wire.Dials) and name == "broker" and descriptor is not None:
            if self._dials >= 0:
                os.close(self._dials)
            self._dials = descriptor
            self._hand_over_dials()

    def _hand_over_dials(self) -> None:
        """Let egress answer at broker's listener, from the start and whenever one of the two came back."""
        egress = self._children.live.get("egress")
        if egress is not None and self._dials >= 0:
            egress.channel.post(wire.Dials(), os.dup(self._dials))

    # --- folders and sockets ------------------------------------------------------------------------------

    def _prepare(self) -> int:
        """Make the folders, take the lock of the state directory. Returns the lock's descriptor."""
        users = self._config.users
        for user in (users.gate, users.recorder, users.egress, users.broker):
            privilege.user_id(user)
            privilege.interpreter_readable(user)
        folder(self._state, 0o711, (0, 0))
        folder(self._run, 0o711, (0, 0))
        held = locked(self._state / "lock", "state", os.O_RDWR | os.O_CREAT)
        locked(self._run, "run", os.O_DIRECTORY)  # for as long as this process lives
        folder(self._state / "gate", 0o700, privilege.user_id(users.gate))
        folder(self._state / "ledger", 0o700, privilege.user_id(users.recorder))
        folder(self._state / "content", 0o700, privilege.user_id(users.recorder))
        folder(self._state / "broker", 0o700, privilege.user_id(users.broker))
        folder(self._state / "engine", 0o700, (0, 0))
        self._instance = identity(self._state / "instance")
        return held

    async def _alone(self) -> None:
        """Wait until no child of a killed predecessor is left: every child inherits this lock, and its end frees it.

        Two recorders of one ledger, or two engines of one instance, must not meet, however soon we are started."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        family = self._children.family = os.open(self._state / "family", flags, 0o600)
        began, told = time.monotonic(), False
        while not self._stopping.is_set():
            try:
                fcntl.flock(family, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not told:
                    _log.warning("waiting for the processes of the daemon before this one to end")
                told = True
            if time.monotonic() > began + _PREDECESSOR_S:
                raise refuse(
                    "host", "processes of the daemon before this one have not ended", field=str(self._state),
                    next_step="see `lsof` on the file `family` in it, and end them",
                )  # fmt: skip
            await asyncio.sleep(0.05)

    def _bind(self, name: str, mode: int, group: int) -> socket.socket:
        path = self._run / name
        sock = bound(path, mode, group)
        self._bound.append(path)
        return sock

    def _read(self, config: Config, config_bytes: bytes) -> wire.Bundle:
        """The bytes of the whole catalogue, of the public keys of issuers and of who signs policies, and of the
        certificate authorities that egress trusts."""
        keys = {}
        named = [*(issuer.public_key for issuer in config.issuers), *config.policy.public_keys]
        for path, most in (*((path, _MAX_KEY) for path in named), (config.egress.trust, _MAX_TRUST)):
            if path:
                try:
                    keys[path] = Path(path).read_bytes()[:most]
                except OSError as error:
                    raise refuse("key", f"cannot read it: {error.strerror}", field=path) from error
        return msgspec.structs.replace(read_bundle(config, self._config_path, config_bytes), keys=keys)

    # --- children -------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._bundle = self._read(self._config, self._config_bytes)
        users = self._config.users
        agents = self._bind("agent.sock", 0o660, privilege.group_id(users.agents_group))
        operators = privilege.group_id(users.operators_group) if users.operators_group else 0
        admin = self._bind("admin.sock", 0o660 if operators else 0o600, operators)
        pairs = {name: socket.socketpair() for name in ("recorder", *_RESTARTED)}
        origin = f"toolrunner/{self._instance}"
        try:
            await self._children.spawn("recorder", (pairs["recorder"][1],), (str(self._state), origin, users.recorder))
            for name in _RESTARTED:
                await self._children.spawn(name, (pairs[name][1],), self._arguments(name))
            gate = await self._children.spawn(
                "gate",
                (*(pairs[name][0] for name in ("engine", "recorder", "egress", "broker")), agents, admin),
                (str(self._state / "gate"), self._instance, users.gate),
            )
        finally:  # whoever was started must see the end of whoever was not
            for sock in (*(sock for pair in pairs.values() for sock in pair), agents, admin):
                sock.close()
        try:
            refused = await self._offer(self._bundle)
            if refused is not None:
                raise RunnerError(refused)
            await gate.expect(wire.Ready)
        except RunnerError as error:  # the words of whoever ended first, not of those whom it took along
            first = next((child.failure for child in self._children.live.values() if child.failure), error.refused)
            raise RunnerError(first) from None

    def _arguments(self, name: wire.Name) -> tuple[str, ...]:
        """The rest of a part's command line, behind its sockets."""
        users = self._config.users
        return {
            "engine": (str(self._state), str(self._run), self._instance),
            "egress": (users.egress,),
            "broker": (str(self._state / "broker"), users.broker),
        }[name]

    async def _offer(self, bundle: wire.Bundle, asked: int = 0) -> Refusal | None:
        """Two phases: each part compiles the catalogue, and only when all did, all use it."""
        async with self._swapping:
            self._generation += 1
            live = self._children.live
            offered = [live[name] for name in _COMPILING if name in live and name not in self._restarting]
            answers = await asyncio.gather(
                *(child.compiled(bundle, self._generation, asked) for child in offered), return_exceptions=True
            )
            for child, answer in zip(offered, answers, strict=True):
                if isinstance(answer, BaseException):
                    if child.name in _REPLACED:  # or else it would hang on, and answer nobody else either
                        child.kill()
                    raise answer
            refused = next((answer for answer in answers if isinstance(answer, Refusal)), None)
            if refused is None:
                for child in offered:
                    child.channel.post(wire.Commit(generation=self._generation))
                self._bundle = bundle
            return refused

    # --- serving --------------------------------------------------------------------------------------------

    async def _supervise(self) -> int:
        while True:
            waits = {
                asyncio.ensure_future(self._stopping.wait()): "stop",
                asyncio.ensure_future(self._reload.wait()): "reload",
                asyncio.ensure_future(self._children.dead.get()): "dead",
            }
            done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for waiting in pending:
                waiting.cancel()
            happened = {waits[future]: future.result() for future in done}
            if "dead" in happened:
                child: Child = happened["dead"]  # type: ignore[assignment] # the queue's own type, lost in the mapping
                name = next((name for name in _RESTARTED if name == child.name), None)
                if name is None:
                    _log.critical("%s ended with %s: the daemon ends", child.name, child.process.returncode)
                    return EXIT_UNAVAILABLE
                if name not in self._restarting:  # or else whoever starts it again has seen it end
                    _log.error("%s ended with %s: it is started again", child.name, child.process.returncode)
                    self._restarting[name] = asyncio.ensure_future(self._restart(name))
            if self._stopping.is_set():
                return 0
            if "reload" in happened:
                self._reload.clear()
                while self._asked:
                    await self._swap(self._asked.pop(0))

    async def _restart(self, name: wire.Name) -> None:
        """Start a part again until it serves, with a pause that grows while it keeps failing."""
        count, since = self._failures.get(name, (0, 0.0))
        count = 0 if time.monotonic() - since > _STABLE_S else count
        back = False
        while not back and not self._stopping.is_set():
            await asyncio.sleep(_BACKOFF_S[min(count, len(_BACKOFF_S) - 1)])
            count += 1
            async with self._swapping:
                back = await self._start_again(name)
        self._failures[name] = count, time.monotonic()

    async def _start_again(self, name: wire.Name) -> bool:
        """Whether the part serves, by the catalogue in force; gate is told then."""
        assert self._bundle is not None
        its, gates = socket.socketpair()
        child = await self._children.spawn(name, (its,), self._arguments(name))
        self._generation += 1
        try:
            refused = await child.compiled(self._bundle, self._generation)
            if refused is not None:
                raise RunnerError(refused)
        except RunnerError as error:
            _log.error("%s did not come back: %s", name, error.refused.line())
            gates.close()
            child.kill()
            return False
        child.channel.post(wire.Commit(generation=self._generation))
        del self._restarting[name]
        if name == "egress":
            self._hand_over_dials()
        self._children.live["gate"].channel.post(wire.Part(name=name, run=child.run), gates.detach())
        _log.info("%s is back", name)
        return True

    async def _swap(self, asked: int) -> None:
        """SIGHUP, or an operator's word: read all anew. Whatever is wrong with it, the old catalogue stays in force."""
        _notify("RELOADING=1")
        offered = ""
        try:
            config, config_bytes = load_config(self._config_path)
            for fixed in ("state", "run", "users", "sandboxes", "limits", "telemetry"):
                if getattr(config, fixed) != getattr(self._config, fixed):
                    raise refuse(
                        "config", f"`{fixed}` cannot change while the daemon runs", field=str(self._config_path)
                    )
            bundle = self._read(config, config_bytes)
            offered = bundle.digest
            refused = await self._offer(bundle, asked)
        except RunnerError as error:
            refused = error.refused
        except OSError as error:
            refused = refusal("config", f"it could not be read: {error}", field=str(self._config_path))
        if refused is not None:
            _log.error("the new catalogue is refused and the old one stays: %s", refused.line())
        if asked or refused is not None:
            self._children.live["gate"].channel.post(wire.Swapped(asked=asked, refusal=refused, offered=offered))
        _notify("READY=1")

    # --- ending ---------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Gate first, so that running calls are sealed; then the others end with their channels."""
        _notify("STOPPING=1")
        for restart in list(self._restarting.values()):
            restart.cancel()
        drain = self._config.limits.drain_s
        gate = self._children.live.get("gate")
        if gate is not None and not gate.ended:
            _log.info("stopping (%s): waiting up to %.0f s for running calls", self._reason or "a part ended", drain)
            gate.channel.post(
                wire.Stop(drain_ms=int(drain * 1000), reason=self._reason or "a part of the daemon ended")
            )
        grace = {"gate": drain + self._config.limits.kill_grace_s + 10, "egress": 5.0, "broker": 15.0, "recorder": 20.0}
        for name in (*grace, "engine"):
            child = self._children.live.get(name)
            if child is not None and not await child.stop(grace.get(name, 30.0)):
                _log.error("%s did not end by itself and was killed", name)
        for path in self._bound:
            path.unlink(missing_ok=True)


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)), when it asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
            contextlib.suppress(OSError),
        ):
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def main(config_path: Path) -> int:
    """What `runner serve` becomes: refuse early and clearly, then serve. Returns the exit status."""
    privilege.require_root()
    config_path = config_path.resolve()  # the children, who read paths in it anew, work elsewhere
    config, config_bytes = load_config(config_path)
    log.configure("parent")
    os.umask(0o077)
    privilege.no_new_privileges()
    return asyncio.run(Daemon(config, config_path, config_bytes).serve())


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except RunnerError as error:
        print(f"runner: {error.refused.line()}", file=sys.stderr)  # noqa: T201 - this is what `runner serve` became
        sys.exit(exit_status(error.refused))
