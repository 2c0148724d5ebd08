"""The guest's side of the control connection: 4-byte length, type byte, 4-byte call number, JSON or raw bytes.

Shares no code with `runner/wire/guest.py`; `tests/vectors/guest.json` holds both to the same bytes. Supervisor and
launchers speak it among themselves too.
"""

from __future__ import annotations

import json
import struct

try:  # the interpreter's own: hashlib would load libcrypto, 2 MB in every sandbox
    from _sha2 import sha256  # type: ignore[import-not-found] # private, and in no stub
except ImportError:  # before Python 3.12
    from _sha256 import sha256  # type: ignore[import-not-found] # the same

TYPE_CHECKING = False  # typing itself would cost every sandbox half a megabyte
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

_encoder = json.JSONEncoder(separators=(",", ":"))
_HEAD = struct.Struct(">IBI")  # payload length, type, call number (0 = the sandbox itself)
MAX_DATA, MAX_JSON = 64 << 10, 4 << 20  # one piece of output or stdin; tool code, as JSON with base64

CODE, START, STDIN, CREDIT, CANCEL, PING, PREPARE, TRUST = range(0x01, 0x09)
READY, CODE_READY, STARTED, STDOUT, STDERR, STDIN_CREDIT, PONG, RESULT, ENDED, FAULT = range(0x80, 0x8A)

BUILD, BUILT = 0x40, 0x41  # between PID 1 and launchers alone

# Which types may come on a connection, and the largest payload of each.
FROM_GATE = {CODE: MAX_JSON, START: MAX_JSON, STDIN: MAX_DATA, CREDIT: 4, CANCEL: 1 << 10, PING: 0, PREPARE: MAX_JSON}
FROM_GATE[TRUST] = MAX_JSON
TO_LAUNCHER = {BUILD: MAX_JSON, START: MAX_JSON}
FROM_LAUNCHER = {BUILT: 64 << 10, STARTED: 0, ENDED: 64, FAULT: 16 << 10}
# An end: wait status of the first process; of all: user and system CPU in us; its RSS in KiB; wall in us; leftover.
REPORT = struct.Struct(">iQQQQQ")


def encode(message: Mapping[str, Any]) -> bytes:
    """A JSON payload."""
    return _encoder.encode(message).encode()


def pack(kind: int, call: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return _HEAD.pack(len(payload), kind, call) + payload


def code_digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 over a tool's files in path order, each as length-prefixed path and length-prefixed bytes."""
    total = sha256()
    for path in sorted(files):
        name = path.encode()
        total.update(struct.pack(">I", len(name)) + name + struct.pack(">Q", len(files[path])) + files[path])
    digest: str = total.hexdigest()
    return digest


class Reader:
    """Bytes in, (type, call, payload) out. `limits` names the types that may come, each with its largest payload."""

    def __init__(self, limits: Mapping[int, int]) -> None:
        self._limits, self._buffer = limits, bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Add `data`; yield each complete frame. Raises ValueError before a body that may not come is kept."""
        self._buffer += data
        while len(self._buffer) >= _HEAD.size:
            length, kind, call = _HEAD.unpack_from(self._buffer)
            if length > self._limits.get(kind, -1):
                raise ValueError(f"type 0x{kind:02x} with {length} bytes may not come here")
            end = _HEAD.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEAD.size : end])
            del self._buffer[:end]
            yield kind, call, payload
