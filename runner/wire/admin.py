"""Messages between an operator and gate on admin.sock. Every act that changes something becomes an entry."""

from __future__ import annotations

from typing import Literal

import msgspec

from runner.errors import Refusal
from runner.model import Allowlist, SecretRef
from runner.wire.broker import SecretView
from runner.wire.egress import Requested


class Message(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="type"
):
    """Base of every message."""


class Hello(Message, frozen=True, tag="hello"):
    """The operator is going to prove a key. Whoever is known by its uid alone leaves this out."""


class Challenge(Message, frozen=True, tag="challenge"):
    """The answer to `Hello`: what the proof must be over. Good for this connection and one attempt."""

    nonce: str
    audience: str


class Prove(Message, frozen=True, tag="prove"):
    """Possession of an operator's key (`runner/token/operator.py`): from here on this connection is that operator's,
    whatever its uid is.

    `key` is a thumbprint, which picks one of the keys that the configuration names."""

    key: str
    proof: str


class Whoami(Message, frozen=True, tag="whoami"):
    """Whom the daemon takes the asker for. Changes nothing."""


class WhoamiView(Message, frozen=True, tag="whoami_view"):
    """The answer to `Whoami` and to `Prove`. `key` is "" for whoever is known by its uid; `may` names operations."""

    name: str
    roles: tuple[str, ...]
    uid: int
    key: str = ""
    may: tuple[str, ...] = ()


class Announce(Message, frozen=True, tag="announce"):
    """A root token was minted. Without this entry the token is refused: no authority without a record.

    `digest` is the SHA-256 of its signing input, so no token text travels."""

    jti: str
    digest: str
    issuer: str
    agent: str
    owner: str
    task: str
    session: str
    profile: str
    tools: tuple[str, ...]
    issued: int
    expires: int


class Revoke(Message, frozen=True, tag="revoke"):
    """Take back a token and what was derived from it, a task, all that an agent or owner was given so far, or all that
    anybody was; also running calls. `value` names it, "" for everything. With `until_released`, an agent, owner or
    everything is given nothing more until `Reopen`."""

    kind: Literal["token", "task", "agent", "owner", "everything"]
    value: str = ""
    why: str = ""
    until_released: bool = False


class Reopen(Message, frozen=True, tag="reopen"):
    """Release what was revoked until released: tokens announced from now on stand. What was revoked stays revoked.
    Answered by `Done`, or by `Waits`."""

    kind: Literal["agent", "owner", "everything"]
    value: str = ""
    why: str = ""


class ListTasks(Message, frozen=True, tag="list_tasks"):
    """Tasks that live, or all that are remembered."""

    all: bool = False


class ShowTask(Message, frozen=True, tag="show_task"):
    """One task and its calls that run."""

    task: str


class EndTask(Message, frozen=True, tag="end_task"):
    """End a task: cancel its calls, remove its sandbox."""

    task: str
    why: str = ""


class ReadWorkspace(Message, frozen=True, tag="read_workspace"):
    """What lies in a live task's workspace now, by names and digests. Changes nothing."""

    task: str


class WorkspaceView(Message, frozen=True, tag="workspace"):
    """The answer to `ReadWorkspace`: lines of a manifest (`runner/ledger/tree.py`), read by engine from the host."""

    task: str
    lines: bytes


class Prune(Message, frozen=True, tag="prune"):
    """Remove content of calls that ended and that no hold is on; each part that is not empty must fit. With `dry`, only
    say what would go. `before` is an RFC 3339 UTC time with microseconds, `larger` bytes of a piece, `raw` raw output
    alone."""

    why: str = ""
    before: str = ""
    larger: int = 0
    raw: bool = False
    tasks: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    dry: bool = False


class PrunedImage(msgspec.Struct, frozen=True):
    """The archive of an image that no kept call names. `image` is "" when nothing says which it was; `position` is its
    tombstone's, -1 when it would go."""

    image: str
    archive: str
    size: int
    position: int = -1


class Pruned(Message, frozen=True, tag="pruned"):
    """The answer to `Prune`: what went, or would. `position` is the tombstone's, -1 for none. `held` counts pieces that
    fitted and were spared by holds. `more` when the rest needs another request."""

    pieces: int
    size: int
    held: int
    position: int = -1
    more: bool = False
    images: tuple[PrunedImage, ...] = ()


class Hold(Message, frozen=True, tag="hold"):
    """Keep the content of the calls that fit, those to come too, until its release."""

    name: str
    why: str
    before: str = ""
    tasks: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()


class Release(Message, frozen=True, tag="release"):
    """End the holds of this name."""

    name: str
    why: str


class OpenRaw(Message, frozen=True, tag="open_raw"):
    """Open the raw output that is kept of a call. The entry that says so, and `why`, is on disk before the answer."""

    call: str
    why: str


class RawOpened(Message, frozen=True, tag="raw_opened"):
    """The answer to `OpenRaw`: it is recorded at `position`, and may be read by its `digest` now. `size` is of what is
    read, salt included; `stdout`, `stderr` and `result` are bytes of what is in it, `lost` what is not."""

    position: int
    outcome: int
    digest: str
    size: int
    recipients: tuple[str, ...]
    stdout: int = 0
    stderr: int = 0
    result: int = 0
    lost: int = 0


class ReadRaw(Message, frozen=True, tag="read_raw"):
    """The next piece of what this operator opened, encrypted as it is kept. Answered by `RawPiece`."""

    digest: str
    offset: int = 0


class RawPiece(Message, frozen=True, tag="raw_piece"):
    """Bytes from the asked offset on; empty at the end."""

    data: bytes


class Reload(Message, frozen=True, tag="reload"):
    """Read the configuration and the catalogue anew, as SIGHUP does. Answered by `Done`, or by `Waits`."""

    why: str = ""


class ListPending(Message, frozen=True, tag="list_pending"):
    """What waits for a second operator. Changes nothing."""


class Confirm(Message, frozen=True, tag="confirm"):
    """Be the second operator of what waits under `id`: it is carried out now."""

    id: str


class Withdraw(Message, frozen=True, tag="withdraw"):
    """What waits under `id` is wanted no more. Whoever asked for it may, and whoever has the role that the act needs:
    it leaves everything as it is."""

    id: str
    why: str = ""


class PendingView(Message, frozen=True, tag="pending_view"):
    """One act that waits. `subject` is the digest that a confirmation is bound to; `can` names who could give it."""

    id: str
    act: str
    subject: str
    operator: str
    asked: str
    expires: int
    before: str = ""
    after: str = ""
    changes: tuple[str, ...] = ()
    why: str = ""
    can: tuple[str, ...] = ()


class PendingActs(Message, frozen=True, tag="pending_acts"):
    """The answer to `ListPending`."""

    acts: tuple[PendingView, ...]


class Waits(Message, frozen=True, tag="waits"):
    """Recorded at `position` and not carried out: it waits for another operator."""

    position: int
    act: PendingView


class SetSecret(Message, frozen=True, tag="set_secret"):
    """Keep a secret: a value, or named fields; with `rotate` in place of the one that is there, else a new name."""

    name: str
    value: bytes = b""
    fields: dict[str, bytes] = {}
    rotate: bool = False
    why: str = ""

    def __repr__(self) -> str:
        return f"SetSecret(name={self.name!r}, rotate={self.rotate}, …)"


class RemoveSecret(Message, frozen=True, tag="remove_secret"):
    """Forget a secret. Leases that calls have of it end with those calls."""

    name: str
    why: str = ""


class ListSecrets(Message, frozen=True, tag="list_secrets"):
    """Which secrets are stored: names and versions, never values. Changes nothing."""


class SecretsView(Message, frozen=True, tag="secrets"):
    """The answer to `ListSecrets`."""

    secrets: tuple[SecretView, ...]


class ExplainEgress(Message, frozen=True, tag="explain_egress"):
    """What a call of this tool in a live task may reach now. Without `request`: by which allowlists, for whoever asks
    to judge by; with one: what the task's root token and the policies in force say of it too. Changes nothing."""

    task: str
    tool: str
    request: Requested | None = None


class EgressWord(Message, frozen=True):
    """What token or policy says. `asked` is false where it is not known."""

    asked: bool = True
    allowed: bool = False
    rules: tuple[str, ...] = ()
    reason: str = ""
    missing: str = ""


class EgressView(Message, frozen=True, tag="egress_view"):
    """The answer to `ExplainEgress`. `tools` are those of the task's profile that have a network."""

    task: str
    tool: str
    profile: str
    tools: tuple[str, ...]
    allowlists: tuple[Allowlist, ...] = ()
    secrets: tuple[SecretRef, ...] = ()
    token: EgressWord = EgressWord(asked=False)
    policy: EgressWord = EgressWord(asked=False)


class Status(Message, frozen=True, tag="status"):
    """How the daemon is."""


class TaskView(Message, frozen=True, tag="task"):
    """One task as an operator sees it."""

    task: str
    agent: str
    owner: str
    session: str
    profile: str
    state: str  # "live" | "ended"
    began: str
    ended: str = ""
    reason: str = ""
    sandbox: str = ""
    calls: int = 0
    running: tuple[str, ...] = ()  # "<call id> <tool>"


class Tasks(Message, frozen=True, tag="tasks"):
    """The answer to `ListTasks` and `ShowTask`."""

    tasks: tuple[TaskView, ...]


class StatusView(Message, frozen=True, tag="status_view"):
    """The answer to `Status`."""

    instance: str
    version: str
    audience: str
    pid: int
    started: str
    tasks: int
    running: int
    connections: int
    sandboxes: int
    ledger_size: int
    catalogue: str
    policy: str
    engine: bool
    egress: bool  # whether it serves; calls that have a network are refused while it does not
    broker: bool  # the same, and calls that need a credential
    alerts: int  # critical, since this gate started: `runner trace list --alerts`
    newest_alert: str = ""  # when, and of which call
    isolation: str = ""
    closed: tuple[str, ...] = ()  # what was revoked until released, "agent a", "everything"
    refusing: str = ""  # why no new call is taken, "" while they are


class Done(Message, frozen=True, tag="done"):
    """Carried out and recorded at `position`. `affected` counts calls that it stopped, `tokens` announced tokens that
    it revoked by name."""

    position: int
    affected: int = 0
    tokens: int = 0


class Refused(Message, frozen=True, tag="refused"):
    """Not carried out."""

    refusal: Refusal


FromOperator = (
    Hello
    | Prove
    | Whoami
    | Announce
    | Revoke
    | Reopen
    | ListTasks
    | ShowTask
    | EndTask
    | ReadWorkspace
    | Prune
    | Hold
    | Release
    | OpenRaw
    | ReadRaw
    | Reload
    | ListPending
    | Confirm
    | Withdraw
    | SetSecret
    | RemoveSecret
    | ListSecrets
    | ExplainEgress
    | Status
)
ToOperator = (
    Challenge
    | WhoamiView
    | Tasks
    | StatusView
    | WorkspaceView
    | Pruned
    | PendingActs
    | Waits
    | SecretsView
    | EgressView
    | RawOpened
    | RawPiece
    | Done
    | Refused
)
