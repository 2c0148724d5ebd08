"""Where in a TOML file something is written, so that every error can name file and line."""

from __future__ import annotations

import re

from runner.errors import RunnerError, refuse

_PART = r"""(?:[A-Za-z0-9_$-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_PART}(?:\s*\.\s*{_PART})*"
_TABLE = re.compile(rf"^\s*\[+\s*({_DOTTED})\s*\]+")
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
        """`name:line` of the deepest part of `path` that the file writes; `name` when it writes none of it."""
        best, line = 0, 0
        table: tuple[str, ...] = ()
        for number, content in enumerate(self._lines, 1):
            opened, key = _TABLE.match(content), _KEY.match(content)
            if opened:
                table = found = _parts(opened.group(1))
            elif key:
                found = (*table, *_parts(key.group(1)))
            else:
                continue
            if best < len(found) <= len(path) and found == path[: len(found)]:
                best, line = len(found), number
        return f"{self._name}:{line}" if line else self._name


def _parts(key: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_PART, key))
