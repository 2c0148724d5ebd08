"""Cases as data: one call in one session, and the decision, rule and reason that it must get."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from runner.config import decode_toml, parse_toml
from runner.destination import PORTS, Malformed, host, method, path
from runner.errors import RunnerError, refuse
from runner.gate import egress
from runner.gate.authorize import Question, SessionView, decide, seen
from runner.gate.labels import widened
from runner.gate.schema import EGRESS
from runner.gate.serving import Serving
from runner.model import Decision, Effect, Principal, Protocol, Value
from runner.wire.egress import Requested

_NOTHING = SessionView()
_HEAD = re.compile(rb"\[\[\s*case\s*\]\]\s*(#.*)?")


class Expect(Value, frozen=True, kw_only=True):
    """What a case must get. `rule` is one of the rules that decided, "" for none; `reason` is a part of the reason."""

    decision: Effect
    reason: str
    rule: str = ""
    code: str = ""


class Sent(Value, frozen=True, kw_only=True):
    """A request that a call sends out, as a case names it; one without a method is an opaque tunnel."""

    host: str
    port: int = 0  # 0 = the protocol's
    protocol: Protocol = "https"
    method: str = ""
    path: str = ""
    upgrade: str = ""
    labels: tuple[str, ...] = ()  # what was found in it
    secrets: tuple[str, ...] = ()
    whole: bool = True

    @property
    def requested(self) -> Requested:
        """The request in canonical form. Raises `RunnerError` (policy)."""
        opaque = not self.method
        try:
            return Requested(
                id=1,
                protocol=self.protocol,
                host=host(self.host),
                port=self.port or PORTS.get(self.protocol, 0),
                visibility="opaque" if opaque else "head" if self.protocol == "http" else "full",
                method="" if opaque else method(self.method),
                path="" if opaque else path(self.path or "/"),
                upgrade=self.upgrade,
            )
        except Malformed as error:
            raise refuse("policy", f"egress: {error}") from None


class Case(Value, frozen=True, kw_only=True):
    """One call in one session, or one request that it sends out, and the decision it must get."""

    name: str
    tool: str
    expect: Expect
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    agent: str = "case-agent"
    owner: str = "case-owner"
    task: str = "case-task"
    profile: str = "default"
    peer_uid: int = 1000
    session: SessionView = SessionView()
    labels: tuple[str, ...] = ()  # what the arguments carry
    egress: Sent | None = None

    @property
    def point(self) -> Point | EgressPoint:
        """What policy is asked."""
        if self.egress is not None:
            who = Principal(agent=self.agent, owner=self.owner, task=self.task, session="case-session")
            asked = egress.Outward(
                principal=who,
                tool=self.tool,
                profile=self.profile,
                peer_uid=self.peer_uid,
                request=self.egress.requested,
                carries=egress.Carried(
                    labels=widened(self.egress.labels), secrets=self.egress.secrets, whole=self.egress.whole
                ),
            )
            return EgressPoint(question=asked, session=self.session)
        return Point.of(
            tool=self.tool,
            arguments=self.arguments,
            profile=self.profile,
            agent=self.agent,
            owner=self.owner,
            task=self.task,
            peer_uid=self.peer_uid,
            session=self.session,
            labels=self.labels,
        )


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One call as policy sees it: a question, in a session."""

    question: Question
    session: SessionView

    @classmethod
    def of(
        cls,
        *,
        tool: str,
        arguments: dict[str, Any],
        profile: str,
        agent: str = "case-agent",
        owner: str = "case-owner",
        task: str = "case-task",
        peer_uid: int = 1000,
        session: SessionView = _NOTHING,
        labels: tuple[str, ...] = (),
    ) -> Point:
        """A call that nobody made."""
        who = Principal(agent=agent, owner=owner, task=task, session="case-session")
        asked = Question(
            principal=who,
            tool=tool,
            arguments=arguments,
            profile=profile,
            peer_uid=peer_uid,
            labels=widened(labels),
        )
        return cls(question=asked, session=session)

    def decide(self, served: Serving) -> Decision:
        """The decision on it, as gate makes it."""
        return decide(self.question, self.session, served, served.policies)

    def valid(self, served: Serving) -> bool:
        """Whether policy would be asked at all: the tool exists, the profile holds it, the arguments fit."""
        manifest = served.tools.get(self.question.tool)
        profile = served.task_profiles.get(self.question.profile)
        if manifest is None or profile is None or manifest.id not in profile.tools:
            return False
        return served.arguments.validate(manifest, self.question.arguments) is None

    def matching(self, served: Serving) -> tuple[str, ...]:
        """Every rule that holds for it, whoever won; none where policy is not asked, or cannot see a value exactly."""
        if not self.valid(served):
            return ()
        try:
            return served.policies.matched(*seen(self.question, self.session)).rules
        except RunnerError:
            return ()


class EgressPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One request as policy sees it, of a call whose token grants all egress and whose allowlists let it pass."""

    question: egress.Outward
    session: SessionView

    def decide(self, served: Serving) -> Decision:
        """The decision on it, as gate makes it."""
        if self.question.tool not in served.tools:
            return Decision(effect="deny", reason=f"no tool `{self.question.tool[:64]}`", code="unknown_tool")
        return egress.decide(self.question, {EGRESS: {}}, self.session, served.policies)

    def matching(self, served: Serving) -> tuple[str, ...]:
        """Every rule that holds for it, whoever won."""
        return served.policies.matched_egress(*egress.seen(self.question, self.session)).rules


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A case, what it got, how that differs from what it must get ("" when it does not), and every rule that held."""

    place: str
    case: Case
    got: Decision
    difference: str
    matching: tuple[str, ...]


def read_cases(folder: Path) -> list[tuple[str, Case]]:
    """Every case below `folder`/cases with its `file:line`. Raises `RunnerError` (policy)."""
    found: list[tuple[str, Case]] = []
    for file in sorted((folder / "cases").glob("*")):
        name = f"policies/cases/{file.name}"
        if file.name.startswith(".") or file.name == "README.md":
            continue
        if file.suffix != ".toml" or not file.is_file():  # never run would read as holding
            raise refuse("policy", "not a *.toml file of cases", field=name, next_step="move or remove it")
        found += read_case_file(file, name)
    return found


def read_case_file(path: Path, name: str) -> list[tuple[str, Case]]:
    """The cases of one file, with `name:line` of each. Raises `RunnerError` (policy)."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise refuse("policy", f"cannot read it: {error.strerror}", field=str(path)) from None
    tables = parse_toml(text, name, "policy")
    lines = text.splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines) if _HEAD.fullmatch(line.strip())]
    if set(tables) != {"case"} or type(tables["case"]) is not list or len(starts) != len(tables["case"]) or not starts:
        raise refuse("policy", "write each case as a [[case]] table of its own, and nothing else", field=name)
    found: list[tuple[str, Case]] = []
    for start, end, table in zip(starts, [*starts[1:], len(lines)], tables["case"], strict=True):
        # Blank lines for the cases before it: an error then names this case's line, not a namesake's.
        found.append((f"{name}:{start + 1}", _case(b"\n" * start + b"".join(lines[start:end]), name, start, table)))
    return found


def _case(text: bytes, name: str, start: int, table: dict[str, Any]) -> Case:
    try:
        case = decode_toml(text, Case, name, "policy", table)
        if case.egress is not None and case.arguments:
            raise refuse("policy", "egress: a request has no arguments", field=f"{name}:{start + 1}")
        if case.egress is not None and not case.egress.requested.port:
            raise refuse("policy", "egress: a tcp request needs a port", field=f"{name}:{start + 1}")
        return case
    except RunnerError as error:
        if error.refused.field not in (name, ""):
            raise
        raise refuse("policy", error.refused.reason, field=f"{name}:{start + 1}") from None


def run_case(case: Case, served: Serving) -> tuple[Decision, str]:
    """The decision a case gets, and how it differs from the one it must get ("" when it does not)."""
    got, want = case.point.decide(served), case.expect
    if got.effect != want.decision:
        return got, f"is {got.effect} ({got.reason}), must be {want.decision}"
    if (want.rule not in got.rules) if want.rule else bool(got.rules):
        return got, f"decided by {', '.join(got.rules) or 'no rule'}, must be {want.rule or 'no rule'}"
    if want.reason not in got.reason:
        return got, f"says “{got.reason}”, must say “{want.reason}”"
    if want.code and want.code != got.code:
        return got, f"has code {got.code or 'none'}, must have {want.code}"
    return got, ""


def run_cases(cases: Sequence[tuple[str, Case]], served: Serving) -> list[Result]:
    """Every case, in order."""
    found = []
    for place, case in cases:
        got, difference = run_case(case, served)
        found.append(
            Result(place=place, case=case, got=got, difference=difference, matching=case.point.matching(served))
        )
    return found


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """How many cases say something of one rule: expect it, are decided by it, or only meet its conditions."""

    rule: str
    place: str
    expected: int
    decided: int
    matched: int


def coverage(served: Serving, results: Sequence[Result]) -> list[Coverage]:
    """Each rule of the bundle, in the order of the files."""
    return [
        Coverage(
            rule=rule.id,
            place=rule.source.place(),
            expected=sum(rule.id == each.case.expect.rule for each in results),
            decided=sum(rule.id in each.got.rules for each in results),
            matched=sum(rule.id in each.matching for each in results),
        )
        for rule in served.policies.all_rules
    ]
