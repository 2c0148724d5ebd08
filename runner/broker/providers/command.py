"""Secrets that a program prints: no shell, no network, an empty environment, bounded time and output.

What it writes to stderr is thrown away: it could be the secret. It runs in a session of its own, which ends with it and
with the broker; a program of the operator's own that hides a process in another session is not hunted.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

import msgspec

from runner.broker.providers.provider import Issued, Wish, secret_of, unavailable
from runner.broker.secret import Secret
from runner.config import CommandProvider, CommandSecret
from runner.errors import RunnerError
from runner.wire.broker import MAX_SECRET, MIN_SECRET

_MAX_OUTPUT = MAX_SECRET + (4 << 10)  # JSON around it
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


class Command:
    """The provider."""

    def __init__(self, name: str, config: CommandProvider) -> None:
        self._name = name
        self._secrets = config.secrets

    def issue(self, name: str, wish: Wish) -> Issued:
        """As `Provider`."""
        asked = self._secrets[name]
        read = bool(wish.read and asked.read_argv)
        whose = f"{self._name}:{name}"
        output = _run(asked.read_argv if read else asked.argv, asked.timeout_s, whose)
        try:
            return Issued(_secret(output, asked, whose), reach="read" if read else "full")
        finally:
            output[:] = bytes(len(output))

    def renew(self, handle: str, ttl_s: float) -> float:
        """Nothing to renew: what it printed has no handle."""
        raise unavailable(f"{self._name}: nothing to renew")

    def revoke(self, handle: str) -> None:
        """Nothing to revoke."""


def _secret(output: bytearray, asked: CommandSecret, whose: str) -> Secret:
    if asked.field:
        try:
            answer = msgspec.json.decode(output)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise unavailable(f"{whose}: what the program printed is no JSON", next_step="run it by hand") from None
        return secret_of(answer, asked.field, asked.username, whose=whose)
    value = output[:-1] if output.endswith(b"\n") else output[:]
    if not MIN_SECRET <= len(value) <= MAX_SECRET:
        raise unavailable(
            f"{whose}: the program printed {len(value)} bytes, not {MIN_SECRET} to {MAX_SECRET}",
            next_step="run it by hand",
        )
    return Secret(value)


def _run(argv: tuple[str, ...], seconds: float, whose: str) -> bytearray:
    """Its standard output. Raises `RunnerError` (unavailable)."""
    deadline = time.monotonic() + seconds
    output = bytearray()
    process = subprocess.Popen(
        [sys.executable, "-I", "-m", "runner.broker.confine", *argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=_ENVIRONMENT,
        start_new_session=True,
    )
    assert process.stdout is not None
    ended = os.pidfd_open(process.pid)
    try:
        _collect(process.stdout.fileno(), output, deadline, seconds, whose)
        _await(ended, deadline, seconds, whose)
        _end(process)
        status = process.wait()
        if status != 0:
            raise unavailable(
                f"{whose}: the program ended with {status}",
                next_step="run it by hand as the broker's user: what it says is not logged, as it may hold the secret",
            )
        return output
    except BaseException:
        output[:] = bytes(len(output))
        raise
    finally:
        if process.returncode is None:
            _end(process)
            process.wait()
        os.close(ended)
        process.stdout.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill its whole session. Not reaped yet, so that its number is still its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _await(descriptor: int, deadline: float, seconds: float, whose: str) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise _late(whose, seconds)


def _collect(pipe: int, output: bytearray, deadline: float, seconds: float, whose: str) -> None:
    while True:
        _await(pipe, deadline, seconds, whose)
        data = os.read(pipe, _MAX_OUTPUT + 1 - len(output))
        if not data:
            return
        output += data
        if len(output) > _MAX_OUTPUT:
            raise unavailable(f"{whose}: the program printed more than {_MAX_OUTPUT} bytes", next_step="run it by hand")


def _late(whose: str, seconds: float) -> RunnerError:
    return unavailable(f"{whose}: the program did not end within {seconds:g} s", next_step="run it by hand", again=True)
