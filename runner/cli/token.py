"""`runner token`: mint, attenuate, inspect, revoke and release.

Token text comes from a file or stdin, and goes to a 0600 file or a pipe."""

from __future__ import annotations

import json as jsonlib
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from runner.cli import attenuate, credentials, execute, keys
from runner.cli.credentials import Socket
from runner.config import Limits
from runner.errors import refuse
from runner.token import credentials as handed
from runner.token.claims import verify_tokens
from runner.token.keys import SigningKey, generate, private_file
from runner.token.narrow import describe, shown
from runner.token.payload import DETAILS_TYPE, PRIVATE_CLAIM
from runner.token.strict import TOKEN_TYPE, NotAccepted, compact, parse_json
from runner.wire import admin

_MAX_INPUT = 512 << 10

app = typer.Typer(help="Capability tokens: what an agent may do, for whom, and until when.", no_args_is_help=True)

app.command("attenuate", epilog=attenuate.EPILOG)(attenuate.command)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(
    epilog="Example: runner token mint --agent reader --owner ann --task t-42 --tool fs_list "
    """--tool 'fs_read:{"path":{"constraint_type":"path_containment","root":"/workspace/src"}}' """
    "--ttl 1h --key issuer.key --holder-key agent.key --out agent.token"
)
def mint(
    agent: Annotated[str, typer.Option(help="The agent's name.")],
    owner: Annotated[str, typer.Option(help="On whose behalf.")],
    task: Annotated[str, typer.Option(help="The task; its sandbox lives as long as it does.")],
    tool: Annotated[list[str], typer.Option(help="NAME, or NAME:{constraint map as JSON}; also egress. Repeatable.")],
    key: Annotated[
        Path | None,
        typer.Option(help="The issuer's private key; issuer.key in $CREDENTIALS_DIRECTORY, or here, by default."),
    ] = None,
    session: Annotated[str, typer.Option(help="The session; a fresh id by default.")] = "",
    profile: Annotated[str, typer.Option(help="The task profile.")] = "default",
    ttl: Annotated[str, typer.Option(help="How long it is good for: 30s, 15m, 1h.")] = "1h",
    depth: Annotated[int, typer.Option(help="How many times it may be derived from, in a row.", min=0)] = 0,
    audience: Annotated[str, typer.Option(help="Bind it to one daemon's audience.")] = "",
    holder: Annotated[Path | None, typer.Option(help="The agent's public key (JWK).")] = None,
    holder_key: Annotated[Path | None, typer.Option(help="Or: write a fresh private key for the agent here.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the token here (0600); else to stdout, if a pipe.")] = None,
    socket: Socket = credentials.ADMIN_SOCKET,
    json: Json = False,
) -> None:
    """Mint a root token and announce it to the daemon, which refuses tokens it was not told of."""
    if (holder is None) == (holder_key is None):
        raise typer.BadParameter("give one of --holder and --holder-key", param_hint="--holder")
    if out is None and (json or sys.stdout.isatty()):
        raise typer.BadParameter(
            "a token is not shown on a terminal or inside JSON: add --out FILE", param_hint="--out"
        )
    wish = credentials.Wish(
        agent=agent,
        owner=owner,
        task=task,
        session=session or credentials.fresh_id(),
        profile=profile,
        tools=attenuate.parse_tools(tool),
        ttl_s=execute.seconds(ttl),
        depth=depth,
        audience=audience,
    )
    signing_key, issuer = keys.load_issuer(key or keys.usual_key())
    fresh = SigningKey(generate())
    public = keys.load_public(holder)[0] if holder else fresh.public
    token, message = credentials.mint(wish, signing_key, issuer, public)
    done = _deliver(token, message, socket, out, fresh if holder_key else None, holder_key)
    facts = {
        "jti": message.jti,
        "digest": message.digest,
        "task": task,
        "session": wish.session,
        "expires": keys.when(message.expires),
        "holder": public.thumbprint,
        "position": done.position,
        "token": str(out) if out else "stdout",
    }
    keys.print_facts(facts, json=json, to_stderr=out is None)


def _deliver(
    token: str,
    message: admin.Announce,
    socket: Path,
    out: Path | None,
    fresh: SigningKey | None,
    holder_key: Path | None,
) -> admin.Done:
    """Files first, then the announcement, then stdout: a token that was not recorded is left nowhere."""
    written: list[Path] = []
    try:
        for path, data in (
            (holder_key, private_file(fresh) if fresh else b""),
            (out, token.encode() + b"\n"),
        ):
            if path is not None:
                keys.write_new(path, data)
                written.append(path)
        done = credentials.announce(socket, message)
    except BaseException:
        for path in written:
            path.unlink()
        raise
    if out is None:
        sys.stdout.write(token + "\n")
    return done


@app.command(epilog="Example: runner token inspect agent.token --public-key issuer.pub")
def inspect(
    file: Annotated[Path, typer.Argument(help="A token, a chain from root to leaf, or credentials; - for stdin.")],
    public_key: Annotated[Path | None, typer.Option(help="Verify it under this issuer's key.")] = None,
    audience: Annotated[str, typer.Option(help="The daemon's audience, if the token names one.")] = "",
    json: Json = False,
) -> None:
    """Show what a token says, never its text. Without --public-key nothing of it is proven."""
    chain = read_chain(file)
    claims = [_decoded(text, f"{file}, token {number}") for number, text in enumerate(chain)]
    failed = None
    if public_key is not None:
        anchors, issuer = keys.load_anchors(public_key)
        try:
            verify_tokens(chain, {issuer: anchors}, time.time(), audience, Limits())
        except NotAccepted as error:
            failed = error
    verdict = "not verified" if public_key is None else f"does not verify: {failed}" if failed else "verified"
    if json:
        print(jsonlib.dumps({"verified": bool(public_key and not failed), "verdict": verdict, "tokens": claims}))
    else:
        for position, one in enumerate(claims):
            _print_token(position, one)
        print(verdict)
    if failed is not None:
        raise refuse("token", failed.reason, rule=f"draft §8 step {failed.step}")


@app.command(
    epilog='Example: runner token revoke --task t-42 --why "the branch was abandoned"\n\n'
    "A jti is printed by `runner token mint` and `inspect`, and `runner trace show CALL` names the whole chain of a "
    "call. A token and a task are revoked for ever; an agent, an owner and everything as of now: tokens minted "
    "afterwards stand, unless --until-released keeps any from being minted. A daemon that restarts forgets none of it."
)
def revoke(
    why: Annotated[str, typer.Option(help="The reason, for the record.")],
    token: Annotated[str, typer.Option(help="A token's jti, and with it all that was derived from it.")] = "",
    task: Annotated[str, typer.Option(help="Every token of a task, for ever.")] = "",
    agent: Annotated[
        str, typer.Option(help="Every token of an agent so far, also where a parent gave a sub-agent this name.")
    ] = "",
    owner: Annotated[str, typer.Option(help="Every token of an owner so far.")] = "",
    everything: Annotated[bool, typer.Option("--everything", help="Every token of everybody so far.")] = False,
    until_released: Annotated[
        bool,
        typer.Option(
            "--until-released",
            help="Also every token to come, until `runner token release`: with --agent, --owner or --everything.",
        ),
    ] = False,
    socket: Socket = credentials.ADMIN_SOCKET,
    json: Json = False,
) -> None:
    """Take authority back, at once and down the whole tree of derived tokens.

    No call begins on it any more when this returns, and no process of one that ran on it is left."""
    named = {"token": token, "task": task, "agent": agent, "owner": owner}
    kind, value = _one(named, everything=everything)
    if until_released and kind in ("token", "task"):
        raise typer.BadParameter(f"a {kind} is revoked for ever: leave it out", param_hint="--until-released")
    answer = credentials.ask(socket, admin.Revoke(kind=kind, value=value, why=why, until_released=until_released))  # type: ignore[arg-type]  # one of its literals
    if not isinstance(answer, admin.Done):
        raise refuse("protocol", "the daemon gave another answer than an acknowledgement")
    facts: dict[str, Any] = {"tokens": answer.tokens, "stopped": answer.affected, "position": answer.position}
    if until_released:
        facts["until"] = f"runner token release --{kind} {value}".strip()
    keys.print_facts({"revoked": f"{kind} {value}".strip(), **facts}, json=json)
    if not answer.tokens and not answer.affected:
        print(_NOBODY[kind], file=sys.stderr)


@app.command(
    epilog='Example: runner token release --agent reader --why "the prompt was mended, ticket 812"\n\n'
    "`runner status` shows what is closed. Where two_person in the configuration names `release`, another operator "
    "confirms it (`runner admin confirm`)."
)
def release(
    why: Annotated[str, typer.Option(help="The reason, for the record.")],
    agent: Annotated[str, typer.Option(help="An agent that was revoked until released.")] = "",
    owner: Annotated[str, typer.Option(help="An owner that was.")] = "",
    everything: Annotated[bool, typer.Option("--everything", help="Everything, where that was.")] = False,
    socket: Socket = credentials.ADMIN_SOCKET,
    json: Json = False,
) -> None:
    """Let tokens be minted again under what was revoked with --until-released.

    What was revoked stays revoked: no token from before the release is good again, nor what parents handed on under
    that name. Mint new ones."""
    kind, value = _one({"agent": agent, "owner": owner}, everything=everything)
    answer = credentials.ask(socket, admin.Reopen(kind=kind, value=value, why=why))  # type: ignore[arg-type]  # one of its literals
    what = f"{kind} {value}".strip()
    if isinstance(answer, admin.Waits):
        from runner.cli.admin import print_waits  # imported here: a client's `attenuate` has no tables of the daemon's

        print_waits(answer, f"{what} stays closed", json=json)
    elif isinstance(answer, admin.Done):
        facts = {"released": what, "position": answer.position}
        keys.print_facts(facts if json else facts | {"next": "mint new tokens: the old ones stay revoked"}, json=json)
    else:
        raise refuse("protocol", "the daemon gave another answer than an acknowledgement")


def _one(named: dict[str, str], *, everything: bool) -> tuple[str, str]:
    """The one kind that is given, and its name. Raises `typer.BadParameter`."""
    given = {kind: value for kind, value in named.items() if value} | ({"everything": ""} if everything else {})
    if len(given) != 1:
        raise typer.BadParameter(f"give exactly one of {', '.join(f'--{kind}' for kind in named)}, --everything")
    ((kind, value),) = given.items()
    return kind, value


_NOBODY = dict.fromkeys(
    ("task", "owner"), "note: no token of this name was announced; see `runner task list --all`"
) | {
    "token": "note: nothing ran on it, and it is no root token; a derived one is refused from now on",
    "agent": "note: no root token names this agent, and no call of a sub-agent of this name ran",
    "everything": "note: no token is in force",
}


def read_chain(file: Path) -> list[str]:
    """The token texts of a file, root to leaf; - for stdin. Raises `RunnerError` (token)."""
    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(_MAX_INPUT + 1)
        else:
            with file.open("rb") as opened:
                data = opened.read(_MAX_INPUT + 1)
    except OSError as error:
        raise refuse("token", f"cannot read it: {error.strerror}", field=str(file)) from None
    if data.startswith(b"{"):
        return list(handed.parse(data).chain)
    chain = data.decode("ascii", "replace").split()
    if not chain or len(data) > _MAX_INPUT:
        raise refuse("token", f"not a token or a chain of at most {_MAX_INPUT} bytes", field=str(file))
    return chain


def _decoded(text: str, place: str) -> dict[str, Any]:
    """What a token claims, unproven: digest and claims. Raises `RunnerError` (token)."""
    try:
        form = compact(text, TOKEN_TYPE, Limits().token_bytes, "form")
        claims = parse_json(form.payload, 80)
    except (NotAccepted, ValueError) as error:
        raise refuse("token", getattr(error, "reason", str(error)), field=place) from None
    if type(claims) is not dict:
        raise refuse("token", "the claims are not an object", field=place)
    return {"digest": form.digest, "claims": claims}


def _print_token(position: int, one: dict[str, Any]) -> None:
    claims = one["claims"]
    print(f"token {position} · {'root' if claims.get('del_depth') == 0 else 'derived'} · digest {one['digest']}")
    for name in ("jti", "iss", PRIVATE_CLAIM, "aud", "del_depth", "del_max_depth"):
        if name in claims:
            print(f"  {name:<14} {shown(claims[name], 400)}")
    for name in ("iat", "exp"):
        print(f"  {name:<14} {keys.when(claims.get(name))}")
    details = claims.get("authorization_details")
    for entry in details if isinstance(details, list) else []:
        if isinstance(entry, dict) and entry.get("type") == DETAILS_TYPE and isinstance(entry.get("tools"), dict):
            for tool, constraints in entry["tools"].items():
                print(f"  {shown(tool)[1:-1]}{'' if constraints else ': any arguments'}")
                for argument, constraint in constraints.items() if isinstance(constraints, dict) else ():
                    words = describe(constraint)
                    optional = " (optional)" if isinstance(constraint, dict) and constraint.get("optional") else ""
                    print(f"    {shown(argument)[1:-1]}{optional}: {words}")
