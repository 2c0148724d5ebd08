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
from runner.ledger.network import Alert, Egress, EgressEnd, Network, SecretUse
from runner.ledger.operators import Pending, RefusedReload, Reopen, Withdraw
from runner.ledger.part import (
    VERSION,
    Content,
    Context,
    Decided,
    Delegated,
    Entry,
    Environment,
    Int,
    Operator,
    Part,
    PeerProcess,
    Who,
)
from runner.ledger.raw import Raw, RawOpen
from runner.ledger.retention import Criteria, Hold, Prune, PruneImage, Release
from runner.ledger.secret import Secret

# What others name by way of this module, although it lies in `network`, `part`, `operators`, `raw` and `retention`.
__all__ = [
    "VERSION", "Alert", "Content", "Context", "Criteria", "Decided", "Delegated", "Egress", "EgressEnd", "Entry",
    "Environment", "Hold", "Int", "Network", "Operator", "Part", "PeerProcess", "Pending", "Prune", "PruneImage",
    "Raw", "RawOpen", "RefusedReload", "Release", "Reopen", "Secret", "SecretUse", "Who", "Withdraw",
]  # fmt: skip

MAX_ENTRY = 65_535  # an entry bundle of tlog-tiles prefixes each entry with a uint16 length


class Planned(Part, frozen=True):
    """The plan of an allowed call. `plan` is the whole CallPlan in the content store."""

    sandbox: str
    isolation: str
    profile: str
    plan: Content
    wall_ms: Int
    output: Int


# --- the daemon's life -------------------------------------------------------------------------------


class Start(Entry, frozen=True, tag="start"):
    """The daemon began to serve. `previous` says how the run before it ended."""

    instance: str
    version: str
    host: str
    boot: str
    config: Content
    catalogue: str
    policy: str
    previous: Literal["none", "clean", "dead"]
    interrupted: Int = 0  # calls of the dead run sealed as interrupted
    environment: Environment | None = None
    anchors: tuple[str, ...] = ()  # thumbprints (RFC 7638) of the issuers' keys in force


class Stop(Entry, frozen=True, tag="stop"):
    """The daemon ended by its own will."""

    instance: str
    reason: str
    clean: bool


class Reload(Entry, frozen=True, kw_only=True, tag="reload"):
    """A new catalogue took effect between two calls: by a signal (`by` is -1), or by an operator; where that takes two,
    `confirmed` is the second and `pending` names what waited."""

    before: str
    after: str
    policy: str
    anchors: tuple[str, ...] = ()  # as in `Start`
    by: Int = -1
    operator: Operator | None = None
    confirmed: Operator | None = None
    pending: str = ""
    why: str = ""


class Repair(Entry, frozen=True, tag="repair"):
    """Bytes of an unfinished, never acknowledged write at the ledger's end were dropped at start."""

    dropped: Int
    size: Int


class Rotate(Entry, frozen=True, tag="rotate"):
    """The ledger's key was replaced: the last entry that `old` signs, and the first that `new` does.

    Both are signed-note verifier keys. Only the recorder writes it (`runner/ledger/rotation.py`)."""

    old: str
    new: str
    by: Int  # uid
    why: str = ""


class Beacon(Entry, frozen=True, tag="beacon"):
    """Once a minute, so that silence means something."""

    instance: str
    calls: Int
    running: Int
    tasks: Int


class Degraded(Entry, frozen=True, tag="degraded"):
    """A part was lost or came back."""

    part: str
    state: Literal["lost", "restored"]
    reason: str = ""


# --- authority -----------------------------------------------------------------------------------------


class Token(Entry, frozen=True, kw_only=True, tag="token"):
    """A root token was announced by an operator."""

    jti: str
    digest: str
    issuer: str
    who: Who
    profile: str
    tools: tuple[str, ...]
    issued: Int
    expires: Int
    by: Int
    operator: Operator | None = None


class Revoke(Entry, frozen=True, kw_only=True, tag="revoke"):
    """Authority was taken back: what was announced so far; with `until_released`, also what comes until `Reopen`."""

    target: str
    value: str
    until_released: bool = False
    why: str = ""
    by: Int
    operator: Operator | None = None


class TaskBegin(Entry, frozen=True, tag="task_begin"):
    """The first accepted call of a task."""

    who: Who
    token: str
    profile: str


class TaskEnd(Entry, frozen=True, tag="task_end"):
    """The task is over. `by` is a uid, -1 for the daemon itself."""

    task: str
    reason: str
    by: Int = -1
    operator: Operator | None = None


class Refusals(Entry, frozen=True, tag="refusals"):
    """Strangers refused before any identity was proven: counted per uid and second."""

    uid: Int
    code: str
    detail: str
    count: Int


# --- sandboxes and calls ---------------------------------------------------------------------------------


class Isolation(Part, frozen=True):
    """What engine measured in the container, not what it asked for."""

    image: str
    runtime: str
    uid: Int
    seccomp: Int
    seccomp_filters: Int
    no_new_privs: bool
    capabilities: str
    namespaces: tuple[str, ...]  # the kinds that differ from the host's
    interfaces: tuple[str, ...]
    read_only_root: bool
    memory_limit: Int
    swap_limit: Int
    pids_limit: Int
    cpu_quota_milli: Int
    cgroup_version: Int
    accepted: tuple[str, ...] = ()  # walls this host lacks and the profile does without
    workspace: str = ""  # the filesystem of /workspace: tmpfs, or ext4 on a disk that outlives the sandbox
    workspace_size: Int = 0
    workspace_inodes: Int = 0


class SandboxBegin(Entry, frozen=True, tag="sandbox"):
    """A container was made for a task, measured, and found equal to its plan."""

    sandbox: str
    task: str
    profile: str
    profile_digest: str
    isolation: Isolation


class Image(Entry, frozen=True, tag="image"):
    """What sandboxes of this image id are made of. `archive` is a `docker save` whose config has the id as its digest,
    kept by engine beside the ledger (state/engine/images); `sbom` its packages as CycloneDX, in the content store.
    `problem` says why one of them is not there. Written once, and again when the archive had to be made anew."""

    image: str
    archive: Content | None = None
    sbom: Content | None = None
    packages: Int = 0
    problem: str = ""


class SandboxUsed(Part, frozen=True):
    """What a whole sandbox used, as its cgroup counted from outside, up to the moment before it was killed: what the
    guest says of calls can be held against it. The daemon's own processes in it (PID 1, launchers) are in it, and
    memory is with page cache and tmpfs. -1 = the kernel does not account it."""

    cpu_us: Int
    memory_peak: Int  # bytes
    oom_kills: Int = 0
    source: Literal["cgroup"] = "cgroup"


class SandboxEnd(Entry, frozen=True, tag="sandbox_end"):
    """The container is gone. Without `used` its cgroup was gone first, or engine was."""

    sandbox: str
    task: str
    reason: str
    used: SandboxUsed | None = None


class Call(Entry, frozen=True, kw_only=True, tag="call"):
    """A call, the decision on it, and the plan if it was allowed. Written before the call's process exists.

    Identity at AARM's five levels (R5, R6): the human principal is `who.owner`; the service, the account and program
    of `peer`, and the sandbox's uid in its `sandbox` entry; the agent `who.agent`, or the last `who.asserted`; the
    session `who.session`, linked by `who.task`; role and scope `profile` and `authority`, which is the whole chain
    with what each token grants, of the connection that called. `delegation` leaves out the root: it has an entry of
    its own (`token`)."""

    call: str
    who: Who
    peer: PeerProcess
    chain: tuple[str, ...]  # token ids, root to leaf
    leaf: str
    proof: str
    profile: str = ""
    authority: Content | None = None
    delegation: tuple[Delegated, ...] = ()
    context: Context | None = None
    tool: str
    tool_digest: str = ""
    arguments: Content | None = None
    decision: Decided
    plan: Planned | None = None
    intent: str = ""
    because: tuple[str, ...] = ()
    carries: tuple[str, ...] = ()  # labels of its arguments, by patterns or because they copy labelled text
    copies: tuple[str, ...] = ()  # calls whose labelled results they copy
    untrusted: tuple[str, ...] = ()  # calls whose output reached the agent since its last call: added by the daemon
    retry_of: str = ""
    idempotency_key: str = ""
    traceparent: str = ""
    detach: bool = False
    request: str = ""  # the session's original request, claimed
    model: str = ""
    client: str = ""
    filtered: dict[str, Int] = msgspec.field(
        default_factory=dict
    )  # what was found in arguments and claims: rule → times
    labels: tuple[str, ...] = ()  # what it was. Arguments and plan are kept without it; the tool got them as they were


class Stream(Part, frozen=True):
    """One output stream: what was kept, as it was delivered, and how much of it the agent was given. With an `encoding`
    ("base64"), what follows its first `text` bytes is encoded: from there on the tool wrote no text."""

    digest: str
    size: Int
    delivered: Int
    encoding: str = ""
    text: Int = 0


class Used(Part, frozen=True):
    """What the call used. `sources` says of each figure who measured it: "guest", which is PID 1 of the sandbox, or
    "cgroup". Entries from before it was written have one `source` for all figures."""

    wall_us: Int = 0
    cpu_user_us: Int = 0
    cpu_system_us: Int = 0
    max_rss_kib: Int = 0
    leftover: Int = 0
    source: str = "guest"
    sources: dict[str, str] = msgspec.field(default_factory=dict)


class Workspace(Part, frozen=True):
    """What lay in the workspace after the call: `root` over `manifest` (`runner/ledger/tree.py`), or `problem`.

    `beside` are other calls that could write while it was read. `hashed` says whether every file was read or only
    those whose stamp had changed; `read` counts them. Found by engine from the host, not reported by the guest."""

    hashed: Literal["changed", "full"]
    root: str = ""
    manifest: Content | None = None
    files: Int = 0
    size: Int = 0  # bytes of all files
    read: Int = 0
    beside: tuple[str, ...] = ()
    problem: str = ""


class Marked(Part, frozen=True):
    """A part of what was delivered that speaks to a model: offsets in a stream, or in the texts of a value, each in a
    line."""

    stream: str
    start: Int
    end: Int


class Outcome(Entry, frozen=True, tag="outcome"):
    """How the call ended. Its digest is the receipt's."""

    call: str
    task: str
    outcome: str
    exit_code: Int | None = None
    signal: Int | None = None
    reason: str = ""
    used: Used | None = None
    stdout: Stream | None = None
    stderr: Stream | None = None
    result: Content | None = None
    walls: tuple[str, ...] = ()  # forbidden acts that the launcher tried and was refused
    workspace: Workspace | None = None  # calls that may write it, under a profile that takes snapshots
    network: Network | None = None  # calls of tools that have one
    secrets: tuple[SecretUse, ...] = ()
    filtered: dict[str, Int] = msgspec.field(default_factory=dict)  # what was found in its output: rule → times
    labels: tuple[str, ...] = ()  # what it was, also where nothing was changed for it
    raw: Raw | None = None  # what it wrote before any filter, where that is kept
    sources: tuple[str, ...] = ()  # who has a part in it that nobody vouches for: hosts, or "workspace"
    marked: tuple[Marked, ...] = ()


AnyEntry = (
    Start
    | Stop
    | Reload
    | RefusedReload
    | Pending
    | Withdraw
    | Repair
    | Rotate
    | Beacon
    | Degraded
    | Token
    | Revoke
    | Reopen
    | TaskBegin
    | TaskEnd
    | Refusals
    | SandboxBegin
    | SandboxEnd
    | Image
    | Call
    | Outcome
    | Egress
    | EgressEnd
    | Alert
    | Hold
    | Release
    | Prune
    | PruneImage
    | Secret
    | RawOpen
)


def own_content(entry: Call | Egress | EgressEnd | Outcome, *, raw: bool = False) -> list[Content | Stream]:
    """The content that belongs to this call alone, salted, and may be pruned: never an artefact or an authority. With
    `raw`, only its raw output."""
    found: list[Content | Stream | None]
    if isinstance(entry, Outcome):
        found = [entry.raw.content if entry.raw else None]
        if not raw:
            workspace = entry.workspace.manifest if entry.workspace else None
            found += [entry.stdout, entry.stderr, entry.result, workspace]
    elif raw:
        found = []
    elif isinstance(entry, Call):
        found = [entry.arguments, entry.plan.plan if entry.plan else None]
    elif isinstance(entry, Egress):
        found = [entry.path_content]
    else:
        found = [entry.response]
    return [content for content in found if content is not None]


_encoder = msgspec.json.Encoder(order="sorted")
_decoder: msgspec.json.Decoder[AnyEntry] = msgspec.json.Decoder(AnyEntry)


class _Peek(msgspec.Struct):
    """What an unknown entry says of itself."""

    v: int = 0
    kind: str = ""


_peek = msgspec.json.Decoder(_Peek)


def encode(entry: AnyEntry) -> bytes:
    """The canonical bytes of an entry. Raises `RunnerError` (ledger) when it is too long for a bundle, or holds
    text that is not Unicode (a lone surrogate)."""
    try:
        data = _encoder.encode(entry)
    except UnicodeEncodeError:
        raise refuse("ledger", "an entry holds text that is not valid Unicode") from None
    if len(data) > MAX_ENTRY:
        raise refuse("ledger", f"an entry of {len(data)} bytes is longer than {MAX_ENTRY}")
    return data


def decode(data: bytes) -> AnyEntry:
    """Canonical bytes back into an entry. Raises `RunnerError` (ledger) when they are not canonical, or of a kind
    or version this reader does not know."""
    if len(data) > MAX_ENTRY:
        raise refuse("ledger", f"an entry of {len(data)} bytes is longer than {MAX_ENTRY}")
    try:
        entry = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refuse("ledger", _unknown(data, str(error))) from None
    if entry.v != VERSION:
        raise refuse("ledger", _unknown(data, ""), next_step="read it with the version that wrote it, or a newer one")
    if _encoder.encode(entry) != data:
        raise refuse("ledger", "the entry's bytes are not in canonical form")
    return entry


def _unknown(data: bytes, error: str) -> str:
    """Why `data` is no entry, told from what it says of itself where it can be read at all."""
    try:
        peeked = _peek.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return f"not an entry: {error}"
    if peeked.v != VERSION:
        return f"an entry of version {peeked.v}; this reader knows version {VERSION}"
    return f"not an entry this version knows: {error}"


def digest(data: bytes) -> str:
    """SHA-256 of an entry's bytes, in hex: the receipt's digest."""
    return hashlib.sha256(data).hexdigest()
