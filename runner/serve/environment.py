"""What the daemon runs on, for its `start` entry: read once, before it serves."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import struct
from pathlib import Path

import runner
from runner.ledger import entry as entries
from runner.wire.engine import Described

_CLOCKSOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_UNSYNCHRONIZED = 0x40  # STA_UNSYNC of adjtimex(2)
_TIMEX = struct.Struct("@I4xqqqqi")  # modes, offset, freq, maxerror, esterror, status
_TIMEX_SIZE = 256  # the kernel writes 208 bytes


def environment(described: Described) -> entries.Environment:
    """The environment, with engine's word on containers."""
    system = os.uname()
    synchronized, error = clock_state()
    return entries.Environment(
        kernel=system.release[:128],
        machine=system.machine,
        python=platform.python_version(),
        build=_BUILD,
        engine=described.engine[:128],
        runtime=described.runtime[:128],
        runc=described.runc[:128],
        cgroup_version=described.cgroup_version,
        landlock=described.landlock,
        clock_source=_CLOCKSOURCE.read_text(encoding="ascii").strip() if _CLOCKSOURCE.is_file() else "",
        clock_synchronized=synchronized,
        clock_error_us=error if synchronized else 0,
    )


def build_digest(package: Path) -> str:
    """SHA-256 over the daemon's own code: each `.py` file's path and bytes, length-prefixed, in order of the paths."""
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).as_posix()):
        name, data = path.relative_to(package).as_posix().encode(), path.read_bytes()
        total.update(len(name).to_bytes(4, "big") + name + len(data).to_bytes(8, "big") + data)
    return total.hexdigest()


def clock_state() -> tuple[bool, int]:
    """Whether something keeps the kernel's clock right, and its error at most, in microseconds: adjtimex(2), asked
    without changing anything. (False, 0) where it cannot be asked."""
    asked = ctypes.create_string_buffer(_TIMEX_SIZE)
    if ctypes.CDLL(None, use_errno=True).adjtimex(asked) < 0:
        return False, 0
    _, _, _, most, _, status = _TIMEX.unpack_from(asked.raw)
    return not status & _UNSYNCHRONIZED, max(int(most), 0)


_BUILD = build_digest(Path(runner.__file__).parent)  # with the imports: a private checkout is out of gate's sight later
