"""Gate's side of the control connection into a sandbox: 4-byte length, type byte, 4-byte call id, JSON or raw bytes.

The other side is `runner/guest/frame.py`, which shares no code with this (the guest imports nothing of runner);
`tests/vectors/guest.json` holds both to the same bytes. Every byte that arrives here is hostile: the tool may
have taken the supervisor.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from runner.errors import refuse
from runner.model import OutcomeKind, Usage

T = TypeVar("T")

_HEAD = struct.Struct(">IBI")  # payload length, type, call number (0 = the sandbox itself)
MAX_DATA = 64 << 10  # one piece of output or stdin
MAX_JSON = 4 << 20  # tool code travels as JSON with base64

# gate to guest
CODE, START, STDIN, CREDIT, CANCEL, PING, PREPARE, TRUST = range(0x01, 0x09)
# guest to gate
READY, CODE_READY, STARTED, STDOUT, STDERR, STDIN_CREDIT, PONG, RESULT, ENDED, FAULT = range(0x80, 0x8A)

_FROM_GUEST_MAX = {
    READY: 64 << 10,
    CODE_READY: 1 << 10,
    STARTED: 64 << 10,
    STDOUT: MAX_DATA,
    STDERR: MAX_DATA,
    STDIN_CREDIT: 4,
    PONG: 0,
    RESULT: 4 << 20,
    ENDED: 64 << 10,
    FAULT: 16 << 10,
}


class GuestMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Base of the JSON payloads."""


class Code(GuestMessage, frozen=True):
    """The code of one tool. The guest checks `digest` (see `code_digest`) before it writes a file."""

    tool: str
    digest: str
    files: dict[str, str]  # relative path -> base64


MAX_JAILS = 256  # jails that a START may name by key: both sides forget the one that was spelled out first


class JailSpec(GuestMessage, frozen=True):
    """The walls of a launcher. Launchers are shared by calls with the same `key`, one call at a time. A key stands for
    one jail for as long as the sandbox lives: once spelled out, a START or PREPARE may name it by its key alone."""

    key: str
    read: tuple[str, ...]
    write: tuple[str, ...]
    execute: tuple[str, ...]
    seccomp: str  # base64 of a BPF program, "" = none on top of the container's
    open_files: int
    file_size: int
    connect: int = 0  # the one TCP port that may be connected to; 0 = none


class Prepare(GuestMessage, frozen=True):
    """Build a launcher for argv tools ahead of their first call, if there is room."""

    isolation: str
    jail: JailSpec | str
    cpu_s: int


class Start(GuestMessage, frozen=True, kw_only=True):
    """Run one call. argv tools get `argv`; python tools get `tool` and `arguments`, and may send one result."""

    tool: str
    kind: str  # "argv" | "python"
    isolation: str  # "launcher" | "call"
    jail: JailSpec | str  # a key: one of the last `MAX_JAILS` that were spelled out
    argv: tuple[str, ...] = ()
    arguments: dict[str, Any] = {}
    roots: dict[str, str] = {}
    environment: dict[str, str] = {}
    code_digest: str = ""
    stdin: bool = False
    credit: int  # output bytes the guest may send before it waits for CREDIT
    wall_ms: int
    cpu_s: int
    result: int  # largest structured result
    secrets: dict[str, str] = {}  # file name in `secrets_folder` -> base64: there while the call has a process
    secrets_folder: str = ""  # below /run/tools; its jail alone lets a call read it


class CancelCall(GuestMessage, frozen=True):
    """Kill the call; it ends with this outcome kind."""

    kind: OutcomeKind


class Ready(GuestMessage, frozen=True):
    """First frame from PID 1. Measured inside, so a claim; engine measures from outside."""

    landlock: int  # ABI, 0 = none
    scoped: bool  # whether Landlock can scope signals and abstract sockets (ABI 6)
    uid: int


class CodeReady(GuestMessage, frozen=True):
    """The code with this digest is in place: calls of the tool may start."""

    tool: str
    digest: str


class Started(GuestMessage, frozen=True):
    """The process exists. `walls`: forbidden act -> refused, tried by the launcher before its first call."""

    walls: dict[str, bool]


class Ended(GuestMessage, frozen=True):
    """The call is over and every process of it is gone."""

    kind: OutcomeKind
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    usage: Usage = Usage()


class Fault(GuestMessage, frozen=True):
    """The call's process never existed, and why."""

    code: str
    reason: str


def code_digest(files: dict[str, bytes]) -> str:
    """SHA-256 over a tool's files in path order, each as length-prefixed path and length-prefixed bytes."""
    import hashlib

    total = hashlib.sha256()
    for path in sorted(files):
        name = path.encode()
        total.update(struct.pack(">I", len(name)) + name + struct.pack(">Q", len(files[path])) + files[path])
    return total.hexdigest()


def pack(kind: int, call: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return _HEAD.pack(len(payload), kind, call) + payload


def pack_json(kind: int, call: int, message: GuestMessage) -> bytes:
    """One frame with a JSON payload."""
    return pack(kind, call, msgspec.json.encode(message))


def read_json(payload: bytes, kind: type[T]) -> T:
    """A JSON payload into a message. Raises `RunnerError` (protocol)."""
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refuse("protocol", "the guest sent a malformed message", detail=str(error)) from None


class GuestReader:
    """Bytes from the guest in, (type, call, payload) out. Refuses unknown types and lengths before keeping a body."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Add `data`; yield each complete frame. Raises `RunnerError` (protocol)."""
        source: bytes | bytearray = data
        if self._buffer:  # an unfinished frame: else what is whole is copied once
            source = self._buffer
            source += data
        start = 0
        try:
            while len(source) - start >= _HEAD.size:
                length, kind, call = _HEAD.unpack_from(source, start)
                most = _FROM_GUEST_MAX.get(kind)
                if most is None or length > most:
                    raise refuse("protocol", f"the guest sent type 0x{kind:02x} with {length} bytes")
                end = start + _HEAD.size + length
                if len(source) < end:
                    break
                payload = bytes(memoryview(source)[start + _HEAD.size : end])
                start = end
                yield kind, call, payload
        finally:
            if source is data:
                self._buffer += data[start:]
            else:
                del self._buffer[:start]
