"""Every entry the ledger can hold, typed, and the one encoding of it.

Sorted-key JSON with only strings, booleans, integers below 2^53, lists and objects; keys ASCII; absent fields
omitted: equal to RFC 8785 for this subset (tests/unit/ledger checks it against a reference library). Times are
RFC 3339 UTC strings with microseconds. Digests of arguments and outputs are over salted content; digests of
artefacts are plain SHA-256.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from runner.errors import refuse

MAX_ENTRY = 65_535  # an entry bundle of tlog-tiles prefixes each entry with a uint16 length


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Base of everything inside an entry."""


class Entry(Part, kw_only=True, tag_field="kind"):
    """Base of every entry. `time` is when it happened by the writer's clock; order is the position's, never time's."""

    v: int = msgspec.field(default_factory=lambda: 1)  # a factory, so that omit_defaults keeps it
    time: str


class Content(Part):
    """Something kept in the content store: `digest` names it; `size` is the content's own size, without salt."""

    digest: str
    size: int


class Who(Part):
    """Identity from the root token; `asserted` are names given by parents to derived holders."""

    agent: str
    owner: str
    task: str
    session: str
    asserted: tuple[str, ...] = ()


class PeerProcess(Part):
    """The process on the other end of the socket."""

    uid: int
    pid: int


class Decided(Part):
    """The decision, in AARM's terms."""

    effect: str
    reason: str
    rules: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    code: str = ""
    field: str = ""
    policy: str = ""


class Planned(Part):
    """The plan of an allowed call. `plan` is the whole CallPlan in the content store."""

    sandbox: str
    isolation: str
    profile: str
    plan: Content
    wall_ms: int
    output: int


# --- the daemon's life -------------------------------------------------------------------------------


class Start(Entry, tag="start"):
    """The daemon began to serve. `previous` says how the run before it ended."""

    instance: str
    version: str
    host: str
    boot: str
    config: Content
    catalogue: str
    policy: str
    previous: Literal["none", "clean", "dead"]
    interrupted: int = 0  # calls of the dead run sealed as interrupted


class Stop(Entry, tag="stop"):
    """The daemon ended by its own will."""

    instance: str
    reason: str
    clean: bool


class Reload(Entry, tag="reload"):
    """A new catalogue took effect between two calls."""

    before: str
    after: str
    policy: str


class Repair(Entry, tag="repair"):
    """Bytes of an unfinished, never acknowledged write at the ledger's end were dropped at start."""

    dropped: int
    size: int


class Beacon(Entry, tag="beacon"):
    """Once a minute, so that silence means something."""

    instance: str
    calls: int
    running: int
    tasks: int


class Degraded(Entry, tag="degraded"):
    """A part was lost or came back."""

    part: str
    state: Literal["lost", "restored"]
    reason: str = ""


# --- authority -----------------------------------------------------------------------------------------


class Token(Entry, kw_only=True, tag="token"):
    """A root token was announced by an operator."""

    jti: str
    digest: str
    issuer: str
    who: Who
    profile: str
    tools: tuple[str, ...]
    issued: int
    expires: int
    by: int


class Revoke(Entry, kw_only=True, tag="revoke"):
    """Authority was taken back."""

    target: str
    value: str
    why: str = ""
    by: int


class TaskBegin(Entry, tag="task_begin"):
    """The first accepted call of a task."""

    who: Who
    token: str
    profile: str


class TaskEnd(Entry, tag="task_end"):
    """The task is over. `by` is a uid, -1 for the daemon itself."""

    task: str
    reason: str
    by: int = -1


class Refusals(Entry, tag="refusals"):
    """Strangers refused before any identity was proven: counted per uid and second."""

    uid: int
    code: str
    detail: str
    count: int


# --- sandboxes and calls ---------------------------------------------------------------------------------


class Isolation(Part):
    """What engine measured in the container, not what it asked for."""

    image: str
    runtime: str
    uid: int
    seccomp: int
    seccomp_filters: int
    no_new_privs: bool
    capabilities: str
    namespaces: tuple[str, ...]  # the kinds that differ from the host's
    interfaces: tuple[str, ...]
    read_only_root: bool
    memory_limit: int
    swap_limit: int
    pids_limit: int
    cpu_quota_milli: int
    cgroup_version: int


class SandboxBegin(Entry, tag="sandbox"):
    """A container was made for a task, measured, and found equal to its plan."""

    sandbox: str
    task: str
    profile: str
    profile_digest: str
    isolation: Isolation


class SandboxEnd(Entry, tag="sandbox_end"):
    """The container is gone."""

    sandbox: str
    task: str
    reason: str


class Call(Entry, kw_only=True, tag="call"):
    """A call, the decision on it, and the plan if it was allowed. Written before the call's process exists."""

    call: str
    who: Who
    peer: PeerProcess
    chain: tuple[str, ...]  # token ids, root to leaf
    leaf: str
    proof: str
    tool: str
    tool_digest: str = ""
    arguments: Content | None = None
    decision: Decided
    plan: Planned | None = None
    intent: str = ""
    because: tuple[str, ...] = ()
    untrusted: tuple[str, ...] = ()  # calls whose output reached the agent since its last call: added by the daemon
    retry_of: str = ""
    idempotency_key: str = ""
    traceparent: str = ""
    detach: bool = False
    request: str = ""  # the session's original request, claimed
    model: str = ""
    client: str = ""


class Stream(Part):
    """One output stream: what was kept, and how much of it the agent was given."""

    digest: str
    size: int
    delivered: int


class Used(Part):
    """What the call used; `source` says who measured."""

    wall_us: int = 0
    cpu_user_us: int = 0
    cpu_system_us: int = 0
    max_rss_kib: int = 0
    leftover: int = 0
    source: str = "guest"


class Outcome(Entry, tag="outcome"):
    """How the call ended. Its digest is the receipt's."""

    call: str
    task: str
    outcome: str
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    used: Used | None = None
    stdout: Stream | None = None
    stderr: Stream | None = None
    result: Content | None = None
    walls: tuple[str, ...] = ()  # forbidden acts that the launcher tried and was refused


AnyEntry = (
    Start | Stop | Reload | Repair | Beacon | Degraded | Token | Revoke | TaskBegin | TaskEnd | Refusals
    | SandboxBegin | SandboxEnd | Call | Outcome
)

_encoder = msgspec.json.Encoder(order="sorted")
_decoder: msgspec.json.Decoder[AnyEntry] = msgspec.json.Decoder(AnyEntry)


def encode(entry: AnyEntry) -> bytes:
    """The canonical bytes of an entry. Raises `RunnerError` (ledger) when it is too long for a bundle."""
    data = _encoder.encode(entry)
    if len(data) > MAX_ENTRY:
        raise refuse("ledger", f"an entry of {len(data)} bytes is longer than {MAX_ENTRY}")
    return data


def decode(data: bytes) -> AnyEntry:
    """Canonical bytes back into an entry. Raises `RunnerError` (ledger) when they are not canonical or not known."""
    try:
        entry = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refuse("ledger", f"not an entry this version knows: {error}") from None
    if _encoder.encode(entry) != data:
        raise refuse("ledger", "the entry's bytes are not in canonical form")
    return entry


def digest(data: bytes) -> str:
    """SHA-256 of an entry's bytes, in hex: the receipt's digest."""
    return hashlib.sha256(data).hexdigest()
