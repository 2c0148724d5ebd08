"""Policy files cut into rules: each with its place, its annotations and its bounds, before any engine sees it.

The engine reports neither places nor, for a text nested a thousand deep, anything at all: it takes the process with
it. So a file is cut at its semicolons here, each rule is bounded, parsed alone by the engine, and must be exactly one
rule there too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import msgspec

from runner.errors import RunnerError, refuse
from runner.model import Action

MAX_TOKENS = 1000  # per rule; the engine's parser overflows its stack at a few thousand
MAX_BRACKETS = 64  # the engine evaluates at most 100 levels of nesting
MAX_RULES = 5000
MAX_REASON = 300

RuleDecision = Literal["allow", "step_up", "defer"]
_DECISIONS: dict[str, RuleDecision] = {"allow": "allow", "step_up": "step_up", "defer": "defer"}
_ID = re.compile(r"^[A-Za-z][A-Za-z0-9_.-]{0,63}\Z")
_KNOWN = ("id", "reason", "decision", "labels")
_OBLIGES = re.compile(r"^\s*([a-z][a-z0-9_.]{0,127}|\*)\s*=\s*([a-z]{1,16})\s*\Z")
_ACTIONS: tuple[str, ...] = get_args(Action)
_OPEN, _CLOSE, _END = frozenset("([{"), frozenset(")]}"), ";"
_NEWLINE = "\n"
# A comment ends where the engine says that it does, at a lone carriage return too: or a rule after one would be lost.
_TOKEN = re.compile(
    r'//[^\r\n]*|"(?:\\.|[^"\\])*"|[A-Za-z_][A-Za-z0-9_]*|[0-9]+|::|==|!=|<=|>=|&&|\|\||[^\s]', re.DOTALL
)


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One permit or forbid, checked. `decision` is what a matching permit asks for."""

    id: str
    effect: Literal["permit", "forbid"]
    decision: RuleDecision
    reason: str
    source: Source
    labels: tuple[str, ...] = ()  # "injected=block": what becomes of labels in what the call gives back


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The text of one rule and where it stands: `file`, and the whole file's text from `start` on."""

    file: str
    whole: str
    start: int
    text: str

    def wrong(self, reason: str, within: int = 0, next_step: str = "") -> RunnerError:
        """The error to raise about the character `within` this rule: its field is `file:line:column`."""
        return refuse("policy", reason, field=self.place(within), next_step=next_step)

    def place(self, within: int = 0) -> str:
        """`file:line:column`, both from 1, of the character `within` this rule."""
        before = self.whole[: self.start + within]
        return f"{self.file}:{before.count(_NEWLINE) + 1}:{len(before) - before.rfind(_NEWLINE)}"

    def find(self, pattern: str) -> int:
        """Where `pattern` first matches outside comments and strings, 0 when it does not."""
        return next((at for at, token in _tokens(self.text) if re.fullmatch(pattern, token)), 0)


def cut(file: str, data: bytes) -> list[Source]:
    """The rules of one file, in order. Raises `RunnerError` (policy) for text that is not UTF-8 or a rule too large."""
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise refuse("policy", "the file is not UTF-8", field=f"{file}:{line}") from None
    found: list[Source] = []
    start, count, depth = -1, 0, 0
    for at, sign in _tokens(whole):
        if sign.startswith("//"):
            continue
        start, count = (at, 1) if start < 0 else (start, count + 1)
        depth += (sign in _OPEN) - (sign in _CLOSE)
        if count > MAX_TOKENS or depth > MAX_BRACKETS:
            bound = f"{MAX_TOKENS} words and signs, or {MAX_BRACKETS} open brackets"
            source = Source(file=file, whole=whole, start=start, text="")
            raise source.wrong(f"a rule has at most {bound}", at - start, "split the rule")
        if sign == _END:
            found.append(Source(file=file, whole=whole, start=start, text=whole[start : at + 1]))
            start, depth = -1, 0
    if start >= 0:
        source = Source(file=file, whole=whole, start=start, text="")
        raise source.wrong("the last rule does not end", len(whole[start:].rstrip()), "end it with `;`")
    return found


def _tokens(text: str) -> list[tuple[int, str]]:
    return [(match.start(), match.group()) for match in _TOKEN.finditer(text)]


def words(text: str) -> list[str]:
    """The words and signs of a rule, without its comments."""
    return [sign for _, sign in _tokens(text) if not sign.startswith("//")]


def offender(text: str, parse: Callable[[str], str]) -> int:
    """Where in a rule that does not parse the engine's parser stops.

    `parse` gives an engine's error message, "" for none. The parser reads left to right, so the first token is wrong
    whose addition makes a beginning of the rule fail otherwise than by ending too early. It may say so one token late,
    but then it names the one it means."""
    ends_early = parse("permit")
    named: dict[str, int] = {}
    for at, sign in _tokens(text):
        if sign.startswith("//"):
            continue
        named[sign] = at
        message = parse(text[: at + len(sign)])
        if message not in ("", ends_early):
            meant = re.search(r"unexpected token `(.+)`$", message)
            return named.get(meant.group(1), at) if meant else at
    return 0


def checked(source: Source, effect: str, annotations: Mapping[str, str]) -> Rule:
    """A parsed rule with its annotations. Raises `RunnerError` (policy) naming the annotation."""

    def wrong(name: str, reason: str, next_step: str = "") -> RunnerError:
        return source.wrong(f"@{name}: {reason}", source.find(re.escape(name)), next_step)

    for name in annotations:
        if name not in _KNOWN:
            raise wrong(name, "unknown annotation", f"use only {', '.join('@' + known for known in _KNOWN)}")
    if "id" not in annotations:
        raise source.wrong(
            "the rule has no @id", 0, 'write @id("…") before it: denials and the ledger name rules by it'
        )
    if not _ID.match(annotations["id"]):
        raise wrong("id", f"must match {_ID.pattern}")
    reason = annotations.get("reason", "")
    if len(reason) > MAX_REASON or not reason.isprintable():
        raise wrong("reason", f"must be printable and at most {MAX_REASON} characters; agents read it")
    decision = annotations.get("decision", "allow")
    if decision not in _DECISIONS:
        raise wrong("decision", f"`{decision[:40]}` is not allow, step_up or defer")
    if effect != "permit" and "decision" in annotations:
        raise wrong("decision", "only a permit has one; a forbid denies")
    labels: list[str] = []
    for each in annotations["labels"].split(",") if "labels" in annotations else ():
        said = _OBLIGES.match(each)
        if effect != "permit" or said is None or said.group(2) not in _ACTIONS or said.group(1) == "secret":
            step = f'on a permit, as in @labels("injected=block, pii=redact"); actions are {", ".join(_ACTIONS)}'
            raise wrong("labels", f"`{each.strip()[:80]}` obliges to nothing", step)
        labels.append("=".join(said.groups()))
    return Rule(
        labels=tuple(labels),
        id=annotations["id"],
        effect="permit" if effect == "permit" else "forbid",
        decision=_DECISIONS[decision],
        reason=reason,
        source=source,
    )
