"""Recorded calls as policy was asked about them, rebuilt from a ledger and the content that it names.

What a session had done is counted again from the entries, as gate counted it (`runner/gate/context.py`), and begins
anew with each start of the daemon, as it does in gate. Not exact are calls of one task that overtook each other, a
request longer than an entry holds, and more than 32 calls read by the agent between two calls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec

from runner.catalog import compile_bundle, unarchive
from runner.errors import refuse
from runner.evidence.content import SALT, ContentReader
from runner.evidence.read import Ledger
from runner.gate.authorize import Question, SessionView
from runner.gate.context import TOOLS
from runner.gate.serving import Serving
from runner.ledger import entry as entries
from runner.model import Principal
from runner.review.cases import Point
from runner.wire.parent import Bundle


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a ledger. Without a `point` it cannot be asked about again, and `why` says what is missing."""

    position: int
    call: entries.Call
    point: Point | None
    why: str
    catalogue: str  # digest of the catalogue that was in force with the policy that decided


class _Session(msgspec.Struct):
    calls: int = 0
    denied: int = 0
    untrusted: int = 0
    tools: set[str] = msgspec.field(default_factory=set)


def recorded(ledger: Ledger, content: ContentReader, only: str = "") -> Iterator[Recorded]:
    """Every call, oldest first; with `only`, the one of that id. Reads all entries before it."""
    profiles: dict[str, str] = {}  # of each root token
    sessions: dict[str, _Session] = {}
    in_force: list[tuple[str, str]] = []  # policy and catalogue, newest last
    for position, data in ledger.entries():
        match entry := entries.decode(data):
            case entries.Start():
                sessions.clear()
                in_force.append((entry.policy, entry.catalogue))
            case entries.Reload():
                in_force.append((entry.policy, entry.after))
            case entries.Token():
                profiles[entry.jti] = entry.profile
            case entries.TaskEnd():
                sessions.pop(entry.task, None)
            case entries.Call():
                session = sessions.setdefault(entry.who.task, _Session())
                session.untrusted += len(entry.untrusted)
                if only in ("", entry.call):
                    profile = profiles.get(entry.chain[0], "") if entry.chain else ""
                    point, why = _point(entry, position, session, profile, content)
                    then = next((each for policy, each in reversed(in_force) if policy == entry.decision.policy), "")
                    catalogue = then or (in_force[-1][1] if in_force and not entry.decision.policy else "")
                    yield Recorded(position=position, call=entry, point=point, why=why, catalogue=catalogue)
                if entry.plan is None:
                    session.denied += 1
                else:
                    session.calls += 1
                    if len(session.tools) < TOOLS:
                        session.tools.add(entry.tool)


def _point(
    call: entries.Call, position: int, session: _Session, profile: str, content: ContentReader
) -> tuple[Point | None, str]:
    if not profile:
        return None, "the token that names its profile is not in this ledger"
    if call.filtered:
        return None, "filters found something in what it was called with: its arguments are not kept as policy saw them"
    kept = content.get(call.arguments.digest, position) if call.arguments else None
    if kept is None:
        return None, "its arguments are not kept"
    try:
        arguments = json.loads(kept[SALT:])
    except (ValueError, RecursionError):
        return None, "its arguments are not JSON"
    if not isinstance(arguments, dict):
        return None, "its arguments are not an object"
    who = call.who
    return Point(
        question=Question(
            principal=Principal(
                agent=who.agent, owner=who.owner, task=who.task, session=who.session, asserted=who.asserted
            ),
            tool=call.tool,
            arguments=arguments,
            profile=profile,
            peer_uid=call.peer.uid,
            labels=call.carries,
        ),
        session=SessionView(
            labels=call.context.labels if call.context is not None else (),
            forgotten=call.context.forgotten if call.context is not None else 0,
            calls=session.calls,
            denied=session.denied,
            tools=tuple(sorted(session.tools)),
            untrusted=session.untrusted,
            original_request=call.request,
            depth=max(0, len(call.chain) - 1),
        ),
    ), ""


def find(ledger: Ledger, content: ContentReader, call: str) -> Recorded:
    """One call. Raises `RunnerError` (unknown_call)."""
    for found in recorded(ledger, content, call):
        return found
    raise refuse("unknown_call", "no such call in this ledger", field=call, next_step="see `runner trace list`")


def serving_then(content: ContentReader, found: Recorded) -> Serving:
    """The catalogue that a call was decided under, compiled again. Raises `RunnerError` (policy, or what compiling
    raises) when it is not kept."""
    data = content.get(found.catalogue) if found.catalogue else None
    if data is None:
        raise refuse(
            "policy",
            "the catalogue that decided this call is not kept",
            field=found.call.call,
            next_step="name folders to ask instead: --policies, --tools, --profiles",
        )
    folders: dict[str, dict[str, bytes]] = {"profiles": {}, "tools": {}, "policies": {}}
    config = b""
    for path, each in unarchive(data).items():
        folder, _, rest = path.partition("/")
        if rest and folder in folders:
            folders[folder][rest] = each
        else:
            config = each
    bundle = Bundle(config=config, config_path="runner.toml", digest=found.catalogue, **folders)
    return Serving.compile(compile_bundle(bundle))
