"""Messages between parent and its children: the catalogue in two phases (offer, commit), start and stop."""

from __future__ import annotations

from typing import Literal

import msgspec

from runner.errors import Refusal


class Message(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, tag_field="type"
):
    """Base of every message."""


class Bundle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bytes of one whole catalogue, as parent read them; gate and engine compile their own copies.

    Keys are paths relative to each folder, shown in errors; `digest` covers all of them."""

    config: bytes
    config_path: str
    profiles: dict[str, bytes]  # "default.toml", "seccomp/default.json"
    tools: dict[str, bytes]  # "shell_run/tool.toml"
    policies: dict[str, bytes]  # "base.cedar"
    digest: str
    keys: dict[str, bytes] = {}  # public keys of issuers and of who signs policies, by the path in the config


class Offer(Message, frozen=True, tag="offer"):
    """Compile this catalogue and say whether it is whole. Nothing changes yet."""

    generation: int
    bundle: Bundle
    asked: int = 0  # the number of the `Reread` that it follows; 0 at start and by a signal


class Compiled(Message, frozen=True, tag="compiled"):
    """The offered catalogue compiles here."""

    generation: int


class Rejected(Message, frozen=True, tag="rejected"):
    """The offered catalogue does not compile here; the old one stays."""

    generation: int
    refusal: Refusal


class Commit(Message, frozen=True, tag="commit"):
    """Every process compiled it: use it from now on."""

    generation: int


class Reread(Message, frozen=True, tag="reread"):
    """From gate: an operator wants everything read anew, as by SIGHUP. Answered by `Swapped` of the same number."""

    asked: int


class Swapped(Message, frozen=True, tag="swapped"):
    """What became of a `Reread`: committed, or why not. Of a signal (`asked` is 0) it says only why not. `offered` is
    the digest of what was read, "" when it could not be read whole."""

    asked: int
    refusal: Refusal | None = None
    offered: str = ""


class Ready(Message, frozen=True, tag="ready"):
    """The process serves. `detail` is for the log."""

    detail: str = ""


class Fatal(Message, frozen=True, tag="fatal"):
    """The process cannot go on, and why. It exits next."""

    refusal: Refusal


Name = Literal["engine", "egress", "broker"]  # what is started again while the rest serves


class Part(Message, frozen=True, tag="part"):
    """Carries a descriptor: the socket to engine, egress or broker, after it was started again. `run` counts its
    processes: that of the start is 0."""

    name: Name
    run: int


class GivenUp(Message, frozen=True, tag="given_up"):
    """From gate: it speaks to this process no more, since that is stuck, talks nonsense or has ended. It is killed if
    it still runs, and the part started again."""

    name: Literal["egress", "broker"]
    run: int


class Dials(Message, frozen=True, tag="dials"):
    """Carries a descriptor: the listener of broker's own network, from broker to parent and from there to egress."""


class Stop(Message, frozen=True, tag="stop"):
    """Drain for at most this long, then end."""

    drain_ms: int
    reason: str


class Stopped(Message, frozen=True, tag="stopped"):
    """Drained. `clean` when nothing was interrupted."""

    clean: bool


FromParent = Offer | Commit | Part | Dials | Stop | Swapped
FromChild = Compiled | Rejected | Ready | Fatal | Stopped | Reread | Dials | GivenUp
