"""Where in a TOML file something is written, so that every error can name file and line."""

from __future__ import annotations

import re
from collections import Counter

from runner.errors import RunnerError, refuse

_PART = r"""(?:[A-Za-z0-9_$-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_PART}(?:\s*\.\s*{_PART})*"
_TABLE = re.compile(rf"^\s*(\[+)\s*({_DOTTED})\s*\]+")
_KEY = re.compile(rf"^\s*({_DOTTED})\s*=")


class Place:
    """One TOML file under the name that errors show, and the code that its errors have."""

    def __init__(self, name: str, text: bytes, code: str) -> None:
        self._name = name
        self._code = code
        self._lines = text.decode("utf-8", "replace").splitlines()

    def wrong(self, reason: str, *path: str, next_step: str = "") -> RunnerError:
        """The error to raise for the key at `path`; its field is `name:line`."""
        return refuse(self._code, reason, field=self.at(*path), next_step=next_step)

    def at(self, *path: str) -> str:
        """`name:line` of the deepest part of `path` that the file writes; `name` when it writes none of it. Of an array
        of tables the number follows its name: `("egress", "1", "host")`."""
        best, line = 0, 0
        table: tuple[str, ...] = ()
        tables: Counter[tuple[str, ...]] = Counter()
        for number, content in enumerate(self._lines, 1):
            opened, key = _TABLE.match(content), _KEY.match(content)
            if opened:
                table = found = _parts(opened.group(2))
                if opened.group(1) == "[[":
                    table = found = (*table, str(tables[table]))
                    tables[found[:-1]] += 1
            elif key:
                found = (*table, *_parts(key.group(1)))
            else:
                continue
            # The first table of an array also stands for the array itself.
            wanted = path[: len(found)] if len(found) <= len(path) else (*path, "0")
            if best < len(found) <= len(path) + 1 and found == wanted:
                best, line = len(found), number
        return f"{self._name}:{line}" if line else self._name


def _parts(key: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_PART, key))
