"""The nouns of the house, as immutable values: one type per trust level.

`bytes → ToolCall → Authenticated → Grant → CallPlan → Outcome → Receipt`. Each of these is constructed in one
module only (tests/unit/test_house.py holds it), so holding one means that the step before it has happened.
Sizes are bytes, times are seconds since the epoch or milliseconds where the name says so, digests are
lower-case hex SHA-256.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Base of every value: immutable, absent when default, unknown fields refused."""


# What another process of ours counts, as far as an entry of the ledger holds it exactly, and one more.
Count = Annotated[int, msgspec.Meta(ge=0, lt=(1 << 53) - 1)]

# --- who ---------------------------------------------------------------------------------------------


class Peer(Value, frozen=True):
    """The process at the other end of a socket, from SO_PEERCRED at connect."""

    uid: int
    pid: int
    gid: int = 0


class Principal(Value, frozen=True):
    """Who asks. agent, owner, task and session are the root token's; `asserted` are the names that derived
    tokens gave their holders, root to leaf: claims of their parents, not identity."""

    agent: str
    owner: str
    task: str
    session: str
    asserted: tuple[str, ...] = ()


# --- what a tool is ----------------------------------------------------------------------------------

Consequence = Literal["low", "medium", "high"]
Isolation = Literal["launcher", "call"]
PathAccess = Literal["read", "write"]


Protocol = Literal["https", "http", "tcp"]
# How a credential reaches a tool: "inject" gives it a placeholder that egress replaces towards the bound destination,
# "file" and "env" give it the value itself, where the task profile allows that.
Delivery = Literal["inject", "file", "env"]


class EgressRule(Value, frozen=True):
    """One destination that an allowlist opens. Everything is in canonical form (`runner/destination.py`)."""

    name: str  # unique in its file; denials and entries say `part/name`
    host: str  # a name, `*.` and a name (exactly one label more), or an IP literal
    ports: tuple[int, ...]
    protocol: Protocol = "https"
    inspect: bool = False  # https: end TLS in egress, so that methods and paths can be judged and secrets injected
    methods: tuple[str, ...] = ()  # () = any; only where requests are readable: http, or https that is inspected
    paths: tuple[str, ...] = ()  # () = any; `/v1/*` a prefix of whole segments, `/v1/{id}/x` a template
    addresses: tuple[str, ...] = ()  # ranges (CIDR) that are always denied elsewhere and that this rule opens
    up: int = 0  # bytes towards the destination that one call may send by this rule; 0 = no bound of its own
    down: int = 0  # bytes from it
    rate: int = 0  # requests (tunnels, where opaque) a minute by one call; 0 = no bound of its own
    record: Literal["path", "digest"] = "path"  # how a request's path is recorded
    keep: bool = False  # keep responses by content digest (a cassette)


class Allowlist(Value, frozen=True):
    """The rules of one part. A request goes out only where a rule of every part of a call's grant allows it."""

    part: str  # "profile default", "tool http_request", "daemon"
    rules: tuple[EgressRule, ...] = ()


class SecretRef(Value, frozen=True):
    """A credential that a tool needs, as its manifest names it: never the value."""

    name: str  # in the broker's store, or `provider:name`
    variable: str  # environment variable with the placeholder (inject), the value (env) or the file's path (file)
    delivery: Delivery = "inject"
    destinations: tuple[str, ...] = ()  # inject: names of the manifest's own egress rules that it is bound to
    places: tuple[str, ...] = ()  # inject: where it may stand: `header:NAME`, `query:NAME`, `basic`, `body`


class Manifest(Value, frozen=True):
    """A tool, as its `tool.toml` describes it. `digest` covers the manifest's bytes and every file of its code."""

    id: str
    description: str
    consequence: Consequence
    profile: str
    kind: Literal["argv", "python"]
    digest: str
    code_digest: str  # the digest the guest checks before it runs the code; "" when there is none
    parameters: dict[str, Any]  # JSON Schema 2020-12 of the arguments object
    result: dict[str, Any] = {}  # JSON Schema of a python tool's result
    argv: tuple[str, ...] = ()  # argv tools: literals, or "{name}" replaced by a string or spread from an array
    stdin: bool = False  # whether a call may stream standard input
    stdout: Literal["text", "bytes"] = "text"  # "bytes": what it writes is data, whatever it looks like
    paths: dict[str, PathAccess] = {}  # arguments that are workspace paths
    project: dict[str, str] = {}  # arguments made visible to policy: name -> Cedar type ("String", "Set<String>", …)
    files: dict[str, bytes] = {}  # the tool's code, by relative path
    egress: tuple[EgressRule, ...] = ()  # what its calls may reach, within what profile, token and policy allow
    secrets: tuple[SecretRef, ...] = ()
    labels: tuple[str, ...] = ()  # what every result of it carries


class InjectionRule(Value, frozen=True):
    """What instruction-like text looks like (`policies/filters/injection.toml` says how a pattern is written)."""

    id: str
    description: str
    pattern: str
    weight: int  # percent: how sure the rule alone is
    kind: Literal["instruction", "discussion"] = "instruction"  # discussion: of those who only write about such text
    examples: tuple[str, ...] = ()
    counter_examples: tuple[str, ...] = ()


class Ceilings(Value, frozen=True):
    """What a sandbox, or one call in it, may use at most. Container-wide ones come from the task profile;
    per-call ones are the smaller of task and tool profile."""

    # container
    memory: int = 512 << 20  # memory limit, swap included; tmpfs is charged to it
    cpus_milli: int = 1000  # CPU quota in thousandths of a core
    pids: int = 128
    workspace: int = 256 << 20  # size of /workspace, in memory or on disk as the profile says
    workspace_inodes: int = 65_536
    tmp: int = 32 << 20  # tmpfs size of /tmp
    shm: int = 0  # tmpfs size of /dev/shm; 0 = none (multiprocessing locks need one)
    concurrent_calls: int = 4
    # call
    open_files: int = 256
    file_size: int = 128 << 20
    wall_ms: int = 60_000
    cpu_s: int = 60
    output: int = 8 << 20  # stdout plus stderr; at the cap the call is killed
    output_rate: int = 64 << 20  # of it a second; a call that is faster is paused, not killed
    result: int = 256 << 10  # a python tool's structured result


# What a host may lack and a profile may do without, openly; profiles/README.md says what each one costs.
Lack = Literal["cpu", "freezer", "scope", "swap", "tcp", "truncate"]
# "memory" is a tmpfs that ends with its sandbox, "disk" an ext4 filesystem that ends with its task.
WorkspaceKind = Literal["memory", "disk"]
# Whether a call's output is kept as it came, before any filter, encrypted for forensics: "held" when it was held back,
# "filtered" also when a filter found anything in it, "always" whatever becomes of it.
RawMode = Literal["never", "held", "filtered", "always"]
# "changed" hashes the files whose size, times or inode differ from the last snapshot's, "full" hashes every one.
Snapshot = Literal["none", "changed", "full"]


# What becomes of what a filter found, in order of strictness.
Action = Literal["allow", "mark", "mask", "hash", "generalise", "redact", "strip", "hold", "block"]
# What is asked about a match beside its pattern (stream/checks.py); "" asks nothing.
Check = Literal["", "card", "luhn", "iban", "jwt", "basic", "ssn", "phone", "mixed", "password", "real"]


class FilterRule(Value, frozen=True):
    """One pattern that text towards agent, log and network is searched for, as policies/filters/*.toml have it."""

    id: str
    label: str  # what its findings are: "pii.email"
    description: str
    pattern: str  # of bytes, in ASCII; every repetition has an end
    group: str = ""  # the named group that is replaced; "" = the whole match
    check: Check = ""
    entropy: int = 0  # thousandths of a bit a byte that what is replaced must have
    allow: tuple[str, ...] = ()  # patterns; what one of them occurs in is left alone
    examples: tuple[str, ...] = ()  # each is found by exactly this rule; `<kind:count>` stands for random text
    counter_examples: tuple[str, ...] = ()  # none is found by it
    place: str = ""  # file and line, for errors


class LabelledFiles(Value, frozen=True):
    """Files of the workspace whose text carries a label into every result that may hold it."""

    path: str  # normal, below /workspace: a file, or a folder with all that is below; `*` within one name
    label: str
    programs: bool = True  # also into results of tools that could read any file: nobody sees which they read


class TaskProfile(Value, frozen=True):
    """Makes the container: image, ceilings, seccomp filter, the tools a task may use at all."""

    name: str
    description: str
    digest: str
    image: str  # an image id, or the tag prefix of the tool image this package builds
    seccomp: str
    ceilings: Ceilings
    tools: tuple[str, ...]
    idle_timeout_s: int = 1800
    runtime: str = ""  # an OCI runtime registered with the engine; "" = its default
    accept: tuple[Lack, ...] = ()  # walls it does without where a host has none of that kind
    workspace_kind: WorkspaceKind = "memory"
    snapshot: Snapshot = "none"  # how the workspace is hashed after each call that may write it
    egress: tuple[EgressRule, ...] = ()  # the most that any tool may reach in it
    delivery: tuple[Delivery, ...] = ("inject",)  # how secrets may reach its tools
    labels: dict[str, Action] = {}  # what becomes of what filters find, by label, in place of the shipped defaults
    files: tuple[LabelledFiles, ...] = ()
    raw: dict[Consequence, RawMode] = {}  # by the consequence of the tool called; "never" of those that are not named


class ToolProfile(Value, frozen=True):
    """May only narrow inside a task profile: per-call walls of one tool."""

    name: str
    description: str
    digest: str
    isolation: Isolation
    workspace: Literal["none", "read", "write"]
    tmp: bool
    seccomp_deny: tuple[str, ...] = ()  # system calls refused on top of the container's filter
    wall_ms: int = 0  # 0 = the task profile's
    cpu_s: int = 0
    output: int = 0
    open_files: int = 0
    file_size: int = 0


# --- one call, by trust level --------------------------------------------------------------------------


class ToolCall(Value, frozen=True):
    """A well-formed call frame, hostile. Tool and arguments are inside the proof only. Made in wire/session.py."""

    number: int  # the client's number for it, unique on the connection
    proof: str
    peer: Peer
    stdin: bool = False
    window: int = 0  # output bytes the client is ready to take
    deadline_ms: int = 0
    traceparent: str = ""
    intent: str = ""
    because: tuple[str, ...] = ()
    retry_of: str = ""
    idempotency_key: str = ""
    detach: bool = False
    sync: bool = False

    def __repr__(self) -> str:
        return f"ToolCall(number={self.number}, peer={self.peer!r}, …)"  # never the proof: it would work for a minute


class Authenticated(Value, frozen=True):
    """A call whose chain and proof verified. `arguments` is the proof's `hta`. Made in gate/authenticate.py."""

    call: ToolCall
    principal: Principal
    tool: str
    arguments: dict[str, Any]
    constraints: dict[str, Any]  # the leaf token's constraint map for this tool
    chain: tuple[str, ...]  # token ids (jti), root to leaf
    leaf_digest: str  # of the leaf token's signing input: names the token without holding it
    proof_id: str
    profile: str  # the task profile that the root token names
    expires: int  # the leaf's exp


Effect = Literal["allow", "deny", "modify", "step_up", "defer"]


class Decision(Value, frozen=True):
    """What policy says of an authenticated call, in AARM's terms. `code` is the refusal's code when not allowed."""

    effect: Effect
    reason: str
    rules: tuple[str, ...] = ()
    obligations: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # context fields a rule needed and the session does not have
    code: str = ""
    field: str = ""
    allowed: str = ""
    policy: str = ""  # digest of the bundle that decided


class Grant(Value, frozen=True):
    """An allowed call. Made in gate/approve.py."""

    authenticated: Authenticated
    decision: Decision
    call: str  # the daemon's id for the call


class Jail(Value, frozen=True):
    """The walls a launcher puts around itself before it serves a call. Paths are inside the container."""

    read: tuple[str, ...]
    write: tuple[str, ...]
    execute: tuple[str, ...]
    seccomp: str  # system calls refused on top of the container's filter, comma-separated
    open_files: int
    file_size: int
    connect: int = 0  # the one TCP port it may connect to, where the call's own listener is; 0 = none


class CallPlan(Value, frozen=True, kw_only=True):
    """Everything the guest needs to run one call, and the bounds gate itself enforces. Made in sandbox/plan.py."""

    call: str
    sandbox: str
    tool: str
    kind: Literal["argv", "python"]
    isolation: Isolation
    jail: Jail
    argv: tuple[str, ...] = ()
    arguments: dict[str, Any] = {}
    roots: dict[str, str] = {}  # path argument -> the folder that the token confines it to
    environment: dict[str, str] = {}
    secrets_folder: str = ""  # where files with its secrets are put; "" = it gets none
    code_digest: str = ""
    stdin: bool = False
    wall_ms: int
    cpu_s: int
    output: int
    output_rate: int = 64 << 20
    result: int


class Delivered(Value, frozen=True):
    """What a call is given beside its plan, which is recorded and so holds no credential: variables (placeholders, or
    values where the profile allows that), and files for its own folder of secrets."""

    environment: dict[str, str] = {}
    files: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"Delivered({', '.join((*self.environment, *self.files))})"


class Marked(Value, frozen=True):
    """A part of what a call gave back that speaks to a model: offsets in the bytes of a stream as delivered, or in the
    structured result's texts, each in a line ("value")."""

    stream: Literal["stdout", "stderr", "value"]
    start: int
    end: int


class Chunk(Value, frozen=True):
    """A piece of output. `offset` counts the bytes of its stream before it, as they travel. `encoding` is "base64" from
    the place on where a stream is no text; clients give such pieces decoded, and say in `end` where to go on after."""

    stream: Literal["stdout", "stderr"]
    offset: int
    data: bytes
    encoding: str = ""
    end: int = 0


# `unavailable`: the call's process never existed, a retry is safe. `interrupted`: it may have had effects. `filtered`:
# it was killed for what its output held.
OutcomeKind = Literal[
    "exited", "timed_out", "oom", "killed", "cancelled", "output_capped", "filtered", "interrupted", "unavailable"
]


class Usage(Value, frozen=True):
    """What a call used. `source` says who measured: "guest" (PID 1 of the sandbox) or "cgroup"."""

    wall_us: int = 0
    cpu_user_us: int = 0
    cpu_system_us: int = 0
    max_rss_kib: int = 0
    leftover: int = 0  # processes the call left behind, killed at its end
    source: str = "guest"


class Outcome(Value, frozen=True):
    """How a call's process ended. `exit_code` for exited, `signal` when a signal ended it. Made in sandbox/claim.py
    from the guest's report, or by the recorder for a call whose daemon died."""

    kind: OutcomeKind
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    usage: Usage = Usage()

    @property
    def ok(self) -> bool:
        """Whether the tool itself reported success."""
        return self.kind == "exited" and self.exit_code == 0


class Receipt(Value, frozen=True):
    """The sealed end of one call: the digest of its outcome entry and where in the ledger it lies. Made in the
    recorder's caller (wire/recorder.py) from the recorder's own answer."""

    call: str
    digest: str
    position: int
    durable: bool = False


# --- a sandbox -----------------------------------------------------------------------------------------


class SandboxPlan(Value, frozen=True):
    """One container for one task. It names a profile by digest; engine takes the numbers from its own compiled copy."""

    sandbox: str
    task: str
    profile: str
    profile_digest: str


class Spent(Value, frozen=True):
    """What a whole sandbox used, by its cgroup, up to the moment before it was killed: every process in it, of no call
    in particular. -1 = this kernel does not account it."""

    cpu_us: int = -1
    memory_peak: int = -1  # bytes; with page cache, and with what lies in its tmpfs
    oom_kills: int = 0


class Measured(Value, frozen=True):
    """What engine found in the container itself, not what it asked for. Written to the ledger with the sandbox."""

    image: str  # image id
    runtime: str
    pid: int  # PID 1 on the host
    uid: int
    seccomp: int  # 2 = a filter is loaded
    seccomp_filters: int
    no_new_privs: bool
    capabilities: str  # the effective, permitted, inheritable, bounding and ambient sets, all of them empty
    namespaces: dict[str, bool]  # kind -> differs from the host's
    interfaces: tuple[str, ...]
    read_only_root: bool
    memory_limit: int
    swap_limit: int
    pids_limit: int
    cpu_quota_milli: int
    cgroup_version: int
    accepted: tuple[str, ...] = ()  # what this host lacks and the profile does without
    workspace: str = ""  # the filesystem of /workspace: tmpfs or ext4
    workspace_size: int = 0  # bytes it takes of memory or of the host's disk, at most
    workspace_inodes: int = 0
