"""What of `runner doctor` is about egress and secrets: names, trust, the wall around a call's port, the master key."""

from __future__ import annotations

import pwd
import re
import ssl
import stat
from collections.abc import Collection
from pathlib import Path

from runner.broker.master import CREDENTIAL, FILE
from runner.catalog import Catalog
from runner.cli.checks import Finding
from runner.config import Config
from runner.engine.host import landlock_abi

CONNECT_ABI = 4  # of Landlock, from which on it bounds the ports that a process may connect to (Linux 6.7)
_RESOLV = Path("/etc/resolv.conf")
_NAMESERVER = re.compile(r"^nameserver\s+(\S+)", re.MULTILINE)
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"


def egress_findings(config: Config, catalog: Catalog | None) -> list[Finding]:
    """Every one for this configuration; `catalog` is None where it cannot be read."""
    network, secret = used(catalog) if catalog is not None else ((), ())
    folder = Path(config.state) / "broker"
    return [
        port_wall(landlock_abi(), network),
        resolver(config.egress.nameservers, _read(_RESOLV)),
        *trust(config.egress.trust, _bytes(Path(config.egress.trust)) if config.egress.trust else None),
        *broker_findings(folder, config.users.broker, secret),
    ]


def used(catalog: Catalog) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tools that task profiles let have a network, and those that they let have secrets."""
    tools = {name: catalog.tools[name] for profile in catalog.task_profiles.values() for name in profile.tools}
    network = tuple(sorted(name for name, tool in tools.items() if tool.egress))
    return network, tuple(sorted(name for name, tool in tools.items() if tool.secrets))


def port_wall(abi: int, network: Collection[str]) -> Finding:
    """Calls that have a network may reach one port, which Landlock holds them to."""
    name = "port of a call"
    if abi >= CONNECT_ABI:
        return Finding(name=name, status="ok", found=f"Landlock ABI {abi} holds a call to its own")
    found = f"Landlock ABI {abi} cannot hold a call to its own port"
    if not network:
        remedy = "use Linux 6.7 or newer before tools get a network"
        return Finding(name=name, status="warn", found=found, remedy=remedy)
    remedy = f"use Linux 6.7 or newer, or take these tools out of the profiles: {', '.join(network)}"
    return Finding(name=name, status="fail", found=found, remedy=remedy)


def resolver(configured: Collection[str], text: str) -> Finding:
    """Who is asked for names."""
    servers = tuple(configured) or tuple(_NAMESERVER.findall(text))
    if servers:
        source = "[egress] nameservers" if configured else str(_RESOLV)
        return Finding(name="names", status="ok", found=f"{', '.join(servers)}, by {source}")
    remedy = f"name some in {_RESOLV}, or in [egress] nameservers; [egress] hosts alone need none"
    return Finding(name="names", status="warn", found=f"no nameserver in {_RESOLV} or [egress]", remedy=remedy)


def trust(path: str, data: bytes | None) -> list[Finding]:
    """The authorities beside the host's own, where there are any. `data` is None for a file that cannot be read."""
    if not path:
        return []
    if data is None:
        remedy = "correct [egress] trust, or put the file there"
        return [Finding(name="egress.trust", status="fail", found=f"{path} cannot be read", remedy=remedy)]
    try:
        if _CERTIFICATE not in data:
            raise ValueError("nothing that is one")
        ssl.create_default_context(cadata=data.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):
        remedy = "it has to hold certificates of authorities as PEM"
        return [Finding(name="egress.trust", status="fail", found=f"{path} holds no certificate", remedy=remedy)]
    return [Finding(name="egress.trust", status="ok", found=f"{path}, certificates: {data.count(_CERTIFICATE)}")]


def broker_findings(folder: Path, user: str, secret: Collection[str]) -> list[Finding]:
    """The broker's folder and its master key: `secret` are the tools that need it."""
    try:
        uid = pwd.getpwnam(user).pw_uid
    except KeyError:
        return []  # which is a finding already
    try:
        status = folder.lstat()
    except OSError:
        found = f"{folder} does not exist yet: `runner serve` makes it"
        return [Finding(name="broker's folder", status="ok", found=found), key(folder / FILE, None, uid, secret)]
    return [
        private("broker's folder", folder, status.st_mode, status.st_uid, uid, 0o700),
        key(folder / FILE, _status(folder / FILE), uid, secret),
    ]


def private(name: str, path: Path, mode: int, owner: int, uid: int, most: int) -> Finding:
    """Something of the broker's that is nobody else's: `most` is the mode it has at most, `uid` its owner's."""
    bits = stat.S_IMODE(mode)
    if owner != uid or bits & ~most or stat.S_ISLNK(mode):
        found = f"{path} has owner {owner} and mode {bits:04o}; it has to be uid {uid}'s alone, {most:04o}"
        remedy = f"find out who could read it; then chown {uid} {path}; chmod {most:04o} {path}"
        return Finding(name=name, status="fail", found=found, remedy=remedy)
    return Finding(name=name, status="ok", found=f"{path}, mode {bits:04o}")


def key(path: Path, found: tuple[int, int] | None, uid: int, secret: Collection[str]) -> Finding:
    """The master key as (mode, owner), None where there is no such file: systemd may give it instead."""
    if found is not None:
        return private("master key", path, *found, uid, 0o600)
    remedy = f"run `runner secret init`, unless systemd gives the credential {CREDENTIAL}"
    if secret:
        said = f"no {path}, and these tools take secrets: {', '.join(secret)}"
        return Finding(name="master key", status="warn", found=said, remedy=remedy)
    return Finding(name="master key", status="ok", found="none, and no tool of a profile takes a stored secret")


def _status(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_mode, status.st_uid


def _read(path: Path) -> str:
    return (_bytes(path) or b"").decode("utf-8", "replace")


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
