"""The parent: root, tiny. Reads the catalogue's bytes, binds the sockets, starts the children, swaps catalogues.

It reads no byte of any agent. When gate or recorder ends, everything ends; when engine ends, it is started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import secrets
import signal
import socket
import stat
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
from runner.serve.channel import Channel
from runner.wire import parent as wire

_log = logging.getLogger(__name__)
_MAX_KEY = 4096  # a public JWK is a few hundred bytes
_START_S = 120.0  # engine resolves images and removes orphans before it answers
_BACKOFF_S = (0.2, 1.0, 5.0, 15.0)  # between restarts of engine; the last one repeats
_STABLE_S = 60.0  # an engine that lived this long has no failures behind it
_PREDECESSOR_S = 15.0  # how long a start waits for the children of a parent that was killed to end
_LAST_WORDS_S = 2.0  # for what a child wrote before it ended to be read
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ")  # a child gets no more: its first environment stays readable in /proc
_DOCKER = ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH")
_INSTANCE = re.compile(r"[a-z][a-z0-9]{3,31}")


class Child:
    """One process and the channel to it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self.name = name
        self.process = process
        self.channel = channel

    @property
    def ended(self) -> bool:
        """Whether it has exited."""
        return self.process.returncode is not None


class Daemon:
    """The parent's own state: children, the offered catalogue, why it ends."""

    def __init__(self, config: Config, config_path: Path, config_bytes: bytes) -> None:
        self._config = config
        self._config_bytes = config_bytes
        self._config_path = config_path
        self._state = Path(config.state)
        self._run = Path(config.run)
        self._instance = ""
        self._children: dict[str, Child] = {}
        self._answers: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._generation = 0
        self._bundle: wire.Bundle | None = None
        self._stopping = asyncio.Event()
        self._reason = ""
        self._reload = asyncio.Event()
        self._asked: list[int] = []  # reloads: 0 by a signal, else gate's number of the one an operator asked for
        self._bound: list[Path] = []
        self._family = -1  # the lock that this process and every child hold
        self._dead: asyncio.Queue[Child] = asyncio.Queue()
        self._watchers: set[asyncio.Task[None]] = set()

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

    def _heard(self, name: str, message: Any) -> None:
        if isinstance(message, wire.Reread):
            if name == "gate":
                self._reread(message.asked)
        else:
            self._answers.put_nowait((name, message))

    # --- folders and sockets ------------------------------------------------------------------------------

    def _prepare(self) -> int:
        """Make the folders, take the lock of the state directory. Returns the lock's descriptor."""
        users = self._config.users
        gate, recorder = privilege.user_id(users.gate), privilege.user_id(users.recorder)
        for user in (users.gate, users.recorder):
            privilege.interpreter_readable(user)
        _folder(self._state, 0o711, (0, 0))
        _folder(self._run, 0o711, (0, 0))
        held = _locked(self._state / "lock", "state", os.O_RDWR | os.O_CREAT)
        _locked(self._run, "run", os.O_DIRECTORY)  # for as long as this process lives
        _folder(self._state / "gate", 0o700, gate)
        _folder(self._state / "ledger", 0o700, recorder)
        _folder(self._state / "content", 0o700, recorder)
        _folder(self._state / "engine", 0o700, (0, 0))
        self._instance = _identity(self._state / "instance")
        return held

    async def _alone(self) -> None:
        """Wait until no child of a killed predecessor is left: every child inherits this lock, and its end frees it.

        Two recorders of one ledger, or two engines of one instance, must not meet, however soon we are started."""
        self._family = os.open(self._state / "family", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        began, told = time.monotonic(), False
        while not self._stopping.is_set():
            try:
                fcntl.flock(self._family, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
        """A listening socket in the root-owned folder. What lies there already is only ever our own stale socket."""
        path = self._run / name
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise refuse(
                    "host", "something that is no socket lies in the way", field=str(path), next_step="remove it"
                )
            path.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(mask)
        self._bound.append(path)
        os.chown(path, 0, group)
        path.chmod(mode)
        sock.listen(4096)  # as many as Linux allows by default: whoever comes when it is full is turned away unheard
        return sock

    def _read(self, config: Config, config_bytes: bytes) -> wire.Bundle:
        """The bytes of the whole catalogue, and of the public keys of issuers and of who signs policies."""
        keys = {}
        for path in (*(issuer.public_key for issuer in config.issuers), *config.policy.public_keys):
            try:
                keys[path] = Path(path).read_bytes()[:_MAX_KEY]
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
        gate_recorder, gate_engine = socket.socketpair(), socket.socketpair()
        origin = f"toolrunner/{self._instance}"
        try:
            await self._spawn("recorder", (gate_recorder[1],), (str(self._state), origin, users.recorder))
            await self._spawn("engine", (gate_engine[1],), (str(self._state), str(self._run), self._instance))
            await self._spawn(
                "gate",
                (gate_engine[0], gate_recorder[0], agents, admin),
                (str(self._state / "gate"), self._instance, users.gate),
            )
        finally:  # whoever was started must see the end of whoever was not
            for sock in (*gate_recorder, *gate_engine, agents, admin):
                sock.close()
        refused = await self._offer(self._bundle)
        if refused is not None:
            raise RunnerError(refused)
        await self._expect(wire.Ready, "gate")

    async def _spawn(self, name: str, sockets: tuple[socket.socket, ...], arguments: tuple[str, ...]) -> None:
        """Exec one child: a fresh interpreter that inherits its sockets and nothing else."""
        mine, its = socket.socketpair()
        passed = (its, *sockets)
        kept = (*_ENVIRONMENT, *(_DOCKER if name == "engine" else ()))
        for sock in passed:
            sock.set_inheritable(True)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-m",
            f"runner.serve.{name}",
            *(str(sock.fileno()) for sock in passed),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=[self._family, *(sock.fileno() for sock in passed)],
            cwd="/",
            env={key: os.environ[key] for key in kept if key in os.environ},
        )
        for sock in passed:
            sock.close()
        channel = Channel(mine, wire.FromChild, lambda message, _: self._heard(name, message))
        child = self._children[name] = Child(name, process, channel)
        watcher = asyncio.ensure_future(self._watch(child))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _watch(self, child: Child) -> None:
        await child.process.wait()
        with contextlib.suppress(TimeoutError):  # its last message may still be unread; its end of the channel follows
            await asyncio.wait_for(child.channel.closed.wait(), _LAST_WORDS_S)
        child.channel.close()
        self._dead.put_nowait(child)
        self._answers.put_nowait((child.name, None))

    async def _expect(self, kind: type, name: str) -> None:
        """Wait for one message of one child. Raises `RunnerError` with the child's own words when it ends instead."""
        try:
            async with asyncio.timeout(_START_S):
                while True:
                    source, message = await self._answers.get()
                    if isinstance(message, wire.Fatal):
                        raise RunnerError(message.refusal)
                    if message is None:
                        raise refuse("host", f"{source} ended while it was starting", next_step="see the lines above")
                    if source == name and isinstance(message, kind):
                        return
        except TimeoutError:
            raise refuse("host", f"{name} did not answer within {_START_S:.0f} s") from None

    async def _offer(self, bundle: wire.Bundle, asked: int = 0) -> Refusal | None:
        """Two phases: gate and engine compile the catalogue, and only when both did, both use it."""
        self._generation += 1
        offered = {name: self._children[name] for name in ("gate", "engine") if name in self._children}
        for child in offered.values():
            child.channel.post(wire.Offer(generation=self._generation, bundle=bundle, asked=asked))
        missing = set(offered)
        try:
            async with asyncio.timeout(_START_S):
                while missing:
                    name, message = await self._answers.get()
                    if isinstance(message, wire.Fatal):
                        raise RunnerError(message.refusal)
                    if message is None:
                        raise refuse("host", f"{name} ended while it compiled the catalogue")
                    if isinstance(message, wire.Rejected) and message.generation == self._generation:
                        return message.refusal
                    if isinstance(message, wire.Compiled) and message.generation == self._generation:
                        missing.discard(name)
        except TimeoutError:
            raise refuse("host", f"{', '.join(sorted(missing))} did not answer within {_START_S:.0f} s") from None
        for child in offered.values():
            child.channel.post(wire.Commit(generation=self._generation))
        self._bundle = bundle
        return None

    # --- serving --------------------------------------------------------------------------------------------

    async def _supervise(self) -> int:
        failures, restarted = 0, time.monotonic()
        while True:
            waits = {
                asyncio.ensure_future(self._stopping.wait()): "stop",
                asyncio.ensure_future(self._reload.wait()): "reload",
                asyncio.ensure_future(self._dead.get()): "dead",
            }
            done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for waiting in pending:
                waiting.cancel()
            happened = {waits[future]: future.result() for future in done}
            if "dead" in happened:
                child: Child = happened["dead"]  # type: ignore[assignment] # the queue's own type, lost in the mapping
                if child.name != "engine":
                    _log.critical("%s ended with %s: the daemon ends", child.name, child.process.returncode)
                    return EXIT_UNAVAILABLE
                _log.error("engine ended with %s: it is started again", child.process.returncode)
                failures = 0 if time.monotonic() - restarted > _STABLE_S else failures
                pause = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
                failures += 1
                await self._unless_stopped(self._restart_engine(pause))
                restarted = time.monotonic()
            if self._stopping.is_set():
                return 0
            if "reload" in happened:
                self._reload.clear()
                while self._asked:
                    await self._swap(self._asked.pop(0))

    async def _restart_engine(self, pause: float) -> None:
        assert self._bundle is not None
        await asyncio.sleep(pause)
        its, gates = socket.socketpair()
        await self._spawn("engine", (its,), (str(self._state), str(self._run), self._instance))
        engine = self._children["engine"]
        while not self._answers.empty():
            self._answers.get_nowait()  # the last words of the engine that ended
        self._generation += 1
        engine.channel.post(wire.Offer(generation=self._generation, bundle=self._bundle))
        try:
            await self._expect(wire.Compiled, "engine")
        except RunnerError as error:
            _log.error("engine did not come back: %s", error.refused.line())
            gates.close()
            if not engine.ended:
                engine.process.kill()
            return
        engine.channel.post(wire.Commit(generation=self._generation))
        self._children["gate"].channel.post(wire.Engine(), gates.detach())
        _log.info("engine is back")

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
            self._children["gate"].channel.post(wire.Swapped(asked=asked, refusal=refused, offered=offered))
        _notify("READY=1")

    # --- ending ---------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """Gate first, so that running calls are sealed; then recorder and engine end with their channels."""
        _notify("STOPPING=1")
        drain = self._config.limits.drain_s
        grace = {"gate": drain + self._config.limits.kill_grace_s + 10, "recorder": 20.0, "engine": 30.0}
        gate = self._children.get("gate")
        if gate is not None and not gate.ended:
            _log.info("stopping (%s): waiting up to %.0f s for running calls", self._reason or "a part ended", drain)
            gate.channel.post(
                wire.Stop(drain_ms=int(drain * 1000), reason=self._reason or "a part of the daemon ended")
            )
        for name in ("gate", "recorder", "engine"):
            child = self._children.get(name)
            if child is None:
                continue
            try:
                await asyncio.wait_for(child.process.wait(), grace[name])
            except TimeoutError:
                _log.error("%s did not end by itself and is killed", name)
                with contextlib.suppress(ProcessLookupError):
                    child.process.kill()
                await child.process.wait()
            child.channel.close()
        for path in self._bound:
            path.unlink(missing_ok=True)


def _folder(path: Path, mode: int, owner: tuple[int, int]) -> None:
    """A folder of this mode and owner; never through a link, never one that somebody else has made."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(parents=True, mode=mode)
    try:
        held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        raise refuse("host", "not a folder", field=str(path), next_step="remove it, or choose another place") from None
    try:
        if os.fstat(held).st_uid not in (0, owner[0]):
            raise refuse(
                "host", "the folder belongs to another user", field=str(path), next_step="choose another place"
            )
        os.fchown(held, *owner)
        os.fchmod(held, mode)
    finally:
        os.close(held)


def _locked(path: Path, what: str, flags: int) -> int:
    """The descriptor that holds the lock on `path`. Raises `RunnerError` (host) when another daemon holds it."""
    held = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise refuse(
            "host", f"another daemon uses this {what} directory", field=str(path.parent if what == "state" else path),
            next_step="stop it first",
        ) from None  # fmt: skip
    return held


def _identity(path: Path) -> str:
    """The instance id that this state directory has for ever; made at the first start, whole or not at all."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), encoding="ascii") as file:  # noqa: PTH123 - a descriptor
            found = file.read(64).strip()
    except FileNotFoundError:
        found = f"r{secrets.token_hex(4)}"
        fresh = path.with_name("instance.new")
        fresh.unlink(missing_ok=True)
        with fresh.open("w", encoding="ascii") as file:
            file.write(f"{found}\n")
            file.flush()
            os.fsync(file.fileno())  # a power loss must not leave the name of an empty file
        fresh.replace(path)
    except (OSError, UnicodeDecodeError) as error:
        raise refuse("host", f"the instance id cannot be read: {error}", field=str(path)) from None
    if not _INSTANCE.fullmatch(found):
        raise refuse("host", "not an instance id", field=str(path), next_step="restore it, or use a new state folder")
    return found


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
    """`runner serve`: refuse early and clearly, then serve. Returns the exit status."""
    privilege.require_root()
    config_path = config_path.resolve()  # the children, who read paths in it anew, work elsewhere
    config, config_bytes = load_config(config_path)
    log.configure("parent")
    os.umask(0o077)
    privilege.no_new_privileges()
    return asyncio.run(Daemon(config, config_path, config_bytes).serve())
