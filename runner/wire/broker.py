"""Messages between gate and broker: leases for one call, their end, and the secrets that operators keep.

A secret's value travels in `Issued` (to gate, which hands it to egress or the guest) and in `Store` (from an operator);
nothing else holds one, and no repr shows one. Gate revokes a call's leases in a `finally`, also when it stopped waiting
for them: an `Issued` that nobody waits for any more may still arrive, and is dropped.
"""

from __future__ import annotations

import re
from typing import Literal, Protocol

import msgspec

from runner.config import SECRET_NAME
from runner.errors import Refusal, RunnerError, refuse
from runner.model import Count

MIN_SECRET = 8  # bytes: shorter ones stand in innocent output too, so that redacting them would damage it
MAX_SECRET = 32 << 10  # bytes of one value: a kubeconfig with its certificates is 10 KiB
MAX_FIELDS = 8
NAME = SECRET_NAME
FIELD = re.compile(r"[a-z][a-z0-9_]{0,31}\Z")
PUBLIC_FIELDS = frozenset(("username",))  # they name somebody and are no secret: any length, never redacted


class Message(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="type"
):
    """Base of every message."""


class Lease(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A credential for one call. Everything but `value` and `fields` may stand in a receipt.

    `value` is the secret itself, or of several fields the one that is the secret (a password); `fields` are those with
    names, `username` and `password` where there are both."""

    id: str
    name: str  # as the manifest names it
    accessor: str  # random, no secret: names the lease to whoever looks for it in the broker's log
    fingerprint: str  # keyed digest of the value: equal where two leases had the same one, and tells nothing else
    value: bytes
    fields: dict[str, bytes] = {}
    version: str = ""  # of the secret, where its provider counts them
    reach: Literal["full", "read"] = "full"  # what was asked of the provider
    ttl_ms: int  # from now; then it is dead unless renewed
    dynamic: bool = False  # made by the provider for this lease, and revoked there

    def __repr__(self) -> str:
        return f"Lease(id={self.id!r}, name={self.name!r}, …)"


class SecretView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A stored secret as anybody may see it. Times are RFC 3339."""

    name: str
    version: Count
    created: str
    rotated: str
    fields: tuple[str, ...] = ()  # names; () = a single value


class Issue(Message, frozen=True, tag="issue"):
    """Lease these secrets to a call, all or none. Answered by `Issued`."""

    number: int
    call: str
    task: str
    tool: str
    names: tuple[str, ...]
    ttl_ms: int  # for how long the call may need them
    read: bool = False  # the tool only reads: a credential that can only read is enough


class Renew(Message, frozen=True, tag="renew"):
    """The call needs its leases for this long from now. Answered by `Renewed`."""

    number: int
    call: str
    ttl_ms: int


class Revoke(Message, frozen=True, tag="revoke"):
    """End the leases of a call, of a task, or all. Answered by `Revoked`. A call named here gets no lease any more."""

    number: int
    kind: Literal["call", "task", "all"]
    value: str = ""


class List(Message, frozen=True, tag="list"):
    """Which secrets are stored. Answered by `Listed`."""

    number: int


class Store(Message, frozen=True, tag="store"):
    """Keep this value under a name; `expect` is the version there now, 0 for a new name. Answered by `Stored`."""

    number: int
    name: str
    expect: int
    value: bytes = b""
    fields: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"Store(number={self.number}, name={self.name!r}, expect={self.expect}, …)"


class Remove(Message, frozen=True, tag="remove"):
    """Forget a secret; `expect` is its version. Leases of it that live, live on. Answered by `Stored`."""

    number: int
    name: str
    expect: int


class Issued(Message, frozen=True, tag="issued"):
    """One lease for each name, in order."""

    number: int
    leases: tuple[Lease, ...]


class Renewed(Message, frozen=True, tag="renewed"):
    """How long each lease of the call lives from now: what its provider allows, however much was asked for."""

    number: int
    ttl_ms: dict[str, int]


class Revoked(Message, frozen=True, tag="revoked"):
    """So many leases are dead here. `pending` of all that the broker ended are still being revoked by providers."""

    number: int
    leases: int
    pending: int = 0


class Listed(Message, frozen=True, tag="listed"):
    """Every stored secret, by name."""

    number: int
    secrets: tuple[SecretView, ...]


class Stored(Message, frozen=True, tag="stored"):
    """The store is changed, on disk: the secret's version before and after; 0 = none."""

    number: int
    before: int
    after: int


class Expired(Message, frozen=True, tag="expired"):
    """A lease of this call outlived its time and is dead. Nobody asked."""

    call: str
    lease: str


class Failed(Message, frozen=True, tag="failed"):
    """The request failed; nothing of it is left."""

    number: int
    refusal: Refusal


FromGate = Issue | Renew | Revoke | List | Store | Remove
FromBroker = Issued | Renewed | Revoked | Listed | Stored | Expired | Failed


def check_secret(name: str, value: bytes, fields: dict[str, bytes]) -> None:
    """Refuse what cannot be kept. Raises `RunnerError` (arguments), which shows no value."""
    check_name(name)
    if bool(value) == bool(fields):
        raise refuse("arguments", "give one value, or named fields", field=name)
    if len(fields) > MAX_FIELDS or not all(FIELD.match(field) for field in fields):
        raise refuse("arguments", f"at most {MAX_FIELDS} fields, named like `api_key`", field=name)
    if fields and not fields.keys() - PUBLIC_FIELDS:
        raise refuse("arguments", "a username alone is no secret", field=name)
    for field, data in fields.items() if fields else (("", value),):
        where = f"{name}.{field}" if field else name
        if len(data) > MAX_SECRET:
            raise refuse("arguments", f"longer than {MAX_SECRET} bytes", field=where)
        if len(data) < MIN_SECRET and field not in PUBLIC_FIELDS:
            raise refuse(
                "arguments",
                f"shorter than {MIN_SECRET} bytes: it could not be told from ordinary text where it must be redacted",
                field=where,
                next_step="have the service issue a longer one",
            )


def check_name(name: str) -> None:
    """Refuse what names no stored secret. Raises `RunnerError` (arguments)."""
    if not NAME.match(name):
        raise refuse(
            "arguments", "not a secret's name: letters, digits and ._/-, at most 64", field=name[:64] or "name"
        )


def main_field(fields: dict[str, bytes]) -> str:
    """Which of a secret's fields is the value of its lease: `password`, else the first that is no public one."""
    return "password" if "password" in fields else next(field for field in fields if field not in PUBLIC_FIELDS)


class Requester(Protocol):
    """What a typed caller needs of a channel: send a numbered request and wait for its answer."""

    def number(self) -> int:
        """A fresh request number."""

    async def request(self, message: Message) -> tuple[FromBroker, int | None]:
        """Send; return the answer with that number."""


class BrokerCaller:
    """Gate's typed view of the broker. Each method raises `RunnerError` with the broker's own refusal."""

    def __init__(self, channel: Requester) -> None:
        self._channel = channel

    async def issue(
        self, *, call: str, task: str, tool: str, names: tuple[str, ...], ttl_ms: int, read: bool
    ) -> tuple[Lease, ...]:
        """A lease for each name, in order, or none at all."""
        answer = await self._ask(
            Issue(number=self._channel.number(), call=call, task=task, tool=tool, names=names, ttl_ms=ttl_ms, read=read)
        )
        assert isinstance(answer, Issued)
        return answer.leases

    async def renew(self, call: str, ttl_ms: int) -> dict[str, int]:
        """How many milliseconds each lease of the call lives from now."""
        answer = await self._ask(Renew(number=self._channel.number(), call=call, ttl_ms=ttl_ms))
        assert isinstance(answer, Renewed)
        return answer.ttl_ms

    async def revoke_call(self, call: str) -> Revoked:
        """The call is over: none of its leases lives when this returns."""
        return await self._revoke("call", call)

    async def revoke_task(self, task: str) -> Revoked:
        """None of the leases of the task's calls lives when this returns."""
        return await self._revoke("task", task)

    async def revoke_all(self) -> Revoked:
        """No lease lives when this returns."""
        return await self._revoke("all", "")

    async def _revoke(self, kind: Literal["call", "task", "all"], value: str) -> Revoked:
        answer = await self._ask(Revoke(number=self._channel.number(), kind=kind, value=value))
        assert isinstance(answer, Revoked)
        return answer

    async def secrets(self) -> tuple[SecretView, ...]:
        """What is stored, without values."""
        answer = await self._ask(List(number=self._channel.number()))
        assert isinstance(answer, Listed)
        return answer.secrets

    async def store(self, name: str, value: bytes, fields: dict[str, bytes], expect: int) -> int:
        """Keep a value in place of version `expect` (0: a new name). Returns its version."""
        answer = await self._ask(
            Store(number=self._channel.number(), name=name, value=value, fields=fields, expect=expect)
        )
        assert isinstance(answer, Stored)
        return answer.after

    async def remove(self, name: str, expect: int) -> None:
        """Forget version `expect` of a secret."""
        await self._ask(Remove(number=self._channel.number(), name=name, expect=expect))

    async def _ask(self, message: Message) -> FromBroker:
        answer, _ = await self._channel.request(message)
        if isinstance(answer, Failed):
            raise RunnerError(answer.refusal)
        return answer
