"""What entries are made of: the base of each, and the parts that several kinds share."""

from __future__ import annotations

from typing import Annotated

import msgspec

VERSION = 1

Int = Annotated[int, msgspec.Meta(ge=-(2**53) + 1, le=2**53 - 1)]  # what every JSON reader holds exactly (I-JSON)


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Base of everything inside an entry."""


class Entry(Part, frozen=True, kw_only=True, tag_field="kind"):
    """Base of every entry. `time` is when it happened by the writer's clock; order is the position's, never time's."""

    v: Int = msgspec.field(default_factory=lambda: VERSION)  # a factory, so that omit_defaults keeps it
    time: str


class Content(Part, frozen=True):
    """Something kept in the content store: `digest` names it; `size` is the content's own size, without salt."""

    digest: str
    size: Int


class Who(Part, frozen=True):
    """Identity from the root token; `asserted` are names given by parents to derived holders."""

    agent: str
    owner: str
    task: str
    session: str
    asserted: tuple[str, ...] = ()


class Decided(Part, frozen=True):
    """The decision, in AARM's terms."""

    effect: str
    reason: str
    rules: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    code: str = ""
    field: str = ""
    policy: str = ""
    obligations: tuple[str, ...] = ()  # what a permit obliges to: "injected=block"


class PeerProcess(Part, frozen=True):
    """The process on the other end of the socket: uid, pid and gid by SO_PEERCRED, fixed when it connected; the rest as
    engine found it at the connection's hello, or `problem`. A pid and its `start` name one process of a boot."""

    uid: Int
    pid: Int
    gid: Int = 0
    start: Int = 0  # clock ticks after boot
    cgroup: str = ""
    executable: str = ""  # where its program lay, as its own mount namespace says
    digest: str = ""  # SHA-256 of that program
    problem: str = ""


class Delegated(Part, frozen=True):
    """One derived token of a chain: its parent's holder made it for `name`. Times are seconds since the epoch."""

    token: str
    digest: str  # of its signing input
    issued: Int
    expires: Int
    name: str = ""


class Context(Part, frozen=True):
    """What the session had done when the decision was made, as policy saw it (AARM R2, R5)."""

    calls: Int = 0
    denied: Int = 0
    untrusted: Int = 0
    depth: Int = 0  # delegations between the root's holder and whoever called
    tools: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()  # of everything that was delivered
    forgotten: Int = 0  # pieces of labelled text that were not known again any more


class Environment(Part, frozen=True):
    """What the daemon ran on when it began to serve: the container engine on itself, the kernel on the rest."""

    kernel: str
    machine: str
    python: str
    build: str  # SHA-256 over the paths and bytes of the daemon's own code
    engine: str  # the container engine and its version
    runtime: str  # the one it uses by default
    runc: str = ""
    cgroup_version: Int = 0
    landlock: Int = 0  # the kernel's ABI, 0 = none
    clock_source: str = ""
    clock_synchronized: bool = False  # by the kernel's own word: some daemon disciplines it
    clock_error_us: Int = 0  # at most, where it is synchronized


class Operator(Part, frozen=True):
    """Who acted on admin.sock: by the proof of a key, whose thumbprint it is, or by the uid of the process alone."""

    name: str
    uid: Int
    key: str = ""
