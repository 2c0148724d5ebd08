"""Checks a seccomp filter file before any container uses it: deny by default, one ABI, every rule with its reason and
in a group that says what it is for and what it opens.

The format is Docker's (the OCI's with names in lists), which ignores `group`, `groups` and `comment`. What passes here
is handed to Docker as text, without them."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from runner.errors import refuse

ALLOW, REFUSE = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
ARCHITECTURES = ["SCMP_ARCH_X86_64"]  # the 32-bit and x32 tables are second ways in, past rules written for this one
_EPERM = 1
_COMPARISONS = frozenset(
    {"SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_NE"}
)

# No filter of any operator opens these to a tool: each alone is a way to the host or to another task.
# fmt: off
NEVER = frozenset({
    "acct", "add_key", "adjtimex", "bpf", "chroot", "clock_adjtime", "clock_settime", "clone3", "create_module",
    "delete_module", "fanotify_init", "finit_module", "fsconfig", "fsmount", "fsopen", "fspick", "get_kernel_syms",
    "init_module", "io_uring_enter", "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp",
    "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "mount", "mount_setattr", "move_mount",
    "move_pages", "name_to_handle_at", "nfsservctl", "open_by_handle_at", "open_tree", "perf_event_open",
    "pidfd_getfd", "pivot_root", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace",
    "query_module", "quotactl", "quotactl_fd", "reboot", "request_key", "setdomainname", "sethostname", "setns",
    "settimeofday", "stime", "swapoff", "swapon", "sysfs", "syslog", "umount", "umount2", "unshare", "uselib",
    "userfaultfd", "ustat", "vhangup", "vm86", "vm86old",
})
# fmt: on
# Allowed only with conditions on their arguments: an unconditional rule would open what the condition closes.
# fmt: off
CONDITIONAL = frozenset({
    "clone", "ioctl", "mknod", "mknodat", "personality", "prctl", "prlimit64", "sched_setaffinity", "seccomp",
    "sendmmsg", "sendmsg", "sendto", "setpriority", "setsockopt", "socket",
})
# fmt: on


class _Argument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    index: int
    value: int
    op: str
    valueTwo: int = 0  # noqa: N815  # the format's own name


class _Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"purpose": "for"}):
    purpose: str
    opens: str


class _Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    names: tuple[str, ...]
    action: str
    group: str = ""
    comment: str = ""
    args: tuple[_Argument, ...] = ()
    errnoRet: int = _EPERM  # noqa: N815  # the format's own name


class _Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    defaultAction: str  # noqa: N815  # the format's own name
    architectures: list[str]
    syscalls: tuple[_Rule, ...]
    groups: dict[str, _Group] = {}


class CallGroup(msgspec.Struct, frozen=True, kw_only=True):
    """System calls that a filter answers for one purpose. `conditional` are those that depend on their arguments,
    `refused` those that get an answer without reaching the kernel."""

    name: str
    purpose: str
    opens: str
    allowed: tuple[str, ...]
    conditional: tuple[str, ...]
    refused: tuple[str, ...]


def explain(text: bytes) -> list[CallGroup]:
    """The groups of a valid filter, in its own order."""
    found = _parse(text, "seccomp filter")
    groups = []
    for name, group in found.groups.items():
        rules = [rule for rule in found.syscalls if rule.group == name]
        allowed = {call: bool(rule.args) for rule in rules if rule.action == ALLOW for call in rule.names}
        groups.append(
            CallGroup(
                name=name,
                purpose=group.purpose,
                opens=group.opens,
                allowed=tuple(sorted(allowed)),
                conditional=tuple(sorted(call for call, depends in allowed.items() if depends)),
                refused=tuple(sorted({call for rule in rules for call in rule.names} - set(allowed))),
            )
        )
    return groups


def validate(text: bytes, name: str = "seccomp filter") -> None:
    """Raise `RunnerError` (profile) naming the rule unless the filter denies by default, for one ABI, with reasons."""
    found = _parse(text, name)
    if found.defaultAction != REFUSE:
        raise _wrong(
            name, f"defaultAction is {found.defaultAction}: a filter lists what is allowed and refuses the rest"
        )
    if found.architectures != ARCHITECTURES:
        raise _wrong(name, f"architectures must be {ARCHITECTURES}: every further ABI is a second way in")
    for number, rule in enumerate(found.syscalls):
        where = f"{name}: rule {number} ({', '.join(rule.names[:3])})"
        if rule.group not in found.groups:
            raise _wrong(where, f"group {rule.group!r} is not one of `groups`: every rule belongs to one")
        _check_rule(rule, where)
    for group, said in found.groups.items():
        if not (said.purpose.strip() and said.opens.strip()):
            raise _wrong(f"{name}: group {group}", "it must say what it is `for` and what it `opens`")
        if group not in {rule.group for rule in found.syscalls}:
            raise _wrong(f"{name}: group {group}", "no rule belongs to it")


def compact(text: bytes) -> str:
    """The filter as one line without its prose: what the engine sends with every create. Call after `validate`."""
    data: dict[str, Any] = json.loads(text)
    data.pop("groups", None)
    for rule in data["syscalls"]:
        rule.pop("comment", None)
        rule.pop("group", None)
    return json.dumps(data, separators=(",", ":"))


def _parse(text: bytes, name: str) -> _Filter:
    try:
        json.loads(text, object_pairs_hook=_no_twins)
        return msgspec.json.decode(text, type=_Filter)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors too
        raise _wrong(name, str(error)) from error


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice; parsers differ on which counts")
    return found


def _check_rule(rule: _Rule, where: str) -> None:
    if not rule.names:
        raise _wrong(where, "it names no system call")
    if not rule.comment.strip():
        raise _wrong(where, "it has no comment: every rule states its reason")
    if rule.action not in (ALLOW, REFUSE):
        raise _wrong(where, f"action {rule.action} is not {ALLOW} or {REFUSE}")
    if rule.action == REFUSE and rule.errnoRet == _EPERM:
        raise _wrong(where, "it does what the default does; the runtime skips such a rule, so it would mean nothing")
    if rule.action == ALLOW:
        _check_floor(rule, where)
    indexes = [argument.index for argument in rule.args]
    if len(set(indexes)) != len(indexes):
        raise _wrong(where, "two conditions on one argument: the runtime would allow either, not both")
    for argument in rule.args:
        if not 0 <= argument.index <= 5 or argument.op not in _COMPARISONS:
            raise _wrong(where, f"condition {argument.op} on argument {argument.index} is not one the kernel knows")


def _check_floor(rule: _Rule, where: str) -> None:
    never = sorted(NEVER.intersection(rule.names))
    if never:
        raise _wrong(where, f"{', '.join(never)} is never allowed to a tool: it reaches the host or another task")
    bare = sorted(CONDITIONAL.intersection(rule.names))
    if bare and not rule.args:
        raise _wrong(where, f"{', '.join(bare)} needs a condition on its arguments")


def _wrong(where: str, reason: str) -> Exception:
    return refuse(
        "profile", reason, field=where, next_step="correct the filter; profiles/seccomp/default.json is an example"
    )
