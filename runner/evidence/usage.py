"""What the guest says that calls used, held against what the kernel counted of their sandbox.

Every figure of a receipt is the guest's own: PID 1 of the sandbox, next to hostile code. The cgroup is read from
outside, once, when the sandbox ends, and counts every process in it: the calls', and the daemon's own (PID 1 and
launchers), which no call is charged for. So the guest's sum is below it. A sum above it is a guest that lies.
"""

from __future__ import annotations

import msgspec

from runner.evidence.read import Ledger
from runner.evidence.view import Filter, calls
from runner.ledger import entry as entries

_BEGIN, _END = b'"kind":"sandbox"', b'"kind":"sandbox_end"'  # a quote inside a JSON string is escaped
_ROUNDING_US = 1000  # of one call: its two figures are rounded, and so is the kernel's

Verdict = str  # "running", "unknown", "consistent", "contradicted"


class SandboxUse(msgspec.Struct):
    """One sandbox of a task. `position` is its entry's. CPU in microseconds, memory in bytes; -1 = not known."""

    sandbox: str
    position: int
    image: str
    calls: int = 0
    unsaid: int = 0  # calls of which no figure came: they run, or were cut off
    guest_cpu_us: int = 0
    guest_peak: int = 0  # the largest of any one process of a call
    cgroup_cpu_us: int = -1
    cgroup_peak: int = -1
    oom_kills: int = 0
    ended: str = ""
    verdict: Verdict = "running"


def sandboxes(ledger: Ledger, task: str) -> list[SandboxUse]:
    """The sandboxes of a task in the order in which they began, each with what its calls and its cgroup say."""
    needle = b'"task":%b' % msgspec.json.encode(task)
    found: dict[str, SandboxUse] = {}
    ends: dict[str, entries.SandboxEnd] = {}
    for start, run in ledger.backwards(lambda holds: holds(needle) and (holds(_BEGIN) or holds(_END))):
        for position, data in enumerate(run, start):
            if needle in data and (_BEGIN in data or _END in data):
                entry = entries.decode(data)
                if isinstance(entry, entries.SandboxBegin) and entry.task == task:
                    found[entry.sandbox] = SandboxUse(entry.sandbox, position, entry.isolation.image)
                elif isinstance(entry, entries.SandboxEnd) and entry.task == task:
                    ends[entry.sandbox] = entry
    for view in calls(ledger, Filter(task=task)):
        use = found.get(view.call.plan.sandbox) if view.call.plan else None
        if use is not None:
            _add(use, view.outcome.used if view.outcome else None)
    for name, use in found.items():
        _judge(use, ends.get(name))
    return sorted(found.values(), key=lambda use: use.position)


def _add(use: SandboxUse, used: entries.Used | None) -> None:
    use.calls += 1
    if used is None:
        use.unsaid += 1
        return
    use.guest_cpu_us += used.cpu_user_us + used.cpu_system_us
    use.guest_peak = max(use.guest_peak, used.max_rss_kib << 10)


def _judge(use: SandboxUse, end: entries.SandboxEnd | None) -> None:
    if end is None:
        return
    use.ended, use.verdict = end.reason, "unknown"
    if end.used is None:
        return
    use.cgroup_cpu_us, use.cgroup_peak, use.oom_kills = end.used.cpu_us, end.used.memory_peak, end.used.oom_kills
    if use.cgroup_cpu_us >= 0:
        most = use.cgroup_cpu_us + use.calls * _ROUNDING_US
        use.verdict = "contradicted" if use.guest_cpu_us > most else "consistent"
