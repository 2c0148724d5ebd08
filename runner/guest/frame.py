"""The guest's side of the control connection: 4-byte length, type byte, 4-byte call number, JSON or raw bytes.

Shares no code with `runner/wire/guest.py`; `tests/vectors/guest.json` holds both to the same bytes. The
supervisor speaks the same frames with its launchers.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

_HEAD = struct.Struct(">IBI")  # payload length, type, call number (0 = the sandbox itself)
MAX_DATA = 64 << 10  # one piece of output or stdin
MAX_JSON = 4 << 20  # tool code travels as JSON with base64

CODE, START, STDIN, CREDIT, CANCEL, PING = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
READY, CODE_READY, STARTED, STDOUT, STDERR, STDIN_CREDIT, PONG, RESULT, ENDED, FAULT = range(0x80, 0x8A)

# Which types may come, and the largest payload of each.
FROM_GATE = {CODE: MAX_JSON, START: MAX_JSON, STDIN: MAX_DATA, CREDIT: 4, CANCEL: 1 << 10, PING: 0}
LAUNCHER = {START: MAX_JSON, CANCEL: 0, STARTED: 64 << 10, ENDED: 1 << 10, FAULT: 16 << 10}


class ProtocolError(Exception):
    """The peer's bytes are not a frame, or not valid now. There is no recovery: the connection is over."""


def pack(kind: int, call: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return _HEAD.pack(len(payload), kind, call) + payload


def pack_json(kind: int, call: int, message: Mapping[str, Any]) -> bytes:
    """One frame with a JSON payload."""
    return pack(kind, call, json.dumps(message, separators=(",", ":")).encode())


def read_json(payload: bytes) -> dict[str, Any]:
    """A JSON object. Raises `ProtocolError`."""
    try:
        message: dict[str, Any] = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise ProtocolError("not a JSON object")
    return message


def code_digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 over a tool's files in path order, each as length-prefixed path and length-prefixed bytes."""
    total = hashlib.sha256()
    for path in sorted(files):
        name = path.encode()
        total.update(struct.pack(">I", len(name)) + name + struct.pack(">Q", len(files[path])) + files[path])
    return total.hexdigest()


class Reader:
    """Bytes in, (type, call, payload) out. `limits` names the types that may come, each with its largest payload."""

    def __init__(self, limits: Mapping[int, int]) -> None:
        self._limits, self._buffer = limits, bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Add `data`; yield each complete frame. Raises `ProtocolError` before a body is kept."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _HEAD.size:
                length, kind, call = _HEAD.unpack_from(self._buffer, start)
                if length > self._limits.get(kind, -1):
                    raise ProtocolError(f"type 0x{kind:02x} with {length} bytes")
                end = start + _HEAD.size + length
                if len(self._buffer) < end:
                    break
                payload = bytes(self._buffer[start + _HEAD.size : end])
                start = end
                yield kind, call, payload
        finally:
            del self._buffer[:start]
