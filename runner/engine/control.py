"""The control socket of one sandbox: made for one connection from one process, then gone.

The folder is bound read-only into the container. Landlock cannot stop a tool from connecting to a path socket, so
the path must not exist any more when the first tool runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
from pathlib import Path

import anyio

from runner.engine.template import CONTROL_NAME
from runner.errors import refuse

_PEER = struct.Struct("3i")


class ControlSocket:
    """Listens in `folder` for PID 1 of one container. Close it whatever happens; closing twice does nothing."""

    def __init__(self, folder: Path, uid: int) -> None:
        """Make the folder (root's, 0711: passable, not listable) and a socket that only `uid` may connect to."""
        folder.mkdir(parents=True, mode=0o711)
        folder.chmod(0o711)  # whatever the umask made of it
        self.folder = folder
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        handle = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Through the descriptor: the whole path may be longer than the 107 bytes an address holds.
            self._listener.bind(f"/proc/self/fd/{handle}/{CONTROL_NAME}")
            os.chmod(CONTROL_NAME, 0o600, dir_fd=handle)
            os.chown(CONTROL_NAME, uid, uid, dir_fd=handle, follow_symlinks=False)
            self._listener.listen(1)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(handle)

    async def accept(self, pid: int, uid: int) -> int:
        """The descriptor of the first connection, which must be PID 1's. Unlinks the path and stops listening.

        Raises `RunnerError` (host) when somebody else came first."""
        try:
            while True:
                await anyio.wait_readable(self._listener)
                with contextlib.suppress(BlockingIOError):
                    connection, _ = self._listener.accept()
                    break
        finally:
            self.close()
        found_pid, found_uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if (found_pid, found_uid) != (pid, uid):
            connection.close()
            raise refuse(
                "host",
                f"the control socket was taken by process {found_pid} of uid {found_uid}, not by PID 1 of the sandbox "
                f"({pid}, uid {uid})",
            )
        return connection.detach()

    def close(self) -> None:
        """Unlink the path first, so that no connection can be queued behind the one that was accepted."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / CONTROL_NAME).unlink()
        self._listener.close()


def remove_folder(folder: Path) -> None:
    """Remove a control folder. Only root ever writes in it (the container sees it read-only)."""
    shutil.rmtree(folder, ignore_errors=True)
