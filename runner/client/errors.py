"""What the client raises: one class per family of codes, all of them `RunnerError`s that carry the refusal.

`FAMILIES` maps every code of `runner.errors.CODES`; tests/unit/client holds it to that. Catch a family, or
`CallError` for all; read `.code` for the exact case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.errors import Refusal, RunnerError, refusal

if TYPE_CHECKING:
    from runner.client.calls import CallResult


class CallError(RunnerError):
    """A request was refused, or its answer was lost. The attributes are the refusal's own."""

    def __init__(self, refused: Refusal, call: str = "") -> None:
        super().__init__(refused)
        self.call = call  # the daemon's id, when an entry was written for the call

    @property
    def code(self) -> str:
        """One of `runner.errors.CODES`."""
        return self.refused.code

    @property
    def rule(self) -> str:
        """The policy rule that spoke, "" when none did."""
        return self.refused.rule

    @property
    def reason(self) -> str:
        """Why, for a person."""
        return self.refused.reason

    @property
    def next_step(self) -> str:
        """What to do now."""
        return self.refused.next_step

    @property
    def retryable(self) -> bool:
        """Whether the same request may pass later."""
        return self.refused.retryable

    @property
    def retry_after_ms(self) -> int:
        """How long to wait before a retry, 0 when nothing is known."""
        return self.refused.retry_after_ms

    @property
    def field(self) -> str:
        """The argument or place that was wrong, "" when it is not one place."""
        return self.refused.field

    @property
    def allowed(self) -> str:
        """What would have been allowed, "" when that cannot be said."""
        return self.refused.allowed


class Denied(CallError):
    """A policy forbids the call, none permits it, or it needs an approval that cannot be had."""


class NotGranted(CallError):
    """The token does not grant this tool, or there is no such tool."""


class ConstraintViolated(CallError):
    """An argument is outside what the token allows."""


class InvalidArguments(CallError):
    """The arguments do not fit the tool's schema, or a field of the call is malformed."""


class Unauthenticated(CallError):
    """The token chain, the proof or the credentials were not accepted, or were revoked."""


class TaskEnded(CallError):
    """The task is over."""


class UnknownCall(CallError):
    """No such call in this task, or its result is no longer kept."""


class Conflict(CallError):
    """The idempotency key was used with other arguments."""


class Interrupted(CallError):
    """The call had begun when a part died: it may have had effects. Never retried for you."""


class Unavailable(CallError):
    """Nothing was run: a part is missing or a limit is reached. Retry when `.retryable`."""


class ProtocolError(CallError):
    """The two sides disagree about the protocol. The connection is gone."""


class Misconfigured(CallError):
    """A file of the operator's is wrong."""


class DaemonFault(CallError):
    """The daemon has a defect or cannot keep its record."""


FAMILIES: dict[str, type[CallError]] = {
    "protocol": ProtocolError,
    "version": ProtocolError,
    "flow": ProtocolError,
    "busy": Unavailable,
    "unavailable": Unavailable,
    "host": Unavailable,
    "unauthenticated": Unauthenticated,
    "revoked": Unauthenticated,
    "token": Unauthenticated,
    "key": Unauthenticated,
    "not_granted": NotGranted,
    "unknown_tool": NotGranted,
    "constraint": ConstraintViolated,
    "denied": Denied,
    "egress": Denied,
    "approval_unavailable": Denied,
    "task_ended": TaskEnded,
    "arguments": InvalidArguments,
    "unknown_call": UnknownCall,
    "conflict": Conflict,
    "interrupted": Interrupted,
    "not_supported": Misconfigured,
    "config": Misconfigured,
    "profile": Misconfigured,
    "manifest": Misconfigured,
    "policy": Misconfigured,
    "ledger": DaemonFault,
    "internal": DaemonFault,
}


def raised(refused: Refusal, call: str = "") -> CallError:
    """The exception for a refusal. A code of a newer daemon becomes a plain `CallError`."""
    return FAMILIES.get(refused.code, CallError)(refused, call)


def refused(code: str, reason: str, *, next_step: str = "", field: str = "", allowed: str = "") -> CallError:
    """An exception that the client itself makes."""
    return raised(refusal(code, reason, next_step=next_step, field=field, allowed=allowed))


def no_daemon(socket: object, error: OSError) -> CallError:
    """Nobody answers at the socket, and what a person can do about it."""
    step = "start it with `runner serve`, or name its socket in RUNNER_SOCKET"
    if isinstance(error, PermissionError):
        step = "run as a user of the agents' group that the daemon's [peers] names"
    return refused("unavailable", f"no daemon answers at {socket}: {error.strerror or error}", next_step=step)


class ToolFailed(Exception):
    """The tool ran and did not succeed, and the caller asked for `check=True`. Not a refusal: nothing was denied."""

    def __init__(self, tool: str, result: CallResult) -> None:
        super().__init__(f"{tool}: {result.summary()}")
        self.tool = tool
        self.result = result
