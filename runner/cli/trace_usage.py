"""`runner trace usage`: what the guest says that calls used, beside what the kernel counted of their sandboxes."""

from __future__ import annotations

from typing import Annotated

import typer

from runner.cli.tables import print_table
from runner.cli.trace_options import STATE, Json, Key, LedgerDir, State, open_ledger, print_plain
from runner.errors import refuse
from runner.evidence.usage import SandboxUse, sandboxes
from runner.evidence.view import visible

EPILOG = "Example: runner trace usage nightly --json"


def show_usage(
    task: Annotated[str, typer.Argument(help="The task's id.")],
    state: State = STATE,
    ledger: LedgerDir = None,
    key: Key = "",
    as_json: Json = False,
) -> None:
    """Compare, for each sandbox of a task, the sum of what its calls used by the guest's word with what its cgroup
    counted by the kernel's.

    The cgroup counts the daemon's own processes in the sandbox too, so the guest's sum is the smaller one; a larger
    one is contradicted, and so is everything else that this guest said of its calls."""
    found = sandboxes(open_ledger(state, key, ledger), task)
    if not found:
        refused = "no sandbox of this task is in this ledger"
        raise refuse("unknown_call", refused, field=task, next_step="see `runner task list --all`")
    if as_json:
        print_plain(found)
        return
    columns = ("position", "sandbox", "calls", "CPU guest", "CPU cgroup", "largest process", "peak cgroup",
               "memory kills", "verdict", "ended")  # fmt: skip
    print_table(columns, [_row(use) for use in found])


def _row(use: SandboxUse) -> tuple[str, ...]:
    calls = f"{use.calls}" + (f" ({use.unsaid} without figures)" if use.unsaid else "")
    return (
        str(use.position), visible(use.sandbox), calls, _ms(use.guest_cpu_us), _ms(use.cgroup_cpu_us),
        _mib(use.guest_peak), _mib(use.cgroup_peak), str(use.oom_kills), use.verdict, visible(use.ended),
    )  # fmt: skip


def _ms(us: int) -> str:
    return f"{us / 1000:.1f} ms" if us >= 0 else "-"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB" if size >= 0 else "-"
