"""What a person at a terminal sees, and what a pipe gets."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

CODE = """
from runner.cli.tables import print_table, print_text
print_text("one two three four five six seven \\x1b[31m", "  - ", "    ")
print_table(("name", "value"), [("a", "\\x1b[31mred"), ("long", "x")])
"""


def on_a_terminal() -> str:
    """What `CODE` writes to a terminal of 24 columns."""
    master, slave = pty.openpty()
    command = [sys.executable, "-c", CODE]
    with subprocess.Popen(command, stdout=slave, env={**os.environ, "COLUMNS": "24", "TERM": "dumb"}) as process:
        os.close(slave)
        said = b""
        try:
            while data := os.read(master, 4096):
                said += data
        except OSError:  # the terminal's other end is closed: all was read
            pass
        finally:
            os.close(master)
    assert process.returncode == 0
    return said.decode()


def test_a_terminal_gets_lines_broken_between_words() -> None:
    lines = [line.rstrip() for line in on_a_terminal().splitlines()]
    assert lines[:2] == ["  - one two three four", "    five six seven"]
    assert lines[2] == "    \\u001b[31m"
    assert all(len(line) <= 24 for line in lines)


def test_a_pipe_gets_whole_aligned_lines() -> None:
    said = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [
        "  - one two three four five six seven \\u001b[31m",
        "name  value",
        "a     \\u001b[31mred",
        "long  x",
    ]


def test_neither_gets_a_control_character() -> None:
    assert "\x1b" not in on_a_terminal()
