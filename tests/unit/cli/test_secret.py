"""`runner secret` as somebody at a keyboard uses it: a value is typed unseen, twice, or comes from a pipe or a file."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.wire import admin, frame
from runner.wire.broker import SecretView

CANARY = "canary-of-a-keyboard"


class Gate:
    """admin.sock, as far as this command uses it. `heard` are the messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[Any] = []
        self.answer: Any = admin.Done(position=7)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        decoder: frame.Decoder[Any] = frame.Decoder(admin.FromOperator, elements=4096, depth=8)
        while True:
            with contextlib.suppress(ConnectionError):
                connection, _ = self._listener.accept()
                with connection:
                    reader = frame.FrameReader(1 << 20)
                    while data := connection.recv(1 << 16):
                        if data == b"over":
                            return
                        for body in reader.feed(data):
                            self.heard.append(decoder.decode(body))
                            connection.sendall(frame.encode(self.answer))

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(self.path))
            last.sendall(b"over")
            self._thread.join()
        self._listener.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    with tempfile.TemporaryDirectory() as folder:
        made = Gate(Path(folder) / "admin.sock")
        yield made
        made.close()


def runner(gate: Gate, *words: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """With no terminal anywhere."""
    return subprocess.run(
        [sys.executable, "-m", "runner", "secret", *words, "--socket", str(gate.path)],
        input=given, stdin=subprocess.DEVNULL if given is None else None, capture_output=True, text=True, check=False,
        start_new_session=True,
    )  # fmt: skip


def typed(gate: Gate, *words: str, lines: tuple[str, ...] = ()) -> tuple[int, str]:
    """At a terminal: each line is typed when something was asked. Returns status and all that the terminal showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "runner", "secret", *words, "--socket", str(gate.path)])
    shown, left, deadline = "", [*lines], time.monotonic() + 60
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.2)[0]:
                data = os.read(terminal, 4096)
                if not data:
                    break
                shown += data.decode()
                if left and shown.endswith(": "):
                    os.write(terminal, left.pop(0).encode() + b"\n")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), shown


def test_typed_twice_and_never_shown(gate: Gate) -> None:
    status, shown = typed(gate, "set", "api", "--why", "a test", lines=(CANARY, CANARY))
    assert status == 0, shown
    assert "kept; recorded as entry 7" in shown
    assert CANARY not in shown
    assert gate.heard == [admin.SetSecret(name="api", value=CANARY.encode(), why="a test")]


def test_typed_differently_is_nothing(gate: Gate) -> None:
    status, shown = typed(gate, "set", "api", lines=(CANARY, CANARY + "x"))
    assert status == 3
    assert "not the same" in shown
    assert CANARY not in shown
    assert gate.heard == []


def test_fields_are_asked_for_one_by_one(gate: Gate) -> None:
    words = ("rotate", "login", "--field", "username", "--field", "password")
    status, shown = typed(gate, *words, lines=("me", "me", CANARY, CANARY))
    assert status == 0, shown
    assert CANARY not in shown
    (heard,) = gate.heard
    assert (heard.rotate, heard.fields) == (True, {"username": b"me", "password": CANARY.encode()})


def test_a_terminal_that_would_show_it_is_refused(gate: Gate) -> None:
    status, shown = typed(gate, "set", "api", "--stdin", lines=())
    assert status == 3
    assert "which would show it" in shown
    done = runner(gate, "set", "api")  # no terminal to turn the echo off
    assert done.returncode == 3
    assert "--stdin" in done.stderr
    assert runner(gate, "set", "api", given=f"{CANARY}\n" * 2).returncode == 3  # a pipe is read only when it is named
    assert gate.heard == []


@pytest.mark.parametrize(
    ("given", "value"),
    [(f"{CANARY}\n", CANARY), (CANARY, CANARY), (f"{CANARY}\n\n", f"{CANARY}\n"), (f"{CANARY}\r\n", f"{CANARY}\r")],
)
def test_a_pipe_less_one_newline(gate: Gate, given: str, value: str) -> None:
    done = runner(gate, "set", "api", "--stdin", "--json", given=given)
    assert json.loads(done.stdout) == {"position": 7}
    assert gate.heard[0].value == value.encode()
    assert CANARY not in done.stdout + done.stderr


def test_fields_from_a_pipe_are_a_json_object(gate: Gate) -> None:
    words = ("set", "login", "--stdin", "--field", "username", "--field", "password")
    good = json.dumps({"password": CANARY, "username": "me"})
    assert runner(gate, *words, given=good).returncode == 0
    assert gate.heard[0].fields == {"username": b"me", "password": CANARY.encode()}
    for bad in ("", CANARY, "[]", json.dumps({"password": CANARY}), json.dumps({"password": 1, "username": "me"}),
                json.dumps({"password": CANARY, "username": "me", "other": "x"})):  # fmt: skip
        done = runner(gate, *words, given=bad)
        assert done.returncode == 3
        assert CANARY not in done.stdout + done.stderr
    assert len(gate.heard) == 1


def test_a_file_of_ones_own(gate: Gate, tmp_path: Path) -> None:
    file = tmp_path / "value"
    file.write_text(f"{CANARY}\n")
    file.chmod(0o644)
    assert runner(gate, "set", "api", "--file", str(file)).returncode == 5
    file.chmod(0o600)
    assert runner(gate, "set", "api", "--file", str(file)).returncode == 0
    assert [heard.value for heard in gate.heard] == [CANARY.encode()]


def test_no_argument_is_ever_a_value(gate: Gate) -> None:
    assert runner(gate, "set", "api", CANARY, given="").returncode == 2
    assert gate.heard == []


def test_too_much_is_refused_before_it_is_sent(gate: Gate) -> None:
    done = runner(gate, "set", "api", "--stdin", given="x" * (4 << 20))
    assert done.returncode == 3
    assert gate.heard == []


def test_what_is_kept_is_listed_without_values(gate: Gate) -> None:
    view = SecretView(name="api", version=3, created="2026-01-01T00:00:00.0Z", rotated="2026-02-01T00:00:00.0Z")
    gate.answer = admin.SecretsView(secrets=(view,))
    assert json.loads(runner(gate, "list", "--json").stdout) == [
        {"name": "api", "version": 3, "created": view.created, "rotated": view.rotated, "fields": []}
    ]
    assert "api   3" in runner(gate, "list").stdout


def test_a_secret_is_removed(gate: Gate) -> None:
    assert "forgotten" in runner(gate, "rm", "api", "--why", "gone").stdout
    assert gate.heard == [admin.RemoveSecret(name="api", why="gone")]


def test_a_key_for_a_systemd_credential(tmp_path: Path) -> None:
    (tmp_path / "runner.toml").write_text('state = "state"\n')
    words = [sys.executable, "-m", "runner", "secret", "init", "--config", str(tmp_path / "runner.toml")]
    key = tmp_path / "master.key"
    subprocess.run([*words, "--key", str(key)], check=True, capture_output=True)
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_text().startswith("runner-master-1:")
    before = key.read_bytes()
    done = subprocess.run([*words, "--key", str(key)], check=False, capture_output=True, text=True)
    assert done.returncode == 5
    assert key.read_bytes() == before
    (tmp_path / "state" / "broker").mkdir(parents=True)
    (tmp_path / "state" / "broker" / "secrets").touch()
    done = subprocess.run([*words, "--key", str(tmp_path / "other")], check=False, capture_output=True, text=True)
    assert "under another key" in done.stderr
