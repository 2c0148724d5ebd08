"""A Docker engine of a test's own: its data, its socket, its bridge; the shared one is never touched.

Never `--bridge=none`: that deletes docker0, which belongs to the shared engine."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import docker as sdk


class Dockerd:
    """`with Dockerd(image) as engine:` runs one that holds `image` (an id that the shared engine has)."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._place = Path(tempfile.mkdtemp(prefix="toolrunner-dockerd-"))
        self._bridge = f"trt{secrets.token_hex(3)}"
        self._process: subprocess.Popen[bytes] | None = None
        self.host = f"unix://{self._place}/docker.sock"

    def __enter__(self) -> Dockerd:
        try:
            _run("ip", "link", "add", self._bridge, "type", "bridge")
            _run("ip", "address", "add", "198.51.100.1/28", "dev", self._bridge)  # a documentation network
            self.start()
            archive = self._place / "image.tar"
            _run("docker", "save", "--output", str(archive), self._image)
            _run("docker", "--host", self.host, "load", "--input", str(archive))
            archive.unlink()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._answers():
            api = sdk.APIClient(base_url=self.host, version="auto")
            for item in api.containers(all=True):
                api.remove_container(item["Id"], force=True)
            api.close()
        self.end(signal.SIGTERM)
        _run("ip", "link", "delete", self._bridge, check=False)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            if line.split()[4].startswith(f"{self._place}/"):
                _run("umount", line.split()[4], check=False)
        shutil.rmtree(self._place)

    def start(self) -> None:
        """Start it, or start it again; returns when it answers."""
        # Of one that was killed: the pid of a zombie, or of another by now, would be taken for its containerd's.
        for left in ("docker.pid", "exec/containerd/containerd.pid"):
            (self._place / left).unlink(missing_ok=True)
        with (self._place / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "dockerd",
                    *("--data-root", str(self._place / "data"), "--exec-root", str(self._place / "exec")),
                    *("--pidfile", str(self._place / "docker.pid"), "--host", self.host),
                    *("--bridge", self._bridge, "--iptables=false", "--ip-masq=false", "--ip-forward=false"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, (self._place / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (self._place / "log").read_text()[-2000:]
            time.sleep(0.05)

    def _answers(self) -> bool:
        """Not by the SDK: it leaves a socket open when nothing answers."""
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.settimeout(10)
            probe.connect(f"{self._place}/docker.sock")
            probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in probe.recv(100)
        return False

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def end(self, number: int) -> None:
        """End it by a signal; returns when it has ended."""
        if self._process is not None and self.running:
            self._process.send_signal(number)
            self._process.wait(60)


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
