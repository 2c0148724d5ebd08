"""What of `runner doctor` is about escrow: whether raw output that profiles have kept could be opened by anybody."""

from __future__ import annotations

from runner.catalog import Catalog, keeps_raw
from runner.cli.checks import Finding
from runner.config import Config
from runner.errors import RunnerError
from runner.ledger.escrow import Recipients

_NAME = "escrow"


def escrow_findings(config: Config, catalog: Catalog | None) -> list[Finding]:
    """One for this configuration; `catalog` is None where it cannot be read."""
    profiles = catalog.task_profiles.values() if catalog is not None else ()
    asking = [each.name for each in profiles if catalog is not None and keeps_raw(each, catalog.tools)]
    return [recipients(config.escrow.recipients, asking)]


def recipients(texts: tuple[str, ...], asking: list[str]) -> Finding:
    """Whether there is a key for what the profiles `asking` have kept."""
    if not texts:
        if not asking:
            return Finding(name=_NAME, status="ok", found="no profile has raw output kept")
        remedy = "run `runner escrow init`, and add the recipient that it prints; or take `raw` out of the profile"
        found = f"profile {', '.join(asking)} has raw output kept, and [escrow] names no recipient: the daemon refuses"
        return Finding(name=_NAME, status="fail", found=found, remedy=remedy)
    try:
        made = Recipients(texts)
    except RunnerError as error:
        return Finding(name=_NAME, status="fail", found=error.refused.reason, remedy=error.refused.next_step)
    kept = f"of profile {', '.join(asking)}" if asking else "of no profile yet"
    found = f"raw output {kept}, for recipients {', '.join(made.fingerprints)}"
    return Finding(name=_NAME, status="ok", found=found)
