"""What of `runner doctor` is about operators: whether each that the configuration names can open admin.sock.

The daemon refuses what can never work (`runner/admin/roster.py`); here is what this host's users and groups tell."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

import msgspec

from runner.admin.roster import Operator, roster
from runner.cli.checks import Finding, closed_to
from runner.config import Config
from runner.errors import RunnerError

_DEFAULT = "runner-operators"  # what scripts/setup makes


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """A user of this host: its name, and the groups that it is in once it logs in."""

    name: str
    gid: int
    groups: frozenset[int]


def operator_findings(config: Config) -> list[Finding]:
    """Nothing where root alone is the operator; else one finding for the group, the socket, and each operator."""
    if not config.operators:
        return []
    try:
        found = roster(config).operators
    except RunnerError as error:
        return [Finding(name="operators", status="fail", found=str(error.refused.reason), remedy=_remedy(error))]
    named = config.users.operators_group
    gid = _gid(named) if named else 0
    if gid is None:
        remedy = f"run scripts/setup, which makes {_DEFAULT}, or: groupadd -r {named}"
        return [Finding(name=f"group {named}", status="fail", found="does not exist", remedy=remedy)]
    run = Path(config.run)
    findings = [reach(each, named, gid, {uid: _account(uid) for uid in each.uids}, run) for each in found]
    try:
        status = (run / "admin.sock").lstat()
    except OSError:
        return findings  # no daemon runs
    return [opened(named, gid, status.st_mode, status.st_gid), *findings]


def opened(named: str, gid: int, mode: int, found: int) -> Finding:
    """Whether the running daemon's admin.sock is the configured group's."""
    name = "admin.sock for operators"
    want = 0o660 if named else 0o600
    if (stat.S_IMODE(mode), found) != (want, gid):
        found_as = f"mode {stat.S_IMODE(mode):04o} of group {found}; the configuration says {want:04o} of {gid}"
        remedy = "restart the daemon: [users] does not change by a reload"
        return Finding(name=name, status="fail", found=found_as, remedy=remedy)
    return Finding(name=name, status="ok", found=f"root and group {named}" if named else "root alone")


def reach(operator: Operator, named: str, gid: int, accounts: dict[int, Account | None], run: Path) -> Finding:
    """Whether this operator, by each of its uids, can open admin.sock, which is `named`'s (of this gid), "" root's."""
    name = f"operator {operator.name}"
    for uid, account in sorted(accounts.items()):
        if uid == 0:
            continue
        if account is None:
            remedy = "make the user, or correct uid in [[operators]]"
            return Finding(name=name, status="fail", found=f"uid {uid} is no user of this host", remedy=remedy)
        if gid not in account.groups:
            found = f"{account.name} is not in group {named}, so admin.sock is closed to it"
            remedy = f"usermod -a -G {named} {account.name}, and have it log in anew"
            return Finding(name=name, status="fail", found=found, remedy=remedy)
        if run.exists() and (closed := closed_to((uid, account.gid), run)):
            found = f"{closed} is closed to {account.name}, and admin.sock lies below it"
            return Finding(
                name=name, status="fail", found=found, remedy="choose another `run` folder, as /run/toolrunner"
            )
    known = [f"uid {uid}" for uid in sorted(accounts)] + ([f"key {operator.keyed}"] if operator.keyed else [])
    if not accounts and not named:
        remedy = f'[users] operators_group = "{_DEFAULT}" lets users of that group come with it, too'
        return Finding(name=name, status="warn", found=f"{known[0]}, which root alone can come with", remedy=remedy)
    return Finding(name=name, status="ok", found=f"{', '.join(known)}: {', '.join(sorted(operator.roles))}")


def _remedy(error: RunnerError) -> str:
    return f"{error.refused.field}: {error.refused.next_step}" if error.refused.field else error.refused.next_step


def _gid(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _account(uid: int) -> Account | None:
    try:
        found = pwd.getpwuid(uid)
    except KeyError:
        return None
    return Account(name=found.pw_name, gid=found.pw_gid, groups=frozenset(os.getgrouplist(found.pw_name, found.pw_gid)))
