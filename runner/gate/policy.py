"""Policies compiled once, evaluated per call: Cedar behind a door that answers DENY whenever anything is unclear.

The only importer of cedarpy. A bundle compiles whole or not at all. Per action it holds the parsed rules that could
match there, so that a decision does not grow with rules about other tools. Traps that this module closes: Cedar
answers Allow beside an error from a forbid that failed; NoDecision is no answer; parse errors have no place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import cedarpy
import msgspec
from cedarpy import pst

from runner.errors import refuse
from runner.gate.rules import MAX_RULES, Rule, Source, checked, cut, offender
from runner.gate.schema import EGRESS, Place, Record, cedar_schema, hidden, show, visible
from runner.gate.verdict import Verdict, failed_rules, verdict
from runner.model import Manifest, Principal
from runner.wire.guest import code_digest

_PRINCIPALS = 1024  # parsed principals kept; at the bound all are dropped, which costs 15 µs each to build again
_TEXT = 300
# Comparisons that the rules on one call's text may need at worst: 0.1 s on the machines this was tried on. A bound on
# work, not on time: the same call has the same answer everywhere, and on replay.
MAX_WORK = 200_000_000
_WHOLE = 2.0  # a value read whole costs as much as two comparisons for each of its characters


class _Slice(msgspec.Struct, frozen=True, kw_only=True):
    """The rules that could match one action, parsed; `rules` by the ids that the engine gave them."""

    policies: cedarpy.PolicySet
    rules: dict[str, Rule]
    arguments: Record
    reads: frozenset[tuple[str, ...]]  # what these rules read of the context: paths of at most two attributes
    paths: dict[str, frozenset[tuple[str, ...]]]  # the same of each rule, whole paths
    work: float  # the most comparisons that these rules can need for each character of the context


class Matched(msgspec.Struct, frozen=True, kw_only=True):
    """Every rule that holds for a call, whoever won, and those that could not be evaluated."""

    rules: tuple[str, ...]
    failed: tuple[str, ...] = ()


class PolicyBundle:
    """A whole set of policies for one set of tools. Immutable, apart from a cache of parsed principals."""

    def __init__(
        self,
        digest: str,
        rules: tuple[Rule, ...],
        schema: cedarpy.Schema,
        tools: cedarpy.Entities,
        slices: dict[str, _Slice],
    ) -> None:
        self.digest = digest
        self.all_rules = rules
        self._schema = schema
        self._tools = tools
        self._slices = slices
        self._known: dict[tuple[str | Place | None, ...], cedarpy.Entities] = {}
        self._sides: dict[tuple[str, str], tuple[cedarpy.PolicySet, dict[str, str]]] = {}

    @classmethod
    def compile(cls, policies: Mapping[str, bytes], manifests: Mapping[str, Manifest]) -> PolicyBundle:
        """Parse, check and validate every file. Raises `RunnerError` (policy, or manifest when no schema can be made of
        the tools) naming file, line and column. No policy at all compiles, and denies everything."""
        schema_text = cedar_schema(manifests.values())
        try:
            schema = cedarpy.Schema.from_str(schema_text)
        except ValueError as error:
            raise refuse("manifest", f"the tools make no policy schema: {str(error)[:_TEXT]}") from None
        rules, parsed = _rules(policies)
        _validate(rules, schema, manifests)
        slices = {}
        for tool, manifest in manifests.items():
            applies = [(rule, node) for rule, node in zip(rules, parsed, strict=True) if may_match(node, manifest)]
            slices[tool] = _slice(applies, visible(manifest))
        outward = [(rule, node) for rule, node in zip(rules, parsed, strict=True) if may_match_egress(node)]
        slices[EGRESS] = _slice(outward, Record({}))
        tools = cedarpy.Entities.from_json_str(msgspec.json.encode(_tool_entities(manifests)).decode(), schema)
        return cls(code_digest(dict(policies)), tuple(rules), schema, tools, slices)

    def rules(self, tool: str) -> tuple[Rule, ...]:
        """The rules that could match a call of `tool`, in the order of their files."""
        return tuple(self._slices[tool].rules.values()) if tool in self._slices else ()

    def evaluate(
        self, tool: str, principal: Principal, profile: str, arguments: Mapping[str, Any], context: Mapping[str, Any]
    ) -> Verdict:
        """The verdict on one call whose arguments fit their schema. `context` is the rest of Cedar's context.

        Raises `RunnerError` (arguments) for a value that policy cannot see exactly; anything else is a verdict."""
        part = self._slices.get(tool)
        if part is None or not part.rules:
            return Verdict(effect="deny", reason="no policy permits this tool")
        request = _request(part, tool, principal, arguments, context)
        return self._judge(part, request, principal, profile)

    def evaluate_egress(self, principal: Principal, profile: str, where: Place, context: Mapping[str, Any]) -> Verdict:
        """The verdict on one request to a destination. `context` is the whole of Cedar's context."""
        part = self._slices[EGRESS]
        if not part.rules:
            return Verdict(effect="deny", reason="no policy permits egress")
        found = self._judge(part, _egress_request(part, principal, where, context), principal, profile, where)
        # What a permit obliges to is done with what the call gives back: a request goes out as it is, or not at all.
        return msgspec.structs.replace(found, effect="allow", obligations=()) if found.effect == "modify" else found

    def asks_labels(self, tool: str) -> bool:
        """Whether a rule could read which labels a call's arguments carry."""
        part = self._slices.get(tool)
        return part is not None and not part.reads.isdisjoint({(), ("labels",)})

    def _judge(
        self, part: _Slice, request: dict[str, Any], principal: Principal, profile: str, where: Place | None = None
    ) -> Verdict:
        if len(request["context"]) * part.work > MAX_WORK:
            text = "the rules on this tool's text could take too long on so much of it"
            return Verdict(effect="deny", reason=text, errors=(text,), allowed="shorter arguments, or fewer patterns")
        try:
            entities = self._entities(principal, profile, where)
            # Without the schema (18 µs): `show` gives each value the type that the rules were validated against.
            answer = cedarpy.is_authorized(request, part.policies, entities)
            known = {cedarpy.Decision.Allow: True, cedarpy.Decision.Deny: False}
            found = known.get(answer.decision)
            return verdict(part.rules, found, answer.diagnostics.reasons, answer.diagnostics.errors)
        except BaseException as error:
            # A panic of the engine is no Exception. Whatever it was, it is no permission.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            text = f"the policy engine failed: {type(error).__name__}"
            return Verdict(effect="deny", reason=text, errors=(text,))

    def matched(
        self, tool: str, principal: Principal, profile: str, arguments: Mapping[str, Any], context: Mapping[str, Any]
    ) -> Matched:
        """Every rule that holds for one call: for people who ask why, never for a decision.

        The engine names only the rules of the side that won, so forbids and permits are asked one after the other."""
        part = self._slices.get(tool)
        if part is None:
            return Matched(rules=())
        request = _request(part, tool, principal, arguments, context)
        return self._matched(part, tool, request, self._entities(principal, profile))

    def matched_egress(self, principal: Principal, profile: str, where: Place, context: Mapping[str, Any]) -> Matched:
        """The same for one request to a destination."""
        part = self._slices[EGRESS]
        request = _egress_request(part, principal, where, context)
        return self._matched(part, EGRESS, request, self._entities(principal, profile, where))

    def _matched(self, part: _Slice, action: str, request: dict[str, Any], entities: cedarpy.Entities) -> Matched:
        found: set[str] = set()
        failed: list[str] = []
        for effect in ("permit", "forbid"):
            if (action, effect) not in self._sides:
                side = [rule for rule in part.rules.values() if rule.effect == effect]
                parsed = cedarpy.PolicySet.from_str(_join(side))
                named = {key: node.annotations["id"] for key, node in parsed.to_pst().static_policies.items()}
                self._sides[action, effect] = parsed, named
            policies, keys = self._sides[action, effect]
            answer = cedarpy.is_authorized(request, policies, entities)
            found.update(keys[key] for key in answer.diagnostics.reasons)
            failed += [each for each in failed_rules(answer.diagnostics.errors, keys) if each not in failed]
        order = [rule.id for rule in part.rules.values()]
        return Matched(rules=tuple(each for each in order if each in found), failed=tuple(failed))

    def reads(self, tool: str, rule: str) -> frozenset[tuple[str, ...]]:
        """The paths into the context that a rule reads for a call of `tool`; () among them when it reads the whole."""
        return self._slices[tool].paths.get(rule, frozenset()) if tool in self._slices else frozenset()

    def _entities(self, principal: Principal, profile: str, where: Place | None = None) -> cedarpy.Entities:
        key = (principal.agent, principal.owner, principal.task, principal.session, profile, where)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _PRINCIPALS:
                self._known.clear()
            entities = _principal_entities(principal, profile)
            if where is not None:
                entities.append(_destination_entity(where))
            added = msgspec.json.encode(entities).decode()
            found = self._known[key] = self._tools.with_added_json_str(added, self._schema)
        return found


# --- compiling -----------------------------------------------------------------------------------------------


def _rules(policies: Mapping[str, bytes]) -> tuple[list[Rule], list[pst.Template]]:
    rules: list[Rule] = []
    parsed: list[pst.Template] = []
    places: dict[str, Rule] = {}
    for name in sorted(policies):
        if not name.endswith(".cedar"):
            continue  # the bundle's version: of its digest, without rules
        for source in cut(f"policies/{name}", policies[name]):
            node = _parse(source)
            rule = checked(source, node.effect, node.annotations)
            if rule.id in places:
                other = places[rule.id].source.place()
                raise source.wrong(f"@id: `{rule.id}` is also the id of the rule at {other}", 0, "ids are unique")
            places[rule.id] = rule
            rules.append(rule)
            parsed.append(node)
    if len(rules) > MAX_RULES:
        raise rules[MAX_RULES].source.wrong(f"more than {MAX_RULES} rules", 0, "merge rules")
    return rules, parsed


def _parse(source: Source) -> pst.Template:
    """One rule's text as the engine's own tree."""
    message = _parse_error(source.text)
    if message:
        at = offender(source.text, _parse_error) if message.startswith(("unexpected", "invalid token")) else 0
        named = re.search(r"(?:variable(?: in the policy scope)?|annotation): @?(\w+)", message)
        raise source.wrong(f"not Cedar: {message[:_TEXT]}", at or (source.find(named.group(1)) if named else 0))
    try:
        found = cedarpy.policies_to_pst(source.text)
    except ValueError as error:
        raise source.wrong(f"not a rule this version reads: {str(error)[:_TEXT]}") from None
    if found.templates or len(found.static_policies) != 1:
        raise source.wrong("a template, or not exactly one rule", 0, "write the principal out instead of ?principal")
    return next(iter(found.static_policies.values()))


def _parse_error(text: str) -> str:
    try:
        cedarpy.PolicySet.from_str(text)
    except ValueError as error:
        return str(error) or "unreadable"
    return ""


def _validate(rules: Sequence[Rule], schema: cedarpy.Schema, manifests: Mapping[str, Manifest]) -> None:
    """Every rule against the schema, strictly: unknown tools, arguments that policy cannot see, optional ones."""
    if not rules:
        return
    result = cedarpy.validate_policies(_join(rules), schema)
    if result.validation_passed:
        return
    error = result.errors[0] if result.errors else None
    by_id = {rule.id: rule for rule in rules}
    rule = by_id.get(result.id_annotations_by_policy_id.get(error.policy_id, "")) if error else None
    if error is None or rule is None:
        raise refuse("policy", "the policies do not fit the tools' schema", field="policies")
    text = re.sub(r"^for policy `[^`]*`, ", "", error.error)[:_TEXT]
    named = re.search(r"attribute `((?:\w+\.)*)(\w+)`", text)
    attribute = named.group(2) if named else ""
    tools = [tool for tool, manifest in manifests.items() if attribute in hidden(manifest)]
    if tools and "not found" in text:
        hint = (
            f"policy cannot see `{attribute}` of {', '.join(tools)}: give it a Cedar type under [project] in tool.toml"
        )
    elif attribute in ("arguments", "consequence", "digest") and "not found" in text:
        hint = 'requests to destinations have no such thing: write `action in Action::"any"` for a rule on tools'
    elif "optional attribute" in text:
        record = "context.arguments" if named and named.group(1) else "context"
        hint = f"ask first: `{record} has {attribute} && …`"
    else:
        hint = "see `runner policy schema`"
    raise rule.source.wrong(f"rule {rule.id}: {text}", rule.source.find(re.escape(attribute)) if attribute else 0, hint)


def may_match(node: pst.Template, manifest: Manifest) -> bool:
    """Whether a rule's scope can hold for calls of this tool. True for every scope this does not understand."""
    action, resource = node.action, node.resource
    names = {manifest.id, manifest.consequence, "any"}
    if isinstance(action, pst.ActionEq) and action.entity.id != manifest.id:
        return False
    if isinstance(action, pst.ActionIn) and not names & {entity.id for entity in action.entities}:
        return False
    return not (
        isinstance(resource, pst.ScopeEq)
        and isinstance(resource.entity, pst.EntityUid)
        and resource.entity.id != manifest.id
    )


def may_match_egress(node: pst.Template) -> bool:
    """Whether a rule's scope can hold for requests to destinations. True for every scope this does not understand."""
    action, resource = node.action, node.resource
    if isinstance(action, pst.ActionEq) and action.entity.id != EGRESS:
        return False
    if isinstance(action, pst.ActionIn) and EGRESS not in {entity.id for entity in action.entities}:
        return False
    return not (
        isinstance(resource, pst.ScopeEq)
        and isinstance(resource.entity, pst.EntityUid)
        and resource.entity.type.basename == "Tool"
    )


def context_reads(node: Any, after: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths into the context that a rule, or a part of one, reads; () when it reads the whole of it.

    `after` are the attributes that are taken of `node`. A node that this does not understand is only walked through:
    whatever is below it counts as read whole."""
    if isinstance(node, pst.Var) and node.name == "context":
        yield after
    elif isinstance(node, pst.GetAttr):
        yield from context_reads(node.base, (node.attr, *after))
    elif isinstance(node, pst.HasAttr):
        yield from context_reads(node.base, (*node.attrs, *after))
    elif isinstance(node, Mapping):
        for each in node.values():
            yield from context_reads(each)
    elif isinstance(node, tuple | list):
        for each in node:
            yield from context_reads(each)
    elif is_dataclass(node):
        for field in fields(node):
            yield from context_reads(getattr(node, field.name))


def _read(context: dict[str, Any], reads: frozenset[tuple[str, ...]]) -> dict[str, Any]:
    """The context without the attributes, of it and of its records, that no rule reads: the engine takes longer to
    parse them than to decide."""
    if () in reads:
        return context
    names = {path[0] for path in reads}
    return {
        name: {key: each for key, each in value.items() if (name, key) in reads}
        if isinstance(value, dict) and (name,) not in reads
        else value
        for name, value in context.items()
        if name in names
    }


def _request(
    part: _Slice, tool: str, principal: Principal, arguments: Mapping[str, Any], context: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "principal": {"type": "Agent", "id": principal.agent},
        "action": {"type": "Action", "id": tool},
        "resource": {"type": "Tool", "id": tool},
        "context": msgspec.json.encode(
            _read({"arguments": show(part.arguments, arguments), **context}, part.reads)
        ).decode(),
    }


def _egress_request(part: _Slice, principal: Principal, where: Place, context: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "principal": {"type": "Agent", "id": principal.agent},
        "action": {"type": "Action", "id": EGRESS},
        "resource": {"type": "Destination", "id": where.id},
        "context": msgspec.json.encode(_read(dict(context), part.reads)).decode(),
    }


def work_of(node: Any) -> float:
    """The most comparisons that a rule, or a part of one, can need for each character of the context.

    The engine looks for the text after each wildcard place by place. Two places where the first k characters fit are at
    least as far apart as the period of those k, so k is reached at most once in so many places: `*curl *` needs 2.5 at
    worst, `*aaaaaaaa*` needs 8. Two values of the context compared with each other, or put into a set or a record, can
    be read whole. A constant is read at its own length, which the size of a rule bounds."""
    if isinstance(node, pst.Like):
        return work_of(node.base) + max(map(_search_work, _segments(node.pattern)), default=1.0)
    if isinstance(node, Mapping):
        return sum(map(work_of, node.values()), 0.0)
    if isinstance(node, tuple | list):
        return sum(map(work_of, node), 0.0)
    if not is_dataclass(node):
        return 0.0
    parts = [getattr(node, field.name) for field in fields(node)]
    whole = 0.0
    if isinstance(node, pst.BinaryOp) and node.op not in ("and", "or") and _reads(node.left) and _reads(node.right):
        whole = _WHOLE
    elif isinstance(node, pst.Set | pst.Record):
        elements = node.elements if isinstance(node, pst.Set) else [each for part in parts for each in _values(part)]
        whole = _WHOLE * sum(map(_reads, elements))
    return whole + work_of(parts)


def _reads(node: Any) -> bool:
    """Whether a part of a rule reads anything of the call."""
    if isinstance(node, pst.Var):
        return True
    parts = [getattr(node, field.name) for field in fields(node)] if is_dataclass(node) else _values(node)
    return any(map(_reads, parts))


def _values(part: Any) -> Sequence[Any]:
    return list(part.values()) if isinstance(part, Mapping) else part if isinstance(part, tuple | list) else ()


def _segments(pattern: Iterable[Any]) -> list[str]:
    found = [""]
    for element in pattern:
        if isinstance(element, pst.Wildcard):
            found.append("")
        else:
            found[-1] += element.value
    return found


def _search_work(text: str) -> float:
    work, borders = 1.0, [0] * len(text)  # borders[i]: the longest end of text[: i + 1] that is also its beginning
    for at in range(len(text)):
        border = borders[at - 1] if at else 0
        while border and text[at] != text[border]:
            border = borders[border - 1]
        borders[at] = border + (at > 0 and text[at] == text[border])
        work += 1 / (at + 1 - borders[at])
    return work


def _slice(applies: Sequence[tuple[Rule, pst.Template]], arguments: Record) -> _Slice:
    rules = [rule for rule, _ in applies]
    paths = {rule.id: frozenset(context_reads(node)) for rule, node in applies}
    policies = cedarpy.PolicySet.from_str(_join(rules))
    by_id = {rule.id: rule for rule in rules}
    named = {key: by_id[node.annotations["id"]] for key, node in policies.to_pst().static_policies.items()}
    if len(named) != len(rules):
        raise refuse("internal", "the policy engine read another number of rules than were checked")
    order = {rule.id: number for number, rule in enumerate(rules)}
    return _Slice(
        policies=policies,
        rules=dict(sorted(named.items(), key=lambda item: order[item[1].id])),
        arguments=arguments,
        reads=frozenset(path[:2] for each in paths.values() for path in each),
        paths=paths,
        work=sum(work_of(node) for _, node in applies),
    )


def _join(rules: Sequence[Rule]) -> str:
    return "\n".join(rule.source.text for rule in rules)


def _tool_entities(manifests: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    return [
        {
            "uid": {"type": "Tool", "id": manifest.id},
            "attrs": {"consequence": manifest.consequence, "digest": manifest.digest},
            "parents": [],
        }
        for manifest in manifests.values()
    ]


def _destination_entity(where: Place) -> dict[str, Any]:
    attributes = {"host": where.host, "port": where.port, "protocol": where.protocol}
    return {"uid": {"type": "Destination", "id": where.id}, "attrs": attributes, "parents": []}


def _principal_entities(principal: Principal, profile: str) -> list[dict[str, Any]]:
    owner = {"type": "Owner", "id": principal.owner}
    attributes = {"owner": principal.owner, "task": principal.task, "session": principal.session, "profile": profile}
    return [
        {"uid": owner, "attrs": {}, "parents": []},
        {"uid": {"type": "Agent", "id": principal.agent}, "attrs": attributes, "parents": [owner]},
    ]
