"""The daemon's configuration: one TOML file into structs that refuse unknown keys, and every limit with its reason."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from runner.errors import RunnerError, refuse

T = TypeVar("T")

TOOL_ID = re.compile(r"^[a-z][a-z0-9_]{0,63}\Z")  # model vendors refuse dots in tool names
NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}\Z")  # agents, owners, tasks, sessions: printable, no spaces
SECRET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}\Z")  # no `:`, which divides a provider from its secret
PROTOCOL_VERSION = 1

Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section: immutable, unknown keys refused."""


class Limits(_Section, frozen=True):
    """Bounds on hostile bytes and on every queue. Each has a reason; raising one costs memory per peer."""

    max_frame: Positive = 1 << 20  # a proof carries the arguments; larger inputs go through stdin or files
    max_elements: Positive = 4096  # msgpack elements a frame may hold: 4 MB of `[[]]` once became 293 MiB
    max_depth: Positive = 16  # our own messages nest 4 deep
    hello_timeout_s: Seconds = 10.0  # a peer that sends a byte a second is gone by then (case S03)
    heartbeat_s: Seconds = 30.0  # silence after which the daemon asks, and after twice of which it hangs up
    connections_per_uid: Positive = 64  # case S04: a thousand idle connections leave room for the honest
    connections: Positive = 512
    calls_per_connection: Positive = 32
    calls_per_task: Positive = 64  # running or waiting for one of the few that run at once (concurrent_calls)
    calls: Positive = 2048  # of all tasks; past it a task has at most its even share, so that none is shut out
    call_bytes_per_task: Positive = 8 << 20  # proofs of its calls, arguments inside: what a queue holds in memory
    # Output bytes between guest and client per call: 210 MB/s, with half of it 190 (measured). A task's fifth call has
    # an eighth of it, as has each one more: 3.75 MiB a connection (case S05).
    output_window: Positive = 512 << 10
    stdin_window: Positive = 256 << 10  # what the guest holds of a stdin that the tool does not read
    send_queue: Positive = 256 << 10  # bytes waiting for one client before its calls are paused
    argument_bytes: Positive = 256 << 10
    intent_bytes: Positive = 4096
    proof_window_s: Positive = 60  # how old a proof may be; the draft's clock tolerance (§9.10)
    iat_skew_s: Positive = 30  # the draft's MAX_IAT_SKEW
    token_bytes: Positive = 65_536  # the draft's MAX_TOKEN_SIZE
    chain_bytes: Positive = 262_144  # the draft's MAX_CHAIN_SIZE
    token_lifetime_s: Positive = 90 * 86_400  # the draft's MAX_TOKEN_LIFETIME
    delegation_depth: Positive = 8  # the draft's lowest allowed MAX_DELEGATION_DEPTH
    constraint_depth: Positive = 32  # the draft's MAX_CONSTRAINT_DEPTH
    argument_depth: Positive = 32  # containers inside containers in a call's arguments
    replay_proofs: Positive = (
        262_144  # accepted proofs remembered until they leave the window: 90 s of 2,900 calls a second, 35 MB
    )
    cached_chain_bytes: Positive = (
        4 << 20
    )  # token text whose verification is remembered; parsed it takes about ten times that
    detached_results: Positive = 256  # results kept per task for attach and result
    detached_bytes: Positive = 64 << 20  # output kept in memory for detached calls, all tasks together
    detached_s: Positive = 3600
    kept_response: Positive = 8 << 20  # of one response that a rule says to keep; a longer one is not kept, as output
    kept_per_call: Positive = 32 << 20  # of all of a call's: what a tool fetches must not fill the disk
    drain_s: Seconds = 20.0  # how long SIGTERM waits for running calls
    sandbox_start_s: Seconds = 60.0
    snapshot_files: Positive = 100_000  # things in a workspace beyond which a receipt has no root: 1 to 3 s to look at
    snapshot_bytes: Positive = 1 << 30  # read for one snapshot: about a second of hashing
    snapshot_s: Seconds = 10.0  # a call waits for its snapshot
    kill_grace_s: Seconds = 5.0  # how long gate waits past a deadline before it has the sandbox destroyed
    pending_act_s: Positive = 86_400  # an act that waits for a second person: the next shift can still confirm it
    pending_acts: Positive = 16  # at once; nobody reviews more, and each keeps a catalogue's content
    tasks: Positive = 256
    tasks_per_owner: Positive = 192  # three quarters: no owner alone can shut out the others


class Peers(_Section, frozen=True):
    """Who may connect, by uid, checked with SO_PEERCRED before a byte is read. Names or numbers.

    `operators` have every role, and stand in for names: with [[operators]] it is left out."""

    agents: tuple[int | str, ...] = ()
    operators: tuple[int | str, ...] = (0,)


Role = Literal["policy-author", "approver", "containment", "secrets", "forensics", "auditor"]
TwoPersonAct = Literal[
    "activate-policy", "release"
]  # acts that can need a second operator; runner/admin/roster.py has the rows


class Operator(_Section, frozen=True):
    """One person (or one service) behind admin.sock, known by a uid of this host, an Ed25519 key, or either.

    Keys stand in this file, not in files beside it, so that its digest in the ledger covers who could do what."""

    name: str
    roles: Annotated[tuple[Role, ...], msgspec.Meta(min_length=1)]
    uid: int | str | None = None  # a number or a user's name; never shared with another operator
    key: str = ""  # `x` of the public JWK, as `runner admin key` prints it


class Users(_Section, frozen=True):
    """The users the processes drop to, and the groups that may open the sockets. `scripts/setup` makes them.

    agent.sock is for `agents_group`. admin.sock is root's alone (0600) unless `operators_group` names a group (0660):
    named operators who are not root need it, and whom [[operators]] does not name is refused all the same. For it
    scripts/setup makes `runner-operators`, with nobody in it; `runner doctor` tells who cannot reach the socket."""

    gate: str = "runner-gate"
    recorder: str = "runner-recorder"
    egress: str = "runner-egress"
    broker: str = "runner-broker"
    agents_group: str = "runner-agents"
    operators_group: str = ""


class Issuer(_Section, frozen=True):
    """One issuer: its URI and its Ed25519 public keys (a JWK, or a JWK Set after `runner keys rotate`)."""

    uri: str
    public_key: str


class Policy(_Section, frozen=True):
    """Whose signature a bundle of policies must have. Each key is a JWK file as `runner keys init` writes it."""

    require_signature: bool = False
    public_keys: tuple[str, ...] = ()  # any of them; two while one replaces the other


class Sandboxes(_Section, frozen=True):
    """Where containers come from. uids are leased host-wide, one per sandbox (a shared uid would share signals)."""

    docker_host: str = ""  # "" = DOCKER_HOST or the local socket
    image: str = ""  # "" = the tool image this package builds, found by the digest of its inputs
    uid_first: Positive = 210_000
    uid_count: Positive = 4096
    maximum: Positive = 64
    per_owner: Positive = 48  # three quarters of them: no owner alone can shut out the others
    creating: Positive = 4  # at once: dockerd makes five a second on two cores, and more would only queue inside it
    pool: Annotated[int, msgspec.Meta(ge=0)] = 1  # sandboxes kept open per task profile: 13 MB each
    archive: bool = True  # save each image once (`docker save`), so that what calls ran in can be had again
    archive_bytes: Positive = 8 << 30  # of all such archives; an image beyond it is not saved, and its entry says so


class RuleFile(_Section, frozen=True):
    """One [[egress]] table of a profile or manifest, or one of [daemon.destinations], as written: sizes as text."""

    name: str
    host: str
    ports: tuple[int, ...] = ()  # () = 443, or 80 for http; tcp must say
    protocol: Literal["https", "http", "tcp"] = "https"
    tls: Literal["pass", "inspect"] = "pass"
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    up: str | int = 0
    down: str | int = 0
    rate: int = 0
    record: Literal["path", "digest"] = "path"
    keep: bool = False


class Egress(_Section, frozen=True):
    """The one process with a network: how it finds hosts, whom it trusts, and what it bounds."""

    nameservers: tuple[str, ...] = ()  # () = the host's own (/etc/resolv.conf)
    hosts: dict[str, tuple[str, ...]] = {}  # names that are never looked up: name -> addresses
    trust: str = ""  # PEM file of certificate authorities beside the host's own
    connect_s: Seconds = 10.0  # for a lookup, a dial and a TLS handshake together
    head_s: Seconds = 10.0  # for a whole request or response head, however slowly it dribbles
    idle_s: Seconds = 60.0  # without a byte either way; the call's own deadline may come first
    head_bytes: Positive = 32 << 10  # of a request or response head: ten times what browsers send
    headers: Positive = 100
    connections_per_call: Positive = 32
    connections: Positive = 512


class Daemon(_Section, frozen=True):
    """What the daemon's own processes may dial, by the same authoriser as every tool."""

    destinations: tuple[RuleFile, ...] = ()


class CommandSecret(_Section, frozen=True):
    """A secret that a program prints. `field` of its JSON object is the value; "" = all it prints is."""

    argv: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]  # the program by its whole path; no shell
    read_argv: tuple[str, ...] = ()  # instead, for a tool that only reads
    field: str = ""
    username: str = ""  # the member of the object that is the username, where there is one
    timeout_s: Seconds = 10.0


class CommandProvider(_Section, frozen=True, tag_field="kind", tag="command"):
    """Programs of this host, run as the broker's user, without a network."""

    secrets: dict[str, CommandSecret]


class VaultSecret(_Section, frozen=True):
    """A secret of HashiCorp Vault or OpenBao: a version of a KV v2 engine, or what any other path makes (a lease)."""

    path: str  # kv2: within its mount; dynamic: from the API's root, "database/creds/orders-rw"
    engine: Literal["kv2", "dynamic"] = "dynamic"
    mount: str = "secret"  # kv2
    read_path: str = ""  # instead of `path`, for a tool that only reads
    field: str = "password"
    username: str = ""  # the member of the answer that is the username, where there is one
    data: dict[str, str] = {}  # dynamic: sent with the request, for engines that want a POST


class VaultProvider(_Section, frozen=True, kw_only=True, tag_field="kind", tag="vault"):
    """A server of HashiCorp Vault or OpenBao. A token, or a role and secret id (AppRole), by the name of a stored
    secret, or by the whole path of a file (0600) of the broker's user."""

    address: str
    namespace: str = ""
    token: str = ""
    role_id: str = ""
    secret_id: str = ""
    approle: str = "approle"  # where that method is mounted
    timeout_s: Seconds = 10.0  # for one request, whatever it does
    secrets: dict[str, VaultSecret]


class OAuthSecret(_Section, frozen=True):
    """An access token made for each call."""

    scope: str = ""
    read_scope: str = ""  # instead of `scope`, for a tool that only reads
    audience: str = ""
    resource: str = ""
    subject_token: str = (
        ""  # exchange this one (RFC 8693): a stored secret, or a file as above; "" = client credentials
    )
    subject_type: str = "urn:ietf:params:oauth:token-type:access_token"


class OAuthProvider(_Section, frozen=True, kw_only=True, tag_field="kind", tag="oauth"):
    """An OAuth 2.0 authorization server: client credentials (RFC 6749), token exchange, revocation (RFC 7009)."""

    token_endpoint: str
    revocation_endpoint: str = ""  # "" = tokens live until they expire
    client_id: str
    client_secret: str  # the name of a stored secret, or the whole path of a file (0600) of the broker's user
    client_auth: Literal["client_secret_basic", "client_secret_post"] = "client_secret_basic"
    timeout_s: Seconds = 10.0
    secrets: dict[str, OAuthSecret]


class Secrets(_Section, frozen=True):
    """Leases of credentials, and where they come from beside the broker's own store: a manifest that names
    `provider:secret` gets what is under [secrets.providers.PROVIDER.secrets.SECRET]."""

    ttl_s: Seconds = 900.0  # the longest a lease lives without being renewed
    max_ttl_s: Seconds = 86_400.0  # and with
    providers: dict[str, CommandProvider | VaultProvider | OAuthProvider] = {}

    def names(self, name: str) -> bool:
        """Whether a manifest's `name` can be one of a stored secret, or is `provider:secret` as configured here."""
        provider, colon, secret = name.partition(":")
        if not colon:
            return bool(SECRET_NAME.match(name))
        return provider in self.providers and secret in self.providers[provider].secrets


class Escrow(_Section, frozen=True):
    """Who can open raw output, which profiles may have kept: public keys of age. The private ones are never here."""

    recipients: tuple[Annotated[str, msgspec.Meta(pattern=r"^age1[0-9a-z]{58}$")], ...] = ()


class Telemetry(_Section, frozen=True):
    """Where spans go: `none`, or `file` (OTLP JSON lines in the state directory)."""

    export: Literal["none", "file"] = "none"


class InspectorFile(_Section, frozen=True):
    """An inspector of your own, on a Unix socket that gate's user may connect to; runner/gate/inspectors.py has its
    protocol. What it did not see is labelled `uninspected`; `[labels]` of a profile say what becomes of that."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
    socket: Annotated[str, msgspec.Meta(pattern=r"^/")]
    http: Annotated[str, msgspec.Meta(pattern=r"^(/[!-~]*)?$")] = ""  # the path that is asked by HTTP; "" = frames
    required: bool = False  # for every profile: uninspected output is withheld
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=30_000)] = 2000  # for one answer


class Config(_Section, frozen=True):
    """The whole file. Paths are absolute, or relative to the folder the file lies in."""

    state: str = "/var/lib/toolrunner"
    run: str = "/run/toolrunner"
    profiles: str = ""  # "" = the ones that travel with the package
    tools: str = ""
    policies: str = ""
    two_person: tuple[TwoPersonAct, ...] = ()  # acts of one operator that wait for another's word
    peers: Peers = Peers()
    operators: tuple[Operator, ...] = ()
    users: Users = Users()
    issuers: tuple[Issuer, ...] = ()
    policy: Policy = Policy()
    sandboxes: Sandboxes = Sandboxes()
    egress: Egress = Egress()
    daemon: Daemon = Daemon()
    secrets: Secrets = Secrets()
    escrow: Escrow = Escrow()
    telemetry: Telemetry = Telemetry()
    inspectors: Annotated[tuple[InspectorFile, ...], msgspec.Meta(max_length=4)] = ()
    limits: Limits = Limits()


_TOML_PLACE = re.compile(r"\(at line (\d+), column (\d+)\)")


def parse_toml(text: bytes, name: str, code: str) -> dict[str, Any]:
    """TOML bytes to a dict. Raises `RunnerError` of `code` naming file and line."""
    try:
        return tomllib.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise refuse(code, "the file is not UTF-8", field=name) from error
    except tomllib.TOMLDecodeError as error:
        place = _TOML_PLACE.search(str(error))
        where = f"{name}:{place.group(1)}" if place else name
        raise refuse(code, f"not TOML: {error}", field=where) from error


def line_of(text: bytes, path: str) -> int:
    """The 1-based line of the last key in a dotted msgspec path (`$.limits.max_frame`), 0 when it cannot be told."""
    keys = [
        part for part in re.split(r"[.\[\]]", path.removeprefix("$")) if part and not part.isdigit() and part != "..."
    ]
    if not keys:
        return 0
    pattern = re.compile(rb"^\s*(?:\[+.*\b)?" + re.escape(keys[-1].encode()) + rb"\b")
    lines = text.splitlines()
    first = _table_line(lines, path)
    return next((number for number, line in enumerate(lines[first:], first + 1) if pattern.match(line)), 0)


def _table_line(lines: list[bytes], path: str) -> int:
    """How many lines stand before the table of an array that a path goes through (`$.egress[1].host`)."""
    found = re.search(r"([A-Za-z_]+)\[(\d+)\](?!.*\[)", path)
    if not found:
        return 0
    header = re.compile(rb"^\s*\[\[(?:[^\]]*\.)?\s*" + found[1].encode() + rb"\s*\]\]")
    starts = [number for number, line in enumerate(lines) if header.match(line)]
    return starts[int(found[2])] if int(found[2]) < len(starts) else 0


_PATH_IN_ERROR = re.compile(r" - at `(\$[^`]*)`")
_UNKNOWN_KEY = re.compile(r"unknown field `([^`]+)`")


def decode_toml(text: bytes, kind: type[T], name: str, code: str, data: dict[str, Any] | None = None) -> T:
    """TOML bytes into a struct. Raises `RunnerError` of `code` naming file, line, field and what is wrong."""
    data = parse_toml(text, name, code) if data is None else data
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        found = _PATH_IN_ERROR.search(message)
        unknown = _UNKNOWN_KEY.search(message)
        path = found.group(1) if found else "$"
        if unknown:
            path = f"{path}.{unknown.group(1)}"
        line = line_of(text, path)
        where = f"{name}:{line}" if line else name
        reason = _PATH_IN_ERROR.sub("", message)
        raise refuse(code, f"{path.removeprefix('$').lstrip('.') or 'file'}: {reason}", field=where) from error


def load_config(path: Path) -> tuple[Config, bytes]:
    """Read and check the file at `path`. Returns the config, paths made absolute, and the file's own bytes.

    Raises `RunnerError` (code `config`) naming file, line and field."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise refuse(
            "config", f"cannot read it: {error.strerror}", field=str(path), next_step="write one with `runner init DIR`"
        ) from error
    return parse_config(text, path), text


def parse_config(text: bytes, path: Path) -> Config:
    """The config in `text`, relative paths taken from `path`'s folder."""
    config = decode_toml(text, Config, str(path), "config")
    base = path.resolve().parent

    def absolute(value: str) -> str:
        return str(base / value) if value else value

    return msgspec.structs.replace(
        config,
        state=absolute(config.state),
        run=absolute(config.run),
        profiles=absolute(config.profiles),
        tools=absolute(config.tools),
        policies=absolute(config.policies),
        policy=msgspec.structs.replace(config.policy, public_keys=tuple(map(absolute, config.policy.public_keys))),
        egress=msgspec.structs.replace(config.egress, trust=absolute(config.egress.trust)),
        issuers=tuple(
            msgspec.structs.replace(issuer, public_key=absolute(issuer.public_key)) for issuer in config.issuers
        ),
    )


_SIZE = re.compile(r"^(\d+)\s*(B|KiB|MiB|GiB)?\Z")
_UNITS = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_TIME = re.compile(r"^(\d+(?:\.\d+)?)\s*(ms|s|m|h)\Z")
_TIMES = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


def size(text: str | int) -> int:
    """Bytes from `512MiB`, `64KiB`, `100B` or a bare number. Raises ValueError."""
    if isinstance(text, int):
        return text
    found = _SIZE.match(text)
    if not found:
        raise ValueError(f"`{text}` is not a size: write 64KiB, 512MiB, 2GiB")
    return int(found.group(1)) * _UNITS[found.group(2)]


def milliseconds(text: str) -> int:
    """Milliseconds from `500ms`, `30s`, `5m`, `1h`. Raises ValueError."""
    found = _TIME.match(text)
    if not found:
        raise ValueError(f"`{text}` is not a time: write 500ms, 30s, 5m, 1h")
    return int(float(found.group(1)) * _TIMES[found.group(2)])


__all__ = [
    "Config",
    "Issuer",
    "Limits",
    "Operator",
    "Peers",
    "Policy",
    "Role",
    "RunnerError",
    "Sandboxes",
    "Users",
    "decode_toml",
    "load_config",
    "milliseconds",
    "parse_config",
    "parse_toml",
    "size",
]
