"""T04 on a whole daemon: nothing that a token's header points at makes gate open a file or a connection.

`test_token.py` watches the interpreter, which does not see what a library does below Python; here the kernel is asked.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from house import Daemon

from runner.client import CallError, Credentials, connect
from runner.config import Limits
from runner.token import credentials, strict
from runner.token.jcs import canonical
from runner.token.keys import SigningKey, generate
from runner.wire import admin

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace"),
]
OPENING = ("open", "openat", "openat2", "creat", "socket", "connect", "execve", "execveat")
ATTACKER = SigningKey(generate())
POINTERS: list[dict[str, Any]] = [
    {"kid": "/etc/passwd"},
    {"kid": "../../../../dev/null"},
    {"kid": "x' UNION SELECT 'AAAA"},
    {"kid": "| touch /tmp/owned"},
    {"kid": "http://127.0.0.1:9/key"},
    {"jku": "http://127.0.0.1:9/keys"},
    {"jku": "file:///etc/passwd"},
    {"x5u": "http://127.0.0.1:9/cert"},
    {"x5c": ["MIIB"]},
    {"jwk": ATTACKER.public.jwk()},
]


def pointing(token: str, pointer: dict[str, Any], key: SigningKey) -> str:
    """The same claims under a header that points somewhere, signed by `key`."""
    header = canonical({"alg": strict.ALGORITHM, "typ": strict.TOKEN_TYPE, **pointer})
    signing_input = f"{strict.b64(header)}.{token.split('.')[1]}"
    return f"{signing_input}.{strict.b64(key.sign(signing_input.encode()))}"


def outcome(handed: Credentials) -> str:
    try:
        connect(credentials=handed).close()
    except CallError as error:
        return str(error.refused.reason)
    return ""


def test_the_kernel_sees_no_file_and_no_connection_opened(daemon: Daemon, tmp_path: Path) -> None:
    """A stranger's signature is refused, a genuine one beside the same pointers is accepted once announced."""
    told: list[tuple[Credentials, str]] = []
    for pointer in POINTERS:
        given = credentials.parse(daemon.credentials(say=False))
        claims = strict.parse_json(strict.compact(given.leaf, strict.TOKEN_TYPE, 1 << 16, "").payload, 80)
        for key, said in ((ATTACKER, strict.GENERIC), (daemon.issuer, "")):
            text = pointing(given.leaf, pointer, key)
            told.append((Credentials(chain=(text,), key=given.key, socket=given.socket), said))
        genuine = strict.compact(text, strict.TOKEN_TYPE, Limits().token_bytes, "").digest
        announced = admin.Announce(
            jti=claims["jti"], digest=genuine, issuer=claims["iss"], issued=claims["iat"], expires=claims["exp"],
            tools=tuple(claims["authorization_details"][0]["tools"]), **claims["runner"],
        )  # fmt: skip
        daemon.ask(announced)
    trace = tmp_path / "trace"
    calls = ",".join((*OPENING, "accept", "accept4"))
    strace = subprocess.Popen(
        ["strace", "-f", "-o", str(trace), "-e", f"trace={calls}", "-p", str(daemon.child("gate").pid)],
        stderr=subprocess.PIPE,
    )
    try:
        assert strace.stderr
        assert b"attached" in strace.stderr.readline()
        assert [outcome(handed) for handed, _ in told] == [said for _, said in told]
    finally:
        strace.terminate()
        strace.communicate()
    seen = Counter(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))
    assert seen["accept"] + seen["accept4"] >= len(told)  # the control: what gate does is seen
    assert {name: seen[name] for name in OPENING if seen[name]} == {}
