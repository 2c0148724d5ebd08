"""The seed: a copy of PID 1 made before it knew of anything, which forks every launcher and is told nothing itself.
What a call's process may find in memory of its launcher is what every sandbox holds, and that launcher's own walls."""

from __future__ import annotations

import gc
import importlib
import os
import socket
import sys

from runner.guest import frame
from runner.guest.launcher import Launcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def launch(abi: int, passed: list[int]) -> NoReturn:
    """Be a launcher of what is `passed` to it."""
    try:
        Launcher(abi, passed).run()
    except BaseException as error:
        sys.stderr.write(f"launcher: {type(error).__name__}: {error}\n")
    finally:
        os._exit(1)


def serve(requests: socket.socket, abi: int) -> NoReturn:
    """Fork a launcher for each message, one byte and the descriptors that `launch` takes, until PID 1 is gone. A fork
    that fails is answered on the launcher's own connection."""
    held: list[int] = []
    try:
        while True:
            data, passed, _, _ = socket.recv_fds(requests, 1, 3)
            if not data:
                break
            if len(passed) > 2 and "runner.guest.python_tool" not in sys.modules:  # once for all python tools
                importlib.import_module("runner.guest.python_tool")
                gc.collect()
                gc.freeze()
            try:
                if not os.fork():
                    launch(abi, passed)
            except OSError as error:
                fault = {"code": "unavailable", "reason": f"cannot be started: {error}"}
                os.write(passed[0], frame.pack(frame.FAULT, 0, frame.encode(fault)))
                held += passed  # PID 1 may not have written all it will: with the next one it has
                continue
            for descriptor in held + passed:
                os.close(descriptor)
            held.clear()
    finally:
        os._exit(1)
