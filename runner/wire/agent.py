"""Messages between an agent and gate on agent.sock. `README.md` beside this file tells how to write a client.

The daemon speaks first (`Challenge`), the client proves possession of the leaf key over that nonce (`Hello`),
and from then on the identity of the connection is fixed. Numbers in `number` are chosen by the client.
"""

from __future__ import annotations

from typing import Any

import msgspec

from runner.errors import Refusal
from runner.model import Marked, Outcome


class Message(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="type"
):
    """Base of every message: a map with a `type`, unknown keys refused."""


# --- daemon to client, once --------------------------------------------------------------------------


class Challenge(Message, frozen=True, tag="challenge"):
    """First frame on a connection. Proofs name `audience` in `aat_aud` and carry `nonce`; `time` is the daemon's."""

    versions: tuple[int, ...]
    nonce: str
    audience: str
    time: int


# --- client to daemon --------------------------------------------------------------------------------


class SessionFacts(Message, frozen=True, tag="session"):
    """What the client says about itself. Claims, recorded as such; policy may read `original_request`."""

    original_request: str = ""
    model: str = ""
    model_version: str = ""
    client: str = ""


class Hello(Message, frozen=True, tag="hello"):
    """Opens the session: the token chain, root to leaf, and a proof (typ `runner-hello+jwt`) over the nonce."""

    version: int
    chain: tuple[str, ...]
    proof: str
    session: SessionFacts = SessionFacts()

    def __repr__(self) -> str:
        return f"Hello(version={self.version}, {len(self.chain)} tokens, …)"  # never token text


class Call(Message, frozen=True, tag="call"):
    """A tool call. Tool and arguments are in `proof` (typ `aat-pop+jwt`): `aat_tool` and `hta`."""

    number: int
    proof: str
    stdin: bool = False
    window: int = 0
    deadline_ms: int = 0
    traceparent: str = ""
    intent: str = ""
    because: tuple[str, ...] = ()
    retry_of: str = ""
    idempotency_key: str = ""
    detach: bool = False
    sync: bool = False

    def __repr__(self) -> str:
        return f"Call(number={self.number}, …)"  # never the proof


class Stdin(Message, frozen=True, tag="stdin"):
    """Bytes for the tool's standard input, within the credit given by `StdinCredit`. `eof` closes it."""

    number: int
    data: bytes = b""
    eof: bool = False


class Credit(Message, frozen=True, tag="credit"):
    """The client can take this many more output bytes of that call."""

    number: int
    bytes: int


class Cancel(Message, frozen=True, tag="cancel"):
    """End the call; its whole process tree is killed and the outcome is `cancelled`."""

    number: int


class ListTools(Message, frozen=True, tag="list_tools"):
    """Ask what this token may call."""

    number: int


class Attach(Message, frozen=True, tag="attach"):
    """Follow a detached call of this task from output byte `stdout`/`stderr` on."""

    number: int
    call: str
    stdout: int = 0
    stderr: int = 0
    window: int = 0


class GetResult(Message, frozen=True, tag="get_result"):
    """Ask for the result of a detached call of this task, without its output."""

    number: int
    call: str


class EndTask(Message, frozen=True, tag="end_task"):
    """End the task: its calls are cancelled and its sandbox removed. Only the holder of the root token may."""

    number: int


class Ping(Message, frozen=True, tag="ping"):
    """Are you there? Either side; answered by `Pong`."""

    token: int = 0


class Pong(Message, frozen=True, tag="pong"):
    """I am. `token` is the ping's."""

    token: int = 0


class Bye(Message, frozen=True, tag="bye"):
    """The sender will close; not an error."""

    reason: str = ""


# --- daemon to client --------------------------------------------------------------------------------


class Welcome(Message, frozen=True, tag="welcome"):
    """The session is open. `call_window` is the largest `window` that has an effect."""

    session: str
    task: str
    agent: str
    tools_digest: str
    max_frame: int
    call_window: int
    calls: int
    heartbeat_ms: int
    workspace_lost: bool = False  # the task's earlier sandbox is gone: it goes on in an empty workspace


class Accepted(Message, frozen=True, tag="accepted"):
    """The call is decided and recorded, and its process will start. `call` is the daemon's id for it."""

    number: int
    call: str
    replayed: bool = False  # an idempotency key matched: this is the earlier call


class Output(Message, frozen=True, tag="output"):
    """A filtered piece of output. Provisional until `Result`. `offset` counts the stream's bytes before it.

    Where `encoding` is "base64", so is all that follows on this stream: its pieces joined decode to what the tool wrote
    (redacted). Everything before it is UTF-8 that no terminal acts on."""

    number: int
    stream: str
    offset: int
    data: bytes
    encoding: str = ""


class StdinCredit(Message, frozen=True, tag="stdin_credit"):
    """The client may send this many more stdin bytes for that call."""

    number: int
    bytes: int


class Result(Message, frozen=True, kw_only=True, tag="result"):
    """The acknowledgement of a call: follows the sealed receipt. `value` is a python tool's structured result.

    `filtered` says how often each rule found something in what the call gave back, and `labels` what it was: also where
    nothing was changed for it. An issued secret is `secret:NAME`. With the label `untrusted`, `sources` says who has a
    part in it that nobody vouches for; with `injected`, `marked` says which parts of it speak to a model."""

    number: int
    call: str
    outcome: Outcome
    receipt: str
    position: int
    durable: bool
    value: Any = None
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    filtered: dict[str, int] = {}
    labels: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    marked: tuple[Marked, ...] = ()


class Refused(Message, frozen=True, tag="refused"):
    """The request was refused. `call` is set when a call entry was written for it."""

    number: int
    refusal: Refusal
    call: str = ""


class ToolSpec(Message, frozen=True, tag="tool"):
    """One tool as this token sees it: schemas narrowed by the token's constraints."""

    name: str
    description: str
    parameters: dict[str, Any]
    result: dict[str, Any]
    consequence: str
    digest: str
    stdin: bool = False


class Tools(Message, frozen=True, tag="tools"):
    """The answer to `ListTools`."""

    number: int
    digest: str
    tools: tuple[ToolSpec, ...]


class ToolsChanged(Message, frozen=True, tag="tools_changed"):
    """The catalogue was swapped; ask again."""

    digest: str


class Durable(Message, frozen=True, tag="durable"):
    """Every entry up to and including `position` is on disk."""

    position: int


class TaskEnded(Message, frozen=True, tag="task_ended"):
    """The task is over; the connection closes next."""

    number: int = 0
    reason: str = ""


class Closing(Message, frozen=True, tag="closing"):
    """The daemon closes the connection because of this."""

    refusal: Refusal


FromClient = Hello | Call | Stdin | Credit | Cancel | ListTools | Attach | GetResult | EndTask | Ping | Pong | Bye
FromDaemon = (
    Challenge
    | Welcome
    | Accepted
    | Output
    | StdinCredit
    | Result
    | Refused
    | Tools
    | ToolsChanged
    | Durable
    | TaskEnded
    | Closing
    | Ping
    | Pong
    | Bye
)
