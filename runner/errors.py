"""Every way to be refused: one table of codes, one value that travels, one exception that carries it.

A refusal teaches: it has a code, the rule that spoke, the reason, the next step, and whether a retry can
help. It never holds a secret, a token or another task's data. The same value is printed by the command
line, sent over the wire and written to the ledger, so the three cannot disagree.
"""

from __future__ import annotations

from enum import Enum

import msgspec


class Fault(Enum):
    """Whose fault a refusal is (after h11's split of local and remote protocol errors)."""

    CALLER = "caller"  # the agent or the person at the keyboard: change the request
    OPERATOR = "operator"  # config, profile, manifest, policy: change a file
    DAEMON = "daemon"  # a part is missing or broke: look at the log, then retry


class Code(msgspec.Struct, frozen=True):
    """One row of the table: whose fault, what it means, what to do, whether a retry of the same bytes can help."""

    fault: Fault
    meaning: str
    next_step: str
    retryable: bool = False


_C, _O, _D = Fault.CALLER, Fault.OPERATOR, Fault.DAEMON

CODES: dict[str, Code] = {
    # the wire
    "protocol": Code(_C, "the bytes are not a valid frame, or not valid now", "see runner/wire/README.md"),
    "version": Code(_C, "no common protocol version", "install the client that came with this daemon"),
    "busy": Code(_D, "a limit on connections or running calls is reached", "wait, then retry", True),
    "flow": Code(_C, "the peer sent more than it was given credit for", "see flow control in runner/wire/README.md"),
    # authority
    "unauthenticated": Code(_C, "the token chain or the proof was not accepted", "ask the issuer for a new token"),
    "not_granted": Code(_C, "the token does not grant this tool", "call a tool listed by `tools`"),
    "constraint": Code(_C, "an argument is outside what the token allows", "stay within the stated constraint"),
    "denied": Code(_C, "a policy forbids this call, or none permits it", "read the rule; a retry will not help"),
    "egress": Code(_O, "no rule allows this destination", "ask `runner egress explain URL` which part lacks a rule"),
    "approval_unavailable": Code(
        _O, "the policy wants a human decision and no approver can be asked", "change the policy or the call"
    ),
    "revoked": Code(_C, "the token, task or agent was revoked", "ask the issuer for a new token"),
    "task_ended": Code(_C, "the task is over", "ask the issuer for a token with a new task"),
    # the call
    "arguments": Code(_C, "the arguments do not fit the tool's schema", "correct the named field"),
    "unknown_tool": Code(_C, "no such tool in the catalogue", "call a tool listed by `tools`"),
    "unknown_call": Code(
        _C, "no such call in this task, or no longer kept", "check the id; results are kept for a bounded time"
    ),
    "conflict": Code(_C, "the idempotency key was used with other arguments", "use a new key for a new call"),
    "interrupted": Code(
        _D, "the call had begun when a part died; it may have had effects", "inspect, then decide whether to call again"
    ),
    "unavailable": Code(
        _D, "a part is missing; the call's process never existed", "retry; if it persists, run `runner doctor`", True
    ),
    "not_supported": Code(
        _O, "the manifest asks for something this version refuses to run without", "remove it from the manifest"
    ),
    # files and configuration
    "config": Code(_O, "a configuration file is wrong", "correct the named file and field"),
    "profile": Code(_O, "a profile is wrong", "run `runner profile check`"),
    "manifest": Code(_O, "a tool manifest is wrong", "run `runner tool check`"),
    "policy": Code(_O, "a policy is wrong", "run `runner policy check`"),
    "token": Code(_C, "the token text is wrong", "mint a new one with `runner token mint`"),
    "key": Code(_O, "a key file is missing, unreadable or too open", "run `runner keys init`"),
    "host": Code(_O, "this host lacks something the daemon needs", "run `runner doctor`"),
    "ledger": Code(_D, "the ledger cannot be written or does not verify", "run `runner trace verify`"),
    "internal": Code(_D, "the daemon has a defect", "report it with the call id"),
}


class Refusal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A refusal as it travels: `field` is a path into the arguments, or `file:line`; `allowed`: what passes."""

    code: str
    reason: str
    rule: str = ""
    next_step: str = ""
    retryable: bool = False
    retry_after_ms: int = 0
    field: str = ""
    allowed: str = ""

    def line(self) -> str:
        """One line for a person: code, place, reason, rule, what is allowed, next step."""
        parts = [f"{self.code}: " + (f"{self.field}: " if self.field else "") + self.reason]
        if self.rule:
            parts.append(f"rule {self.rule}")
        if self.allowed:
            parts.append(f"allowed: {self.allowed}")
        if self.next_step:
            parts.append(f"next: {self.next_step}")
        return " · ".join(parts)


def refusal(
    code: str,
    reason: str,
    *,
    rule: str = "",
    next_step: str = "",
    retry_after_ms: int = 0,
    field: str = "",
    allowed: str = "",
) -> Refusal:
    """Build a refusal of a code in `CODES`; the row's next step and retryability apply unless one is given."""
    row = CODES[code]
    return Refusal(
        code=code,
        reason=reason,
        rule=rule,
        next_step=next_step or row.next_step,
        retryable=row.retryable,
        retry_after_ms=retry_after_ms,
        field=field,
        allowed=allowed,
    )


class RunnerError(Exception):
    """The exception that carries a `Refusal`. `detail` is for the ledger and the log, never for the peer."""

    def __init__(self, refused: Refusal, detail: str = "") -> None:
        super().__init__(refused.line())
        self.refused = refused
        self.detail = detail


def refuse(
    code: str,
    reason: str,
    *,
    rule: str = "",
    next_step: str = "",
    retry_after_ms: int = 0,
    field: str = "",
    allowed: str = "",
    detail: str = "",
) -> RunnerError:
    """`raise refuse("arguments", …)`: a `RunnerError` with the row's defaults filled in."""
    made = refusal(
        code, reason, rule=rule, next_step=next_step, retry_after_ms=retry_after_ms, field=field, allowed=allowed
    )
    return RunnerError(made, detail)


# Exit statuses of every command, documented in --help and README.
EXIT_OK = 0
EXIT_TOOL = 1  # the tool ran and failed
EXIT_USAGE = 2  # the command line was wrong
EXIT_REFUSED = 3  # authority said no
EXIT_UNAVAILABLE = 4  # a part is missing; a retry may help
EXIT_INVALID = 5  # a file, key or token is wrong
EXIT_UNVERIFIED = 6  # evidence does not verify


def exit_status(refused: Refusal) -> int:
    """The exit status of a command that ended in this refusal."""
    if refused.code == "ledger":
        return EXIT_UNVERIFIED
    if refused.code in ("unavailable", "busy", "interrupted", "internal", "host"):
        return EXIT_UNAVAILABLE
    if refused.code in ("config", "profile", "manifest", "policy", "token", "key"):
        return EXIT_INVALID
    return EXIT_REFUSED
