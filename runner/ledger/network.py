"""Entries of what a call reached and with which credentials, and the sums of it that its outcome holds."""

from __future__ import annotations

from typing import Literal

from runner.ledger.part import Content, Decided, Entry, Int, Part


class Egress(Entry, frozen=True, kw_only=True, tag="egress"):
    """One request of a call, decided: before anything is dialled where it is allowed. `part` is what decided where it
    is denied: a profile, a tool, the token, the policy, or a rule that none of them can lift (an address, a syntax).

    A denial says in `missing` which rule, at least, would have allowed it. `visibility` is what could be read:
    nothing but the destination (opaque), its head, or all of it. What the daemon itself dials belongs to no call:
    `call` is `daemon:` and the part that dials, `task` is ""."""

    call: str
    task: str
    request: Int  # counts the requests of a call, from 1
    protocol: Literal["https", "http", "tcp"]
    host: str
    port: Int
    visibility: Literal["opaque", "head", "full"]
    method: str = ""
    path: str = ""
    path_content: Content | None = None  # in place of `path`, where the profile says so: salted
    query: bool = False
    upgrade: str = ""
    allowed_by: tuple[str, ...] = ()  # a rule of each allowlist
    decision: Decided
    part: str = ""
    missing: str = ""
    carries: tuple[str, ...] = ()  # labels of what could be read of it, by patterns or because it copies labelled text
    copies: tuple[str, ...] = ()  # calls whose labelled results it copies
    misplaced: tuple[str, ...] = ()  # names of issued secrets in it that are not bound to go there
    unseen: bool = False  # a part of it was too large, or packed too deep, to be looked at


class EgressEnd(Entry, frozen=True, kw_only=True, tag="egress_end"):
    """An allowed request is over. Bytes are counted at the sandbox's side, heads included."""

    call: str
    task: str
    request: Int
    address: str = ""  # dialled; "" when none was
    status: Int = 0  # of the response; 0 where it cannot be read or none came
    up: Int = 0
    down: Int = 0
    duration_us: Int = 0
    code: str = ""  # why it was ended; "" when it ended by itself
    reason: str = ""
    secrets: tuple[str, ...] = ()  # names of the credentials that were put into it
    response: Content | None = None  # the kept response, salted: what the sandbox was given of it, without cookies
    unkept: str = ""  # why it was not kept although a rule says so
    rules: tuple[str, ...] = ()  # of the policy that ended it, for what its body turned out to carry
    carries: tuple[str, ...] = ()  # where that is more than its beginning said; so the three below
    copies: tuple[str, ...] = ()
    misplaced: tuple[str, ...] = ()
    unseen: bool = False


class Alert(Entry, frozen=True, kw_only=True, tag="alert"):
    """Something that must never happen did, and was stopped: a human should look at it.

    `call` and `task` as in `Egress`."""

    severity: Literal["critical"] = "critical"
    call: str
    task: str
    what: str
    where: str


class Network(Part, frozen=True):
    """What went through a call's listener."""

    requests: Int = 0
    refused: Int = 0
    up: Int = 0
    down: Int = 0
    opaque: Int = 0  # of the requests, those of which nothing but the destination could be read
    hosts: tuple[str, ...] = ()  # that requests went to: the first sixteen


class SecretUse(Part, frozen=True):
    """A credential that was brokered for a call, by names alone: never the value."""

    name: str
    delivery: str
    lease: str
    accessor: str = ""
    fingerprint: str = ""  # keyed by the broker: the same value has the same one, and nothing can be told from it
    used: Int = 0  # requests it went with; 0 for one that was delivered as a file or variable
