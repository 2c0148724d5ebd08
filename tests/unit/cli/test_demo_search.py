"""The demo's search: what it says is found nowhere, it would have found."""

from __future__ import annotations

import base64
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from runner.cli.demo_search import Search, files, memory, rows, spoken

KEY = "ord-Zp3_tV-9qQ0aXw7LkE2yBnM5uHs8RcJd1Gf4oIiT"
PLACEHOLDER = b"rnr-" + b"A" * 32


@pytest.mark.parametrize(
    "hidden",
    [
        KEY.encode(),
        KEY.encode().hex().encode(),
        KEY.encode().hex().upper().encode(),
        KEY[::-1].encode(),
        *(base64.b64encode(b"Bearer "[:count] + KEY.encode() + b"..") for count in range(7)),
        *(base64.urlsafe_b64encode(b"x" * count + KEY.encode()) for count in range(3)),
    ],
)
def test_each_form_is_found_wherever_it_stands_and_its_twin_without_a_letter_is_not(hidden: bytes) -> None:
    search = Search(KEY)
    data = b"before " + hidden + b" after"
    assert search.look("it", [data]).keys == 1
    for cut in range(1, len(data)):
        assert search.look("it", [data[:cut], data[cut:]]).keys == 1, cut
    assert search.look("it", [data[index : index + 1] for index in range(len(data))]).keys == 1
    middle = 7 + len(hidden) // 2
    assert search.look("it", [data[:middle], data[middle + 1 :]]).keys == 0


def test_each_occurrence_and_each_placeholder_is_counted_once() -> None:
    found = Search(KEY).look("it", [KEY.encode() + PLACEHOLDER, b" " * 10, KEY.encode() * 2, PLACEHOLDER])
    assert (found.keys, found.placeholders) == (3, 2)
    assert found.size == 3 * len(KEY) + 2 * len(PLACEHOLDER) + 10


def test_a_process_is_looked_through_in_memory_environment_and_command_line() -> None:
    search = Search(KEY)
    code = "import sys; key = sys.stdin.buffer.readline() + b' '; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, "an-argument"]
    environment = {**os.environ, "A_PLACEHOLDER": PLACEHOLDER.decode()}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(KEY.encode() + b"\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"\n"
        assert search.look("memory", memory([child.pid])).keys > 0
        said = search.look("said", spoken([child.pid]))
        assert (said.keys, said.placeholders) == (0, 1)
        assert b"an-argument" in b"".join(spoken([child.pid]))
        child.stdin.close()
        child.wait()
    assert list(memory([child.pid])) == [b"\0"]  # gone, and no error


def test_files_are_read_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "file").write_text(f"{KEY} {PLACEHOLDER.decode()}")
    (tmp_path / "outside").write_text(KEY)
    (tmp_path / "in" / "link").symlink_to("../outside")
    os.mkfifo(tmp_path / "in" / "fifo")
    (tmp_path / "in" / f"named-{KEY}").touch()
    search = Search(KEY)
    found = search.look("files", files(tmp_path / "in"))
    assert (found.keys, found.placeholders) == (2, 1)
    assert search.look("files", files(tmp_path / "in", leave=["deep"])).keys == 1


def test_a_value_that_a_database_keeps_in_pieces_is_found_in_its_row(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "of-rows") as database:
        database.execute("CREATE TABLE kept (name TEXT, data BLOB)")
        for after in range(0, 9000, 20):  # pages are cut from the end on: more than one, by less than the key
            row = (str(after), b"x" * 9000 + KEY.encode() + b"x" * after)
            database.execute("INSERT INTO kept VALUES (?, ?)", row)
    database.close()
    (tmp_path / "no-database").write_text("nothing")
    search = Search(KEY)
    assert search.look("rows", rows(tmp_path)).keys == 450
    assert search.look("files", files(tmp_path)).keys < 450  # in the file some are cut by the ends of pages
