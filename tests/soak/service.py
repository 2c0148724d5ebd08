"""A service on loopback that answers when it is told to, and tools that reach it: for holds and long runs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from outside import Echo
from reached import HOST, World

if TYPE_CHECKING:
    from house import Daemon


class Service(World):
    """Requests for `/held…` wait until `answers` is set; every request is noted as it arrives."""

    def __init__(self, place: Path) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.arrived: list[str] = []
        service = self

        class Held(Echo):
            def do_GET(self) -> None:  # noqa: N802  # the library asks for it
                service.arrived.append(self.path)
                if self.path.startswith("/held"):
                    service.answers.wait(60)
                self._answer()

        super().__init__(place, Held)

    def asked(self, word: str) -> int:
        """How many requests with this word in their path have arrived."""
        return sum(word in path for path in self.arrived)

    def url(self, path: str) -> str:
        return f"https://{HOST}:{self.web.port}{path}"

    def connections(self, daemon: Daemon) -> int:
        """How many egress has open to it."""
        found = daemon.child("egress").net_connections("tcp")
        return sum(
            bool(each.raddr) and each.raddr.port == self.web.port and each.status == psutil.CONN_ESTABLISHED
            for each in found
        )

    def close(self) -> None:
        """Everything of it is gone when this returns."""
        self.answers.set()
        self.web.close()
