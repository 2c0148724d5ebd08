"""Output of commands: a table for a person at a terminal, plain aligned lines for a pipe, JSON for a program."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

import msgspec


def print_json(value: Any) -> None:
    """`value` as indented JSON with sorted keys, on standard output."""
    print(msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2).decode())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """`rows` under `columns`. Text from files is shown with its control characters escaped."""
    clean = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        # Imported late: a command in a pipe starts 60 ms sooner without it.
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title or None, title_justify="left", box=None, header_style="bold", pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in clean:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    widths = [max(len(cell) for cell in cells) for cells in zip(columns, *clean, strict=True)]
    for line in (columns, *clean):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_text(text: str, first: str = "", rest: str = "") -> None:
    """A paragraph behind `first`, further lines behind `rest`, broken between words at the terminal's width."""
    line = printable(text)
    if not sys.stdout.isatty():
        print(first + line)
        return
    width = shutil.get_terminal_size().columns
    print(textwrap.fill(line, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False))


def printable(text: str) -> str:
    """`text` on one line, control characters and direction marks escaped."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
