"""Authority on its way to an agent: mint a root token, announce it to the daemon.

Also how every command speaks to the daemon's operator socket: one frame out, one frame back.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
import uuid
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from runner.cli import keys
from runner.config import Config, Limits
from runner.errors import RunnerError, refuse
from runner.model import Value
from runner.token import strict
from runner.token.issue import mint_root
from runner.token.keys import PublicKey, SigningKey, read_private
from runner.token.operator import sign_operator
from runner.wire import admin, frame

ADMIN_SOCKET = Path(Config().run) / "admin.sock"
_MAX_ANSWER = 17 << 20  # the longest manifest of a workspace; every task this daemon remembers is far less
_PATIENCE_S = 30.0

# `--socket` of every command that speaks to the daemon. Whether it can be opened is `ask`'s to say: a socket that is
# not readable for this user is no wrong usage, and not every one that is readable can be connected to.
Socket = Annotated[
    Path,
    typer.Option(
        "--socket", metavar="PATH", help="The daemon's admin.sock.", envvar="RUNNER_ADMIN_SOCKET", readable=False
    ),
]

# The file with the key that proves who is asking; None leaves it to the uid. Set by `runner --operator-key`.
operator_key: ContextVar[Path | None] = ContextVar("operator_key", default=None)


def ask(path: Path, message: admin.FromOperator, patience_s: float = _PATIENCE_S) -> admin.ToOperator:
    """Send one message to the daemon at `path`, as the operator whose key `operator_key` names, and return its answer,
    waited for `patience_s` seconds at most.

    Raises `RunnerError`: what the daemon refused; `unavailable` when no daemon answers there, and nothing was asked;
    `interrupted` when its answer did not come, and the act may have been carried out."""
    chosen = operator_key.get()
    key = read_private(keys.read_secret(chosen), str(chosen))[0] if chosen else None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(patience_s)
        try:
            connection.connect(str(path))
            if key is not None:
                _prove(connection, key, path)
        except OSError as error:
            raise _nobody(path, error) from None
        try:
            return _answer(connection, message, path)
        except OSError as error:
            how = f"none came within {patience_s:.0f} s" if isinstance(error, TimeoutError) else error.strerror or error
            raise refuse(
                "interrupted",
                f"the daemon took the request and gave no answer: {how}",
                field=str(path),
                next_step="it may have been carried out: `runner admin log` tells, before you ask again",
            ) from None


def _nobody(path: Path, error: OSError) -> RunnerError:
    """Why nobody could be asked at `path`, and what helps."""
    where = "name its admin.sock with --socket or RUNNER_ADMIN_SOCKET"
    if isinstance(error, PermissionError):
        return refuse(
            "unavailable",
            f"uid {os.geteuid()} is not allowed to open {path}",
            next_step="run it as root, or as a member of the group that operators_group in [users] names; "
            "`runner doctor --config FILE` tells which operators can reach it",
        )
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return refuse(
            "unavailable",
            f"no daemon runs here: there is no {path}",
            next_step=f"start it (`systemctl start toolrunner`, or `runner serve`), or {where}",
        )
    if isinstance(error, ConnectionRefusedError):
        reason = "nobody listens at" if path.is_socket() else "this is no socket:"
        return refuse(
            "unavailable", f"{reason} {path}", next_step=f"see whether the daemon still runs, and its log; or {where}"
        )
    return refuse("unavailable", f"no daemon answers at {path}: {error.strerror or error}", next_step=where)


def _answer(connection: socket.socket, message: admin.FromOperator, path: Path) -> admin.ToOperator:
    connection.sendall(frame.encode(message))
    decoder: frame.Decoder[admin.ToOperator] = frame.Decoder(admin.ToOperator, elements=1 << 20, depth=8)
    try:
        answer = decoder.decode(_receive(connection))
    except RunnerError as error:
        raise refuse(
            "protocol",
            f"what answers there does not speak to operators: {error.refused.reason}",
            field=str(path),
            next_step="name the daemon's admin.sock, not its agent.sock; use the `runner` that came with the daemon",
        ) from None
    if isinstance(answer, admin.Refused):
        raise RunnerError(answer.refusal)
    return answer


def _prove(connection: socket.socket, key: SigningKey, path: Path) -> None:
    """Be the operator of this key on this connection. Only where root alone can put a socket: whoever else listened
    there could hand the proof on to the daemon."""
    folder = path.absolute().parent.stat()
    if folder.st_uid != 0 or folder.st_mode & 0o022:
        raise refuse("host", "others than root may put a socket there", field=str(path), next_step="see whose it is")
    challenge = _answer(connection, admin.Hello(), path)
    if not isinstance(challenge, admin.Challenge):
        raise refuse("protocol", "the daemon gave no challenge")
    proof = sign_operator(key, audience=challenge.audience, nonce=challenge.nonce)
    _answer(connection, admin.Prove(key=key.public.thumbprint, proof=proof), path)


def _receive(connection: socket.socket) -> bytes:
    reader = frame.FrameReader(_MAX_ANSWER)
    while data := connection.recv(1 << 16):
        for body in reader.feed(data):
            return body
    raise ConnectionError("it hung up without an answer")


def announce(path: Path, message: admin.Announce) -> admin.Done:
    """Have a minted root token recorded; until then the daemon refuses it. Raises `RunnerError`, as `ask`."""
    answer = ask(path, message)
    if not isinstance(answer, admin.Done):
        raise refuse("protocol", "the daemon gave another answer than an acknowledgement")
    return answer


class Wish(Value, frozen=True):
    """What a root token shall say. `tools` maps tool ids to constraint maps; `depth` is how often it may be derived."""

    agent: str
    owner: str
    task: str
    session: str
    profile: str
    tools: dict[str, dict[str, Any]]
    ttl_s: int
    depth: int = 0
    audience: str = ""


def mint(wish: Wish, key: SigningKey, issuer: str, holder: PublicKey) -> tuple[str, admin.Announce]:
    """A root token from now on, and the message that announces it. Raises `RunnerError` (token)."""
    now = int(time.time())
    jti = fresh_id()
    token = mint_root(
        issuer=issuer,
        key=key,
        holder=holder,
        agent=wish.agent,
        owner=wish.owner,
        task=wish.task,
        session=wish.session,
        profile=wish.profile,
        tools=wish.tools,
        now=now,
        expires=now + wish.ttl_s,
        jti=jti,
        depth=wish.depth,
        audience=wish.audience,
    )
    message = admin.Announce(
        jti=jti,
        digest=strict.compact(token, strict.TOKEN_TYPE, Limits().token_bytes, "minted").digest,
        issuer=issuer,
        agent=wish.agent,
        owner=wish.owner,
        task=wish.task,
        session=wish.session,
        profile=wish.profile,
        tools=tuple(sorted(wish.tools)),
        issued=now,
        expires=now + wish.ttl_s,
    )
    return token, message


def fresh_id() -> str:
    """A UUIDv7 (RFC 9562): ordered by time, 74 random bits."""
    value = int(time.time() * 1000) << 80 | 7 << 76 | secrets.randbits(12) << 64 | 2 << 62 | secrets.randbits(62)
    return str(uuid.UUID(int=value))
