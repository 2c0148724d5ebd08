"""Secrets that programs print: real programs, and what they may not do."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from runner.broker.providers.command import Command
from runner.broker.providers.provider import Issued, Wish
from runner.config import CommandProvider, CommandSecret
from runner.errors import RunnerError

FULL, READ = Wish(read=False, ttl_s=60.0), Wish(read=True, ttl_s=60.0)
PYTHON = os.path.realpath(sys.executable)
CANARY = "canary-of-a-program"


def command(*argv: str, read: tuple[str, ...] = (), **options: object) -> Command:
    secret = CommandSecret(argv=argv, read_argv=read, **{"timeout_s": 10.0, **options})  # type: ignore[arg-type]
    return Command("pass", CommandProvider(secrets={"x": secret}))


def python(code: str, **options: object) -> Command:
    return command(PYTHON, "-I", "-c", code, **options)  # type: ignore[arg-type]


def issue(provider: Command, wish: Wish = FULL) -> Issued:
    return provider.issue("x", wish)


def refused(provider: Command) -> RunnerError:
    with pytest.raises(RunnerError) as caught:
        issue(provider)
    assert caught.value.refused.code == "unavailable"
    assert CANARY not in str(caught.value)
    return caught.value


def test_what_it_prints_less_one_newline() -> None:
    for printed, value in (("12345678", b"12345678"), ("12345678\n", b"12345678"), ("12345678\n\n", b"12345678\n")):
        issued = issue(python(f"import sys; sys.stdout.write({printed!r})"))
        assert issued.secret.value == value
        assert (issued.handle, issued.ttl_s) == ("", None)
        assert value.decode() not in repr(issued)


def test_members_of_a_json_object() -> None:
    provider = python('print(\'{"a": {"b": 1}, "user": "me", "key": "12345678"}\')', field="key", username="user")
    assert issue(provider).secret.fields == {"username": b"me", "password": b"12345678"}


def test_a_tool_that_only_reads_gets_what_another_program_prints() -> None:
    provider = command("/bin/echo", "full-access", read=("/bin/echo", "read-only"))
    assert (issue(provider).secret.value, issue(provider).reach) == (b"full-access", "full")
    assert (issue(provider, READ).secret.value, issue(provider, READ).reach) == (b"read-only", "read")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (f"print('{CANARY}'); raise SystemExit(3)", "ended with 3"),
        ("print('1234567')", "printed 7 bytes"),
        ("pass", "printed 0 bytes"),
        (f"print('{CANARY}' * 4000)", "printed more than"),
        (f"while True: print('{CANARY}')", "printed more than"),
        (f"import time; print('{CANARY}', flush=True); time.sleep(60)", "did not end within"),
        ("import os, time; os.close(1); time.sleep(60)", "did not end within"),
        ("import os; os.kill(os.getpid(), 11)", "ended with -11"),
    ],
)
def test_a_program_that_fails_in_any_way_is_a_refusal(code: str, said: str) -> None:
    assert said in refused(python(code, timeout_s=2.0)).refused.reason


@pytest.mark.parametrize("printed", ["no json", "[]", '{"key": 5}', '{"key": "short"}', '{"other": "12345678"}'])
def test_json_that_is_not_what_was_configured(printed: str) -> None:
    refused(python(f"print({printed!r})", field="key"))


def test_a_program_that_is_not_there() -> None:
    assert "ended with" in refused(command("/nonexistent/program")).refused.reason


def test_what_it_writes_to_stderr_goes_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    refused(python(f"import sys; print('{CANARY}', file=sys.stderr); raise SystemExit(1)"))
    issue(python(f"import sys; print('{CANARY}', file=sys.stderr); print('12345678')"))
    said = capfd.readouterr()
    assert CANARY not in said.out + said.err


def test_no_shell_and_an_empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", CANARY)
    assert issue(command("/bin/echo", "$HOME; id `id` 'x'")).secret.value == b"$HOME; id `id` 'x'"
    code = "import os; print(sorted(os.environ), os.getcwd(), os.read(0, 1))"
    assert (
        issue(python(code)).secret.value == b"['LANG', 'LC_CTYPE', 'PATH'] / b''"
        or issue(python(code)).secret.value == b"['LANG', 'PATH'] / b''"
    )


@pytest.fixture
def listener() -> Iterator[int]:
    """Where egress would answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_it_has_no_network_not_even_the_houses_own(listener: int, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    code = f"""
import socket
said = []
for family, kind in ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET6, socket.SOCK_STREAM),
                     (socket.AF_INET, socket.SOCK_DGRAM), (socket.AF_NETLINK, socket.SOCK_RAW),
                     (socket.AF_VSOCK, socket.SOCK_STREAM)):
    try:
        socket.socket(family, kind).connect(("127.0.0.1", {listener}))
        said.append("open")
    except OSError as error:
        said.append(error.errno)
with socket.socket(socket.AF_UNIX) as own:
    own.bind({str(path)!r})
print("answer", *said)
"""
    assert issue(python(code)).secret.value == b"answer 13 13 13 13 13"
    with socket.create_connection(("127.0.0.1", listener), 5):
        pass  # whoever is not confined gets through


def test_it_has_no_core_and_bounded_files(tmp_path: Path) -> None:
    code = "import resource as r; print([r.getrlimit(x) for x in (r.RLIMIT_CORE, r.RLIMIT_NOFILE, r.RLIMIT_FSIZE)])"
    assert issue(python(code)).secret.value == b"[(0, 0), (256, 256), (16777216, 16777216)]"


def test_nothing_of_it_stays(tmp_path: Path) -> None:
    """A child of it too, whether it ended well or was late."""
    for rest in ("print('12345678')", "import time; time.sleep(60)"):
        note = tmp_path / "pid"
        code = (
            "import subprocess, pathlib\n"
            f"child = subprocess.Popen(['/bin/sleep', '60'], stdout=subprocess.DEVNULL)\n"
            f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\n{rest}"
        )
        with contextlib.suppress(RunnerError):
            issue(python(code, timeout_s=3.0))
        pid = int(note.read_text())
        deadline = time.monotonic() + 20
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        note.unlink()


def test_there_is_nothing_to_renew_or_revoke() -> None:
    provider = command("/bin/echo", "12345678")
    provider.revoke("anything")
    with pytest.raises(RunnerError):
        provider.renew("anything", 1.0)
