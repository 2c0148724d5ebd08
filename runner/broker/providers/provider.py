"""What the broker asks of whatever makes credentials, and what it gets."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from msgspec.structs import replace

from runner.broker.secret import Secret
from runner.errors import RunnerError, refusal
from runner.model import Value
from runner.wire.broker import MAX_SECRET, MIN_SECRET


class Wish(Value, frozen=True):
    """What a lease is wanted for."""

    read: bool  # a credential that can only read is enough
    ttl_s: float


class Issued:
    """A credential, the broker's to wipe. `ttl_s` is how long its provider lets it live, None for no end known.

    A `handle` makes it dynamic: made for this lease, to be revoked by it."""

    __slots__ = ("handle", "reach", "renewable", "secret", "ttl_s")

    def __init__(
        self,
        secret: Secret,
        *,
        ttl_s: float | None = None,
        handle: str = "",
        renewable: bool = False,
        reach: Literal["full", "read"] = "full",
    ) -> None:
        self.secret = secret
        self.ttl_s = ttl_s
        self.handle = handle
        self.renewable = renewable
        self.reach = reach

    def __repr__(self) -> str:
        return "Issued(…)"


class Provider(Protocol):
    """Blocking; called in threads, several at once. Each method ends by itself within the provider's time-out and
    raises `RunnerError` (unavailable): down, slow, refused, or an answer that is none."""

    def issue(self, name: str, wish: Wish) -> Issued:
        """A credential for the secret of this name. No second attempt where a first may have made one."""

    def renew(self, handle: str, ttl_s: float) -> float:
        """Let it live this long from now. Returns how long it does."""

    def revoke(self, handle: str) -> None:
        """Its end: nothing accepts it once this returns. Also when it had ended before."""


def unavailable(reason: str, *, next_step: str = "", again: bool = False, detail: str = "") -> RunnerError:
    """A credential cannot be had. `again` when the same request may succeed later."""
    said = refusal("unavailable", reason, next_step=next_step)
    return RunnerError(replace(said, retryable=again), detail)


def secret_of(answer: Any, field: str, username: str, *, whose: str, version: str = "") -> Secret:
    """The secret in a provider's JSON object. Raises `RunnerError` (unavailable), which shows none of it."""
    value = _text(answer, field, whose)
    if len(value) < MIN_SECRET:
        wiped = len(value)
        value[:] = bytes(wiped)
        raise unavailable(
            f"{whose}: shorter than {MIN_SECRET} bytes, which could not be redacted", next_step="have a longer one made"
        )
    if not username:
        return Secret(value, {}, version)
    return Secret(value, {"username": _text(answer, username, whose), "password": value}, version)


def _text(answer: Any, field: str, whose: str) -> bytearray:
    found = answer.get(field) if isinstance(answer, dict) else None
    if not isinstance(found, str) or not 0 < len(found.encode("utf-8", "surrogatepass")) <= MAX_SECRET:
        raise unavailable(
            f"{whose}: the answer has no text `{field}` of at most {MAX_SECRET} bytes",
            next_step="see `field` and `username` in its configuration",
        )
    try:
        return bytearray(found, "utf-8")
    except UnicodeEncodeError:
        raise unavailable(f"{whose}: `{field}` is not Unicode text", next_step="see what the provider holds") from None
