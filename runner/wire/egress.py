"""Messages between gate and egress: a listener and what may pass it, each request's question, each request's end.

Gate opens a listener for one call and closes it with the call; the listener, and no byte that comes through it, tells
egress which call asks. Egress judges a request by the call's allowlists, then asks gate, which knows token and policy
and writes the entry; only then does it dial. What egress counts has the bounds of an entry: a broken one is found out
when its message is decoded, and not when the ledger refuses what would have been written of it.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from runner.errors import Refusal, RunnerError
from runner.model import Allowlist, Count

BROKER = "daemon:broker"  # the call that stands for the broker's own dials


class Message(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="type"
):
    """Base of every message."""


class Injection(Message, frozen=True):
    """A credential of a live call, and where alone it may go: these rules of the tool's allowlist, these places."""

    name: str
    placeholder: str  # what the sandbox holds instead: unique to the call, worthless elsewhere
    value: bytes
    rules: tuple[str, ...]
    places: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Injection(name={self.name!r}, …)"


class Open(Message, frozen=True, tag="open"):
    """Serve this listener, whose descriptor comes with the message, for one call. Answered by `Done`."""

    number: int
    call: str
    sandbox: str
    allowlists: tuple[Allowlist, ...]
    injections: tuple[Injection, ...] = ()
    canary: str = ""  # a credential that nobody was given: wherever it appears, something reads what it should not
    blind: bool = False  # gate is shown nothing of its requests: the daemon's own, whose credentials are its own


class Close(Message, frozen=True, tag="close"):
    """The call is over: its listener, connections and credentials are gone when `Closed` comes back."""

    number: int
    call: str


class Trust(Message, frozen=True, tag="trust"):
    """Say which certificate authorities a sandbox should trust. Answered by `Trusted`."""

    number: int
    sandbox: str


class Forget(Message, frozen=True, tag="forget"):
    """The sandbox is gone: so is its certificate authority. Not answered."""

    sandbox: str


class Answer(Message, frozen=True, tag="answer"):
    """What token and policy say of an `Ask` or a `Look`: the entry is written. Or whether more is wanted after a
    `Keep`."""

    number: int
    allowed: bool
    rule: str = ""
    reason: str = ""
    next_step: str = ""


# What can be read of a request: nothing but its destination, its head, or (inspected) all of it.
Visibility = Literal["opaque", "head", "full"]


class Requested(Message, frozen=True):
    """One request as the authoriser sees it; every text is canonical and printable ASCII."""

    id: Count  # counts the requests of a call, from 1
    protocol: Literal["https", "http", "tcp"]
    host: str
    port: Count
    visibility: Visibility
    method: str = ""  # "" where it cannot be read
    path: str = ""  # without the query
    query: bool = False  # whether there is one
    rules: tuple[str, ...] = ()  # `part/name` of the rules that allow it, one of each part
    upgrade: str = ""  # websocket, h2c, … as asked for
    record: Literal["path", "digest"] = "path"


class Ask(Message, frozen=True, tag="ask"):
    """The allowlists allow this; do token and policy? Answered by `Answer`.

    Both ends number requests on one channel: egress counts downwards from -1, so that none of its questions is taken
    for the answer to one of gate's."""

    number: int
    call: str
    request: Requested
    head: bytes = b""  # its line and header fields as the sandbox sent them; b"" where they cannot be read
    body: bytes = b""  # the beginning of its body
    last: bool = True  # there is no more of it than that


class Look(Message, frozen=True, tag="look"):
    """The next piece of an allowed request's body, none of which goes on before its `Answer` allows that."""

    number: int
    call: str
    id: Count
    data: bytes
    last: bool


class Keep(Message, frozen=True, tag="keep"):
    """The next piece of a response that a rule says to keep: its head, then its body, as the sandbox gets them. The
    answer is an `Answer`: `allowed` while more of it is wanted. `Ended` says whether it was whole."""

    number: int
    call: str
    id: Count
    data: bytes


class Refused(Message, frozen=True, tag="refused"):
    """Egress itself refused this, or what came was no request: nothing was dialled. At most 128 of a call are told;
    `Closed` counts all. Addresses are known after gate's answer only: then an `Ended` of the same id follows."""

    call: str
    request: Requested
    code: str
    part: str  # which part decides: "profile default", "tool git_fetch", "address", "syntax", "budget", "injection"
    reason: str
    missing: str = ""  # the smallest rule that would have allowed it, as TOML; "" where none may


class Ended(Message, frozen=True, tag="ended"):
    """An allowed request is over, or its call was while gate was being asked (code `interrupted`)."""

    call: str
    id: Count
    address: str = ""  # the address dialled, "" when none was
    status: Count = 0  # of the response; 0 where it cannot be read or none came
    up: Count = 0  # bytes from the sandbox to the destination, heads included
    down: Count = 0
    duration_us: Count = 0
    code: str = ""  # why it ended early: a refusal's code; "" when it ended by itself
    reason: str = ""
    secrets: tuple[str, ...] = ()  # names of the credentials that went with it
    whole: bool = False  # the whole response was handed over by `Keep`
    unkept: str = ""  # why none of it was, although a rule says to keep it


class Leaked(Message, frozen=True, tag="leaked"):
    """A canary, or a placeholder out of its place, appeared in this request: of severity critical. Or a response
    repeated a credential (`where` is "response"), and was cut before it. At most 16 of a call are told."""

    call: str
    id: Count
    name: str  # of the secret, or "canary"
    where: str


class Done(Message, frozen=True, tag="done"):
    """The request is carried out."""

    number: int


class Closed(Message, frozen=True, tag="closed"):
    """What went through the call's listener."""

    number: int
    requests: Count = 0
    refused: Count = 0
    up: Count = 0
    down: Count = 0


class Trusted(Message, frozen=True, tag="trusted"):
    """A PEM bundle: the authorities that egress itself trusts, and the sandbox's own."""

    number: int
    bundle: bytes


class Failed(Message, frozen=True, tag="failed"):
    """The request failed; nothing of it is left."""

    number: int
    refusal: Refusal


FromGate = Open | Close | Trust | Forget | Answer
FromEgress = Done | Closed | Trusted | Failed | Ask | Look | Keep | Refused | Ended | Leaked


class Requester(Protocol):
    """What a typed caller needs of a channel: send a numbered request, with a descriptor, and wait for its answer."""

    def number(self) -> int:
        """A fresh request number."""

    async def request(self, message: Message, descriptor: int | None = None) -> tuple[FromEgress, int | None]:
        """Send; return the answer with that number."""

    def post(self, message: Message, descriptor: int | None = None) -> None:
        """Send what has no answer."""


class EgressCaller:
    """Gate's typed view of egress. Each method raises `RunnerError` with egress's own refusal."""

    def __init__(self, channel: Requester) -> None:
        self._channel = channel

    async def open(
        self,
        listener: int,
        *,
        call: str,
        sandbox: str,
        allowlists: tuple[Allowlist, ...],
        injections: tuple[Injection, ...] = (),
        canary: str = "",
    ) -> None:
        """Serve `listener`, a descriptor that is closed here, for this call until it is closed."""
        await self._ask(
            Open(
                number=self._channel.number(),
                call=call,
                sandbox=sandbox,
                allowlists=allowlists,
                injections=injections,
                canary=canary,
            ),
            listener,
        )

    async def close(self, call: str) -> Closed:
        """Nothing of the call passes any more when this returns."""
        answer = await self._ask(Close(number=self._channel.number(), call=call))
        assert isinstance(answer, Closed)
        return answer

    async def trust(self, sandbox: str) -> bytes:
        """The PEM bundle for a sandbox."""
        answer = await self._ask(Trust(number=self._channel.number(), sandbox=sandbox))
        assert isinstance(answer, Trusted)
        return answer.bundle

    def forget(self, sandbox: str) -> None:
        """Drop the sandbox's certificate authority."""
        self._channel.post(Forget(sandbox=sandbox))

    async def _ask(self, message: Message, descriptor: int | None = None) -> FromEgress:
        answer, _ = await self._channel.request(message, descriptor)
        if isinstance(answer, Failed):
            raise RunnerError(answer.refusal)
        return answer
