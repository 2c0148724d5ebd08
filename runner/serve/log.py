"""Logs: one line an event on stderr, `time process level text`, control characters made visible."""

from __future__ import annotations

import logging
import sys
import time


class _Line(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)

    def formatException(self, ei: object) -> str:  # noqa: N802 - the name is logging's
        import traceback

        assert isinstance(ei, tuple)
        return " | ".join(line.strip().replace("\n", " | ") for line in traceback.format_exception(*ei))


def configure(process: str) -> None:
    """Send this process's log to stderr, one line an event."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(f"%(asctime)sZ {process} %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
