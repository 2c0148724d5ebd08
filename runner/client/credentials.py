"""Where the client finds its credentials, and what it proves with them.

The descriptor is read with pread from offset 0 and left as found, so that every child of an agent can read it too.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
import time
import uuid
from typing import Any, TypedDict

from runner.client.errors import raised, refused
from runner.config import Config
from runner.errors import RunnerError
from runner.token import credentials as handed
from runner.token import proof
from runner.token.attenuate import Wish
from runner.token.attenuate import attenuate as narrower
from runner.token.keys import SigningKey, generate
from runner.wire.agent import Challenge

SOCKET_VARIABLE = "RUNNER_SOCKET"
DEFAULT_SOCKET = f"{Config().run}/agent.sock"
_STEP = "start the agent with `runner exec … -- COMMAND`"


def find_credentials(data: bytes | handed.Credentials | None = None) -> handed.Credentials:
    """The credentials in `data`, else those on the descriptor that RUNNER_CREDENTIALS_FD names.

    Raises `Unauthenticated` saying what is missing; never quotes a secret."""
    if isinstance(data, handed.Credentials):
        return data
    try:
        return handed.parse(_inherited() if data is None else data)
    except RunnerError as error:
        raise raised(error.refused) from None


def _inherited() -> bytes:
    named = os.environ.get(handed.DESCRIPTOR_VARIABLE, "")
    if not named:
        raise refused("token", f"there are no credentials: {handed.DESCRIPTOR_VARIABLE} is not set", next_step=_STEP)
    if not (named.isascii() and named.isdigit()):
        raise refused("token", f"{handed.DESCRIPTOR_VARIABLE} is not a descriptor's number", next_step=_STEP)
    pieces: list[bytes] = []
    held = 0
    try:
        while held <= handed.MAX_CREDENTIALS and (piece := os.pread(int(named), 1 << 16, held)):
            pieces.append(piece)
            held += len(piece)
    except (OSError, OverflowError) as error:
        reason = f"descriptor {named[:10]} of {handed.DESCRIPTOR_VARIABLE} cannot be read: {error}"
        raise refused("token", reason, next_step="pass it on to children (close_fds=False, or pass_fds)") from None
    return b"".join(pieces)


def find_socket(credentials: handed.Credentials) -> str:
    """The daemon's socket: RUNNER_SOCKET, else the credentials', else the daemon's usual place."""
    return os.environ.get(SOCKET_VARIABLE) or credentials.socket or DEFAULT_SOCKET


def attenuate(
    tools: Wish,
    *,
    agent: str = "",
    ttl_s: int | None = None,
    depth: int = 0,
    audience: str = "",
    credentials: bytes | handed.Credentials | None = None,
    now: float | None = None,
) -> handed.Credentials:
    """Credentials for a sub-agent, made here and now without the daemon: a fresh key, and a token that grants at most
    what ours does. Give them to `connect`, or to a process with `descriptor`.

    `tools` names tools, or maps them to constraints on arguments; what is not named stays as narrow as ours.
    `ttl_s` is how many seconds it is good for (by default as long as ours), `depth` how often it may derive again in a
    row, `agent` the name it goes by in the record. `credentials` are ours, by default those we were started with;
    `now` is epoch seconds. Raises `Unauthenticated` naming what would be wider than ours, and what is allowed."""
    held = find_credentials(credentials)
    try:
        return narrower(
            held,
            tools,
            holder=SigningKey(generate()),
            jti=str(uuid.uuid4()),
            now=int(time.time() if now is None else now),
            agent=agent,
            ttl_s=ttl_s,
            depth=depth,
            audience=audience,
        )
    except RunnerError as error:
        raise raised(error.refused) from None


def descriptor(credentials: handed.Credentials) -> int:
    """An inheritable descriptor of sealed memory that holds the credentials, at offset 0.

    Its number goes into the sub-agent's environment as RUNNER_CREDENTIALS_FD, itself into `pass_fds`; close it after
    the spawn."""
    number = os.memfd_create("runner-credentials", os.MFD_ALLOW_SEALING)
    try:
        with open(number, "wb", closefd=False) as file:
            file.write(handed.encode(credentials))
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(number, fcntl.F_ADD_SEALS, seals)
        os.lseek(number, 0, os.SEEK_SET)
        os.set_inheritable(number, True)
    except BaseException:
        os.close(number)
        raise
    return number


class Narrower(TypedDict, total=False):
    """What `attenuate` takes beside the tools."""

    agent: str
    ttl_s: int | None
    depth: int
    audience: str


class Identity:
    """One connection's identity: signs its hello and each call over the daemon's nonce, by the daemon's clock."""

    def __init__(self, credentials: handed.Credentials) -> None:
        self.credentials = credentials
        self.chain = credentials.chain
        self._leaf = credentials.leaf
        self._key = credentials.signing_key()
        self._signer: proof.CallSigner | None = None
        self._ahead = 0.0  # seconds that the daemon's clock is ahead of ours
        self._name = secrets.token_urlsafe(12)  # of this connection; with a count, each proof's own id
        self._count = itertools.count(1)

    @property
    def challenged(self) -> bool:
        """Whether the daemon has spoken."""
        return self._signer is not None

    def prove_hello(self, challenge: Challenge) -> str:
        """The proof for the hello. From here on time is the daemon's."""
        self._ahead = challenge.time - _elapsed()
        audience, nonce = challenge.audience, challenge.nonce
        self._signer = proof.CallSigner(self._key, self._leaf, audience=audience, nonce=nonce)
        return proof.sign_hello(
            self._key, self._leaf, audience=audience, nonce=nonce, now=self.now(), jti=f"{self._name}.0"
        )

    def prove_call(self, tool: str, arguments: dict[str, Any]) -> str:
        """The proof for one call. Raises `InvalidArguments` when an argument has no JSON form."""
        assert self._signer is not None
        try:
            return self._signer.sign(tool, arguments, now=self.now(), jti=f"{self._name}.{next(self._count)}")
        except RunnerError as error:
            raise raised(error.refused) from None

    def now(self) -> float:
        """The daemon's clock: what it said, and what has passed since. A step of the local clock changes nothing."""
        return self._ahead + _elapsed()


def _elapsed() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # goes on while the machine sleeps, as the daemon's clock does
