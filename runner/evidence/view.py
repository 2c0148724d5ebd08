"""What a person asks of a ledger: calls joined with their outcomes, newest first; entries as lines.

Every text in an entry is hostile (an agent, a tool or a policy author wrote it): `visible` makes control, bidi and
invisible characters plain before anything reaches a terminal.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from runner.evidence.read import Ledger
from runner.ledger import entry as entries
from runner.ledger.merkle import included, inclusion_proof, leaf_hash

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})  # controls, formats (bidi, zero width), separators


class CallView(msgspec.Struct, frozen=True, kw_only=True):
    """One call and, when it has one, its outcome. `receipt` is the digest of the outcome entry."""

    position: int
    call: entries.Call
    outcome: entries.Outcome | None = None
    outcome_position: int = -1
    receipt: str = ""

    @property
    def state(self) -> str:
        """How it ended, or why it has no end."""
        if self.outcome is not None:
            code = self.outcome.exit_code
            return self.outcome.outcome + (f" {code}" if code is not None else "")
        return UNENDED[self.call.plan is None]


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls to show; an empty field lets all pass. `agent` is the root token's, or a name that a parent gave;
    `outcome` matches the kind, `since` is an RFC 3339 time. Of what calls did with their network: `host` is one that
    they asked for, `alerts` picks those with any, `secret` and `fingerprint` those that a credential was brokered for.
    """

    task: str = ""
    agent: str = ""
    tool: str = ""
    effect: str = ""
    outcome: str = ""
    since: str = ""
    host: str = ""
    alerts: bool = False
    secret: str = ""
    fingerprint: str = ""

    def marks(self) -> list[list[bytes]]:
        """Of each thing that a wanted call did with its network: what the bytes of an entry that says so hold."""
        found = [[_REQUEST, member(b"host", self.host)]] if self.host else []
        found += [[_ALERT]] if self.alerts else []
        found += [[_OUTCOME, member(b"name", self.secret)]] if self.secret else []
        found += [[_OUTCOME, member(b"fingerprint", self.fingerprint)]] if self.fingerprint else []
        return found

    def needles(self, call: str) -> list[bytes]:
        """What the bytes of a wanted call's entry hold, the ones that few entries have first."""
        named = (
            (b"call", call),
            (b"task", self.task),
            (b"", self.agent),
            (b"tool", self.tool),
            (b"effect", self.effect),
        )
        return [member(name, text) if name else msgspec.json.encode(text) for name, text in named if text]

    def passes(self, view: CallView) -> bool:
        """Whether this call is one of them."""
        call = view.call
        kind = view.outcome.outcome if view.outcome else view.state
        wanted = (
            (self.task, call.who.task),
            (self.tool, call.tool),
            (self.effect, call.decision.effect),
            (self.outcome, kind),
        )
        if self.agent and self.agent not in (call.who.agent, *call.who.asserted):
            return False
        brokered = view.outcome.secrets if view.outcome else ()
        for want, names in ((self.secret, {each.name for each in brokered}),
                            (self.fingerprint, {each.fingerprint for each in brokered})):  # fmt: skip
            if want and want not in names:
                return False
        return all(not want or want == have for want, have in wanted) and call.time >= self.since


class _Peek(msgspec.Struct):
    call: str


_peek = msgspec.json.Decoder(_Peek)
# A quote inside a JSON string is escaped, so these bytes are never part of a text.
_CALL, _OUTCOME = b'"kind":"call"', b'"kind":"outcome"'
_REQUEST, _ALERT = b'"kind":"egress"', b'"kind":"alert"'
UNENDED = ("running", "-")  # the states of calls without an outcome: planned, and never planned
_MAX_ENDS = 1 << 16  # outcomes whose calls were not met yet
_PLAN = b'"plan":'  # a call without one, denied for instance, has no outcome to look for


def member(name: bytes, text: str) -> bytes:
    """How a member of an entry with this text is written: what to look for in its bytes."""
    return b'"%b":%b' % (name, msgspec.json.encode(text))


def calls(ledger: Ledger, wanted: Filter, call: str = "") -> Iterator[CallView]:
    """Calls that `wanted` lets pass, newest first; with `call`, only the one of that id."""
    needles, marks = wanted.needles(call), wanted.marks()
    found = _with(ledger, needles) if needles else _joined(ledger, wanted.outcome)
    found = _marked(ledger, marks) if marks else found
    for view in found:
        if wanted.passes(view):
            yield view
        elif wanted.since and view.call.time < wanted.since:
            return  # older ones follow; clocks that stepped back are not searched through


def _with(ledger: Ledger, needles: Sequence[bytes]) -> Iterator[CallView]:
    """Calls whose entries hold every needle, newest first. Each end is looked for from its call on: it is near."""
    for start, run in ledger.backwards(lambda holds: all(map(holds, needles))):
        first, *rest = needles
        for place in range(len(run) - 1, -1, -1):
            data = run[place]
            if first in data and _CALL in data and all(needle in data for needle in rest):
                end = None
                if _PLAN in data:
                    named = [_OUTCOME, member(b"call", _peek.decode(data).call)]
                    end = _first(run, place, start, named) or ledger.first_with(named, start + len(run))
                yield _join(start + place, data, end)


def _marked(ledger: Ledger, marks: Sequence[Sequence[bytes]]) -> Iterator[CallView]:
    """Calls that have an entry for each of `marks`, newest first. Those follow the call's own, so a walk backwards has
    met them all when it comes to the call."""
    having: dict[str, set[int]] = {}

    def relevant(holds: Callable[[bytes], bool]) -> bool:
        return any(all(map(holds, mark)) for mark in marks) or any(holds(member(b"call", name)) for name in having)

    for start, run in ledger.backwards(relevant):
        for place in range(len(run) - 1, -1, -1):
            data = run[place]
            met = [number for number, mark in enumerate(marks) if all(needle in data for needle in mark)]
            if met:
                having.setdefault(_peek.decode(data).call, set()).update(met)
                if len(having) > _MAX_ENDS:
                    del having[next(iter(having))]  # what the daemon dials itself, and no ledger of ours has so many
            elif having and _CALL in data and len(having.pop(_peek.decode(data).call, ())) == len(marks):
                named = [_OUTCOME, member(b"call", _peek.decode(data).call)]
                yield _join(start + place, data, ledger.first_with(named, start + place))


def _first(run: Sequence[bytes], place: int, start: int, needles: Sequence[bytes]) -> tuple[int, bytes] | None:
    """The first entry of a run from `place` on that holds every needle, with its position."""
    for at in range(place, len(run)):
        if all(needle in run[at] for needle in needles):
            return start + at, run[at]
    return None


def _joined(ledger: Ledger, outcome: str) -> Iterator[CallView]:
    """Calls with their ends, newest first; of those with an end the ones whose outcome is `outcome`, when it is one."""
    ends: dict[str, tuple[int, bytes]] = {}
    kind = member(b"outcome", outcome) if outcome not in ("", *UNENDED) else b""
    for start, run in ledger.backwards(lambda holds: holds(kind) or any(holds(member(b"call", name)) for name in ends)):
        for position in range(start + len(run) - 1, start - 1, -1):
            data = run[position - start]
            if _OUTCOME in data and kind in data:
                ends[_peek.decode(data).call] = (position, data)
                if len(ends) > _MAX_ENDS:
                    del ends[next(iter(ends))]  # no ledger of ours has so many calls open at one time
            elif _CALL in data and (not kind or ends):
                end = ends.pop(_peek.decode(data).call, None)
                if end is not None or not kind:
                    yield _join(position, data, end)


def find(ledger: Ledger, call: str) -> CallView | None:
    """The call with this id."""
    return next((view for view in calls(ledger, Filter(), call) if view.call.call == call), None)


_SANDBOX = b'"kind":"sandbox"'


def sandbox(ledger: Ledger, name: str) -> tuple[int, entries.SandboxBegin] | None:
    """The entry of a sandbox, and its position; a call that waited for its sandbox comes before it."""
    needles = (_SANDBOX, member(b"sandbox", name))
    for start, run in ledger.backwards(lambda holds: all(map(holds, needles))):
        for position, data in enumerate(run, start):
            if all(needle in data for needle in needles):
                entry = entries.decode(data)
                if isinstance(entry, entries.SandboxBegin) and entry.sandbox == name:
                    return position, entry
    return None


def _join(position: int, data: bytes, end: tuple[int, bytes] | None) -> CallView:
    call = entries.decode(data)
    assert isinstance(call, entries.Call)
    if end is None:
        return CallView(position=position, call=call)
    outcome = entries.decode(end[1])
    assert isinstance(outcome, entries.Outcome)
    return CallView(
        position=position, call=call, outcome=outcome, outcome_position=end[0], receipt=entries.digest(end[1])
    )


def proven(ledger: Ledger, position: int) -> int | None:
    """The length of a proof that entry `position` is under the newest signed checkpoint, checked here.

    None when it is not signed yet, or when the proof does not lead to the signed root."""
    signed = ledger.checkpoint
    if position >= signed.size:
        return None
    proof = inclusion_proof(position, signed.size, ledger.subtree)
    leaf = leaf_hash(ledger.entry(position))
    return len(proof) if included(leaf, position, signed.size, proof, signed.root) else None


def visible(text: str, *, lines: bool = False) -> str:
    """`text` with every character that a terminal would act on, or not show, written out as an escape. With `lines`,
    newlines and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if (lines and char in "\n\t") or unicodedata.category(char) not in _HIDDEN else _written(char)
        for char in text
    )


def _written(char: str) -> str:
    code = ord(char)
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(char)
    return short or (f"\\x{code:02x}" if code < 0x100 else f"\\u{{{code:x}}}")


def line(position: int, data: bytes, width: int = 160) -> str:
    """One entry as one line of text."""
    fields: dict[str, Any] = msgspec.json.decode(data)
    time, kind = str(fields.pop("time", "")), str(fields.pop("kind", "?"))
    fields.pop("v", None)
    if kind in ("egress", "egress_end", "alert"):
        text = visible(f"{position:>8} {time} {kind:<12} {_on_network(fields)}")
        return text if len(text) <= width else text[: width - 1] + "…"
    first = [str(fields.pop(name)) for name in ("call", "tool", "outcome") if isinstance(fields.get(name), str)]
    if isinstance(decision := fields.pop("decision", None), dict):
        first += [str(decision.get("effect", "")), str(decision.get("reason", ""))]
    if isinstance(who := fields.pop("who", None), dict):
        names = [who.get("agent", ""), *who.get("asserted", ())]
        first.append(f"{'>'.join(map(str, names))}/{who.get('task', '')}")
    if isinstance(operator := fields.get("operator"), dict):  # says more than the uid
        fields["by"] = str(operator.get("name", ""))
    rest = [f"{name}={short}" for name, value in fields.items() if (short := _short(value))]
    text = visible(f"{position:>8} {time} {kind:<12} {' '.join([*first, *rest])}")
    return text if len(text) <= width else text[: width - 1] + "…"


def _on_network(fields: dict[str, Any]) -> str:
    """What an entry about a call's network says, in an order that reads."""

    def take(*names: str) -> list[str]:
        return [str(fields[name]) for name in names if fields.get(name)]

    request = f"#{fields['request']}" if "request" in fields else ""
    words = [str(fields.get("call", "")), request]
    decision = fields.get("decision")
    if isinstance(decision, dict):
        path = "(digest)" if fields.get("path_content") else str(fields.get("path", ""))
        where = f"{fields.get('protocol')}://{fields.get('host')}:{fields.get('port')}{path}"
        words += [*take("method"), where, "opaque" if fields.get("visibility") == "opaque" else ""]
        words += [str(decision.get("effect", "")), *take("part"), str(decision.get("reason", ""))]
    else:
        words += ["CRITICAL"] if "what" in fields else []  # an alert's one severity, and absent as such
        words += take("what", "where", "address", "status", "code", "reason")
        words += [f"{name}={fields[name]}" for name in ("up", "down") if fields.get(name)]
        words += [f"with {' '.join(map(str, names))}"] if isinstance(names := fields.get("secrets"), list) else []
        words += ["kept"] if fields.get("response") else []
    return " ".join(filter(None, words))


def _short(value: Any) -> str:
    """A field on the line: text, numbers, and what content is named with; nothing else."""
    if isinstance(value, dict) and isinstance(value.get("digest"), str) and "size" in value:
        return f"{value['digest'][:16]}…({value['size']} bytes)"
    return str(value) if isinstance(value, (str, int)) else ""
