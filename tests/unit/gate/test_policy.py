"""Policies: whole or refused with a place, and every doubt a denial."""

from __future__ import annotations

import itertools
from typing import Any

import cedarpy
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runner.errors import Refusal, RunnerError
from runner.gate import policy
from runner.gate.policy import PolicyBundle, Verdict
from runner.gate.rules import MAX_BRACKETS, MAX_TOKENS, cut
from runner.gate.schema import Place
from runner.gate.verdict import PRECEDENCE, strongest
from runner.model import Effect, Manifest, Principal

WHO = Principal(agent="a", owner="o", task="t", session="s")
CONTEXT = {
    "session": {"calls": 0, "denied": 0, "tools": (), "untrusted": 0, "original_request": ""},
    "peer_uid": 1000,
    "depth": 0,
}


def manifest(name: str, consequence: Any, properties: dict[str, Any], required: tuple[str, ...] = ()) -> Manifest:
    return Manifest(
        id=name,
        description="A tool.",
        consequence=consequence,
        profile="narrow",
        kind="python",
        digest=name * 2,
        code_digest="",
        parameters={
            "type": "object",
            "additionalProperties": False,
            "properties": properties,
            "required": list(required),
        },
        project={"shown": "String"} if "shown" in properties else {},
    )


TOOLS = {
    tool.id: tool
    for tool in (
        manifest(
            "run",
            "high",
            {
                "argv": {"type": "array", "items": {"type": "string"}},
                "count": {"type": "integer"},
                "union": {"type": ["string", "null"]},
                "shown": {"type": ["string", "null"]},
                "ratio": {"type": "number"},
            },
            ("argv",),
        ),
        manifest("read", "low", {"path": {"type": "string"}}, ("path",)),
    )
}


def bundle(*texts: str) -> PolicyBundle:
    return PolicyBundle.compile({f"{number}.cedar": text.encode() for number, text in enumerate(texts)}, TOOLS)


def ask(made: PolicyBundle, tool: str = "run", arguments: dict[str, Any] | None = None, **context: Any) -> Verdict:
    given_ = arguments if arguments is not None else {"argv": ["ls"]} if tool == "run" else {"path": "x"}
    return made.evaluate(tool, WHO, "default", given_, {**CONTEXT, **context})


def refusal(*texts: str) -> Refusal:
    with pytest.raises(RunnerError) as caught:
        bundle(*texts)
    return caught.value.refused


ALL = '@id("all") permit(principal, action, resource);'


# --- what decides --------------------------------------------------------------------------------------------


def test_nothing_permits_nothing() -> None:
    for made in (bundle(), bundle(""), bundle("// only a comment")):
        verdict = ask(made)
        assert (verdict.effect, verdict.rules) == ("deny", ())
    assert ask(bundle(ALL)).effect == "allow"


def test_a_tool_that_the_bundle_does_not_know_is_denied() -> None:
    assert ask(bundle(ALL), "other").effect == "deny"


def test_a_denial_by_default_names_what_did_not_match() -> None:
    made = bundle('@id("few") @reason("only ls") permit(principal, action == Action::"run", resource) when { false };')
    verdict = ask(made)
    assert (verdict.effect, verdict.rules) == ("deny", ())
    assert "few" in verdict.reason
    assert verdict.allowed == "only ls"


def test_a_forbid_gives_its_reason() -> None:
    made = bundle(ALL, '@id("no") @reason("read instead") forbid(principal, action == Action::"run", resource);')
    assert ask(made) == Verdict(effect="deny", reason="read instead", rules=("no",))
    assert ask(made, "read").effect == "allow"


def test_every_forbid_that_matched_is_named_in_file_order() -> None:
    made = bundle(
        '@id("b") forbid(principal, action, resource);' + ALL, '@id("a") forbid(principal, action, resource);'
    )
    assert ask(made).rules == ("b", "a")


@pytest.mark.parametrize("decision", ["step_up", "defer"])
def test_a_permit_can_ask_for_more_than_allow(decision: str) -> None:
    made = bundle(ALL, f'@id("more") @decision("{decision}") @reason("ask") permit(principal, action, resource);')
    assert ask(made) == Verdict(effect=decision, reason="ask", rules=("more",))  # type: ignore[arg-type] # one of the effects


OBLIGES = '@id("obliges") @labels("injected=block, pii = redact") permit(principal, action, resource) when { %s };'


def test_a_permit_obliges_and_a_wider_one_beside_it_lifts_nothing() -> None:
    verdict = ask(bundle(ALL, OBLIGES % "true"))
    assert verdict.effect == "modify"
    assert verdict.obligations == ("injected=block", "pii=redact")
    free = ask(bundle(ALL, OBLIGES % "false"))
    assert (free.effect, free.obligations) == ("allow", ())


def test_an_obligation_denies_no_request_that_goes_out() -> None:
    made = bundle(ALL, OBLIGES % "true")
    found = made.evaluate_egress(WHO, "default", Place("a.example:443", "a.example", 443, "https"), dict(CONTEXT))
    assert (found.effect, found.obligations) == ("allow", ())


RULES: dict[Effect, str] = {
    "deny": '@id("deny") forbid(principal, action, resource);',
    "defer": '@id("defer") @decision("defer") permit(principal, action, resource);',
    "step_up": '@id("step_up") @decision("step_up") permit(principal, action, resource);',
    "allow": '@id("allow") @decision("allow") permit(principal, action, resource);',
}


@pytest.mark.parametrize("chosen", range(1 << len(RULES)))
def test_precedence_table(chosen: int) -> None:
    """Every set of matching rules in every order: deny, defer, step_up, allow; none at all is deny (P09)."""
    effects = [effect for number, effect in enumerate(RULES) if chosen >> number & 1]
    order = ["deny", "defer", "step_up", "allow"]
    want = next((effect for effect in order if effect in effects), "deny")
    for texts in itertools.permutations(RULES[effect] for effect in effects):
        verdict = ask(bundle(*texts))
        assert verdict.effect == want
        assert verdict.rules == ((want,) if effects else ())


@pytest.mark.parametrize("chosen", range(1 << len(PRECEDENCE)))
def test_strongest_is_total_over_all_five(chosen: int) -> None:
    effects = [effect for number, effect in enumerate(PRECEDENCE) if chosen >> number & 1]
    order = ["deny", "defer", "step_up", "modify", "allow"]
    assert strongest(reversed(effects)) == next((effect for effect in order if effect in effects), "deny")


# --- what a rule sees ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "hit", "miss"),
    [
        ('context.arguments.argv_text like "sh -c *rm*"', {"argv": ["sh", "-c", "rm x"]}, {"argv": ["rm", "-c", "sh"]}),
        ('context.arguments.argv.contains("-f")', {"argv": ["x", "-f"]}, {"argv": ["x", "-ff"]}),
        ("context.arguments has count && context.arguments.count > 3", {"argv": [], "count": 4}, {"argv": []}),
        (
            'context.arguments has ratio && context.arguments.ratio.greaterThan(decimal("0.5"))',
            {"argv": [], "ratio": 0.5001},
            {"argv": [], "ratio": 0.5},
        ),
        (
            'context.arguments has shown && context.arguments.shown == "x"',
            {"argv": [], "shown": "x"},
            {"argv": [], "shown": None},
        ),
    ],
)
def test_arguments(condition: str, hit: dict[str, Any], miss: dict[str, Any]) -> None:
    made = bundle(ALL, f'@id("no") forbid(principal, action == Action::"run", resource) when {{ {condition} }};')
    assert ask(made, arguments=hit).rules == ("no",)
    assert ask(made, arguments=miss).effect == "allow"


@pytest.mark.parametrize(
    ("condition", "context"),
    [
        ("context.session.calls > 2", {"session": {**CONTEXT["session"], "calls": 3}}),  # type: ignore[dict-item] # a literal
        ('context.session.tools.contains("read")', {"session": {**CONTEXT["session"], "tools": ("read",)}}),  # type: ignore[dict-item] # a literal
        ("context.depth > 0", {"depth": 1}),
        ("context.peer_uid == 0", {"peer_uid": 0}),
    ],
)
def test_context(condition: str, context: dict[str, Any]) -> None:
    made = bundle(ALL, f'@id("no") forbid(principal, action, resource) when {{ {condition} }};')
    assert ask(made).effect == "allow"
    assert ask(made, **context).rules == ("no",)


@pytest.mark.parametrize(
    "scope",
    [
        'principal == Agent::"a", action, resource',
        'principal in Owner::"o", action, resource',
        'principal, action in Action::"high", resource',
        'principal, action in Action::"any", resource',
        'principal, action in [Action::"read", Action::"run"], resource',
        'principal, action, resource == Tool::"run"',
        "principal is Agent, action, resource is Tool",
    ],
)
def test_scopes(scope: str) -> None:
    assert ask(bundle(f'@id("yes") permit({scope});')).rules == ("yes",)


@pytest.mark.parametrize(
    "scope",
    [
        'principal == Agent::"b", action, resource',
        'principal in Owner::"p", action, resource',
        'principal, action in Action::"low", resource',
        'principal, action == Action::"read", resource',
        'principal, action, resource == Tool::"read"',
    ],
)
def test_scopes_that_are_elsewhere(scope: str) -> None:
    assert ask(bundle(f'@id("yes") permit({scope});')).effect == "deny"


def test_principal_attributes_come_from_the_root_token() -> None:
    made = bundle(
        '@id("yes") permit(principal, action, resource)'
        ' when { principal.owner == "o" && principal.task == "t" }'
        ' when { principal.session == "s" && principal.profile == "default" };'
    )
    assert ask(made).effect == "allow"
    other = Principal(agent="a", owner="o", task="u", session="s")
    assert made.evaluate("run", other, "default", {"argv": []}, CONTEXT).effect == "deny"
    assert made.evaluate("run", WHO, "other", {"argv": []}, CONTEXT).effect == "deny"


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a\\", 'x", "id": "root', "é", 'Agent::"root"'])
def test_a_name_is_data(name: str) -> None:
    made = bundle('@id("yes") permit(principal == Agent::"root", action, resource);')
    who = Principal(agent=name, owner="root", task="t", session="s")
    assert made.evaluate("run", who, "default", {"argv": []}, CONTEXT).effect == "deny"


def test_more_principals_than_are_kept() -> None:
    made = bundle('@id("yes") permit(principal == Agent::"a7", action, resource);')
    for number in range(2100):
        who = Principal(agent=f"a{number % 1050}", owner="o", task="t", session="s")
        verdict = made.evaluate("read", who, "default", {"path": "x"}, CONTEXT)
        assert (verdict.effect == "allow") == (number % 1050 == 7)


# --- doubt is denial -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", ["permit", "forbid"])
def test_a_rule_that_cannot_be_evaluated_denies_and_is_named(effect: str) -> None:
    condition = "context.arguments has count && context.arguments.count * 9223372036854775807 > 1"
    text = f'@id("sum") {effect}(principal, action == Action::"run", resource) when {{ {condition} }};'
    made = bundle(ALL, text)
    assert ask(made, arguments={"argv": [], "count": 0}).effect == "allow"
    verdict = ask(made, arguments={"argv": [], "count": 2})
    assert (verdict.effect, verdict.rules) == ("deny", ("sum",))
    assert verdict.errors
    assert "could not be evaluated" in verdict.reason
    assert "`sum`" in verdict.reason


def _answer(decision: str, reason: list[str], errors: list[str]) -> Any:
    return cedarpy.AuthzResult({"decision": decision, "diagnostics": {"reason": reason, "errors": errors}})


@pytest.mark.parametrize(
    ("answer", "rules"),
    [
        (_answer("Allow", ["policy0"], ["error while evaluating policy `policy0`: overflow"]), ("all",)),
        (_answer("Allow", ["policy0"], ["something else"]), ()),
        (_answer("NoDecision", [], []), ()),
        (_answer("NoDecision", ["policy0"], ["failed to build request"]), ()),
        (_answer("Allow", [], []), ()),
        (_answer("Allow", ["policy7"], []), ()),
        (_answer("Allow", ["policy0", "policy7"], []), ()),
        (_answer("Deny", ["policy0"], ["x"]), ()),
    ],
)
def test_no_answer_of_the_engine_but_a_clean_allow_allows(
    monkeypatch: pytest.MonkeyPatch, answer: Any, rules: tuple[str, ...]
) -> None:
    made = bundle(ALL)
    monkeypatch.setattr(cedarpy, "is_authorized", lambda *_, **__: _answer("Allow", ["policy0"], []))
    assert ask(made).effect == "allow"
    monkeypatch.setattr(cedarpy, "is_authorized", lambda *_, **__: answer)
    verdict = ask(made)
    assert (verdict.effect, verdict.rules) == ("deny", rules)
    assert verdict.errors


class PanicException(BaseException):
    """As pyo3 raises it: no Exception."""


@pytest.mark.parametrize("error", [ValueError("x"), PanicException("x"), RecursionError("x"), KeyError("decision")])
def test_an_engine_that_fails_denies(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    made = bundle(ALL)
    monkeypatch.setattr(policy.cedarpy, "is_authorized", fail)
    verdict = ask(made)
    assert verdict.effect == "deny"
    assert type(error).__name__ in verdict.reason


def test_an_interrupt_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    made = bundle(ALL)
    monkeypatch.setattr(policy.cedarpy, "is_authorized", fail)
    with pytest.raises(KeyboardInterrupt):
        ask(made)


# --- what does not load ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("permit(principal, action, resource);", "1:1", "no @id"),
        ('@id("") permit(principal, action, resource);', "1:2", "must match"),
        ('@id("a b") permit(principal, action, resource);', "1:2", "must match"),
        ("@id permit(principal, action, resource);", "1:2", "must match"),
        (f"{ALL}\n\n  {ALL}", "3:3", "also the id of the rule at policies/0.cedar:1:1"),
        (f'{ALL}\n@id("b")\n@labels("injected")\npermit(principal, action, resource);', "3:2", "obliges to nothing"),
        (f'{ALL}\n@id("b")\n@labels("pii=eat")\npermit(principal, action, resource);', "3:2", "obliges to nothing"),
        (
            f'{ALL}\n@id("b")\n@labels("secret=allow")\npermit(principal, action, resource);',
            "3:2",
            "obliges to nothing",
        ),
        (f'{ALL}\n@id("b")\n@labels("pii=block")\nforbid(principal, action, resource);', "3:2", "obliges to nothing"),
        (f'{ALL}\n@id("b")\n@owner("x")\npermit(principal, action, resource);', "3:2", "unknown annotation"),
        ('@id("a") @decision("maybe") permit(principal, action, resource);', "1:11", "not allow, step_up or defer"),
        ('@id("a") @decision("deny") permit(principal, action, resource);', "1:11", "not allow, step_up or defer"),
        ('@id("a") @decision("modify") permit(principal, action, resource);', "1:11", "not allow, step_up or defer"),
        ('@id("a") @decision("allow") forbid(principal, action, resource);', "1:11", "only a permit"),
        (f'@id("a") @reason("{"x" * 301}") permit(principal, action, resource);', "1:11", "at most 300"),
        ('@id("a") @reason("x\\n") permit(principal, action, resource);', "1:11", "printable"),
        ('@id("a") @id("b") permit(principal, action, resource);', "1:2", "duplicate annotation"),
        ('@id("a")\npermit(principal, action, resource) when { 1 == };', "2:49", "unexpected token `}`"),
        ('@id("a")\npermit(principal action, resource);', "2:18", "unexpected token"),
        ('@id("a") permit(principal, action, resource) when { true }', "1:59", "does not end"),
        ('@id("a") permit(principal, action, resource) when { "x };', "1:53", "invalid token"),
        ('@id("a") permit(principal, action, resource) when { "é" == # };', "1:60", "invalid token"),
        ('@id("a") permit(principal, action, resource) when { who == 1 };', "1:53", "invalid variable: who"),
        ('@id("a") permit(principal == ?principal, action, resource);', "1:1", "template"),
        ('@id("a") /* c */ permit(principal, action, resource);', "1:10", "unexpected token"),
        (";", "1:1", "not Cedar"),
        ("x", "1:2", "does not end"),
    ],
)
def test_a_broken_file_is_one_error_with_its_place(text: str, place: str, says: str) -> None:
    refused = refusal(text)
    assert refused.code == "policy"
    assert refused.field == f"policies/0.cedar:{place}"
    assert says in refused.reason
    assert refused.next_step


RUN = 'action == Action::"run", resource'


@pytest.mark.parametrize(
    ("rule", "at", "says", "hint"),
    [
        (f'{RUN}) when {{ context.arguments.union == "x" }}', "union", "`arguments.union`", "[project]"),
        (f"{RUN}) when {{ context.arguments.nothing == 1 }}", "nothing", "`arguments.nothing`", "policy schema"),
        (f"{RUN}) when {{ context.arguments.count == 1 }}", "count", "optional", "context.arguments has count"),
        (
            'action in Action::"any", resource) when { context.arguments.path == "x" }',
            "path",
            "`arguments.path`",
            "policy schema",
        ),
        ("action, resource) when { context.arguments has path }", "arguments", "`arguments`", 'Action::"any"'),
        ('action, resource) when { resource.consequence == "low" }', "consequence", "`consequence`", 'Action::"any"'),
        (
            'action == Action::"egress", resource) when { context.method == "GET" }',
            "method",
            "optional",
            "`context has method",
        ),
        ('action == Action::"egress", resource) when { context.query == "x" }', "query", "`query`", "policy schema"),
        ('action == Action::"write", resource)', "@", "unrecognized action", "policy schema"),
        (f'{RUN} == Robot::"x")', "@", "unrecognized entity type", "policy schema"),
        (f'{RUN}) when {{ context.arguments.argv == "x" }}', "@", "", "policy schema"),
        (f"{RUN}) when {{ principal.admin }}", "admin", "`admin`", "policy schema"),
    ],
)
def test_a_rule_that_names_what_policy_cannot_see_is_refused(rule: str, at: str, says: str, hint: str) -> None:
    line = f'@id("a") forbid(principal, {rule};'
    refused = refusal(ALL + "\n" + line)
    assert (refused.code, refused.field) == ("policy", f"policies/0.cedar:2:{line.index(at) + 1}")
    assert refused.reason.startswith("rule a: ")
    assert says in refused.reason
    assert hint in refused.next_step


@pytest.mark.parametrize(
    "body",
    [
        "(" * 100_000 + "true" + ")" * 100_000,
        "[" * 5_000 + "]" * 5_000 + " == []",
        " && ".join(["true"] * 50_000),
        "if true then true else " * 50_000 + "true",
        "context" + ".a" * 50_000,
        "// hidden \r" + "(" * 100_000 + "true" + ")" * 100_000,
    ],
)
def test_a_rule_that_would_take_the_engine_down_is_refused_before_it_sees_it(body: str) -> None:
    refused = refusal(f'@id("a") permit(principal, action, resource) when {{ {body} }};')
    assert refused.field.startswith("policies/0.cedar:1:")
    assert f"{MAX_TOKENS} words" in refused.reason


def test_a_rule_nested_deeper_than_the_engine_evaluates_is_refused() -> None:
    body = " && ".join(["true"] * 200)
    assert "nesting" in refusal(f'@id("a") permit(principal, action, resource) when {{ {body} }};').reason


def test_a_rule_at_the_bound_of_brackets_loads() -> None:
    body = "(" * (MAX_BRACKETS - 2) + "true" + ")" * (MAX_BRACKETS - 2)
    assert ask(bundle(f'@id("a") permit(principal, action, resource) when {{ {body} }};')).effect == "allow"


def test_one_broken_file_among_whole_ones_loads_nothing() -> None:
    assert refusal(ALL, "permit(").field == "policies/1.cedar:1:8"


def test_bytes_that_are_not_text() -> None:
    with pytest.raises(RunnerError) as caught:
        PolicyBundle.compile({"a.cedar": b"// \n\xff"}, TOOLS)
    assert caught.value.refused.field == "policies/a.cedar:2"


def test_strings_and_comments_do_not_cut_rules() -> None:
    made = bundle(
        '// a; b\n@id("one") @reason("yes; really // not a comment") permit(principal, action, resource) // ; \n'
        'when { "a;\\"}" like "a;*" };\n@id("two") permit(principal, action, resource);'
    )
    assert [rule.id for rule in made.all_rules] == ["one", "two"]
    assert ask(made).rules == ("one", "two")


PIECES = [
    "// a comment", "// a; \" b", "\r", "\n", "\r\n", "\t", " ", "\x0b", "\x85", "\u2028", "//", "/", ";", '"',
    '@id("a")', '@reason("x; // y")', "permit (principal, action, resource)", 'when { "\\"//;" like "*" };', ";",
    "forbid (principal, action, resource);", "permit (principal, action, resource);", "é",
]  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@example("// a comment\rforbid (principal, action, resource);\npermit (principal, action, resource);")
def test_no_rule_of_a_file_is_lost_in_cutting_it(text: str) -> None:
    """Where a file parses as a whole, it has as many rules for the engine as are cut from it."""
    try:
        whole = len(cedarpy.PolicySet.from_str(text).to_pst().static_policies)
    except ValueError:
        return  # it is refused here too, or one of its rules is: the engine reads each of them alone
    assert len(cut("a.cedar", text.encode())) == whole


def test_a_comment_ends_at_a_carriage_return() -> None:
    text = f'// no writes\r@id("no") forbid(principal, action, resource);\r\n{ALL}'
    assert [rule.id for rule in bundle(text).all_rules] == ["no", "all"]


def test_the_digest_is_of_names_and_bytes() -> None:
    one = PolicyBundle.compile({"a.cedar": ALL.encode()}, TOOLS).digest
    assert one == PolicyBundle.compile({"a.cedar": ALL.encode()}, TOOLS).digest
    assert one != PolicyBundle.compile({"b.cedar": ALL.encode()}, TOOLS).digest
    assert one != PolicyBundle.compile({"a.cedar": ALL.encode() + b"\n"}, TOOLS).digest


# --- slices --------------------------------------------------------------------------------------------------------

SCOPES = st.sampled_from(
    [
        "action",
        'action == Action::"run"',
        'action == Action::"read"',
        'action in Action::"low"',
        'action in Action::"high"',
        'action in Action::"any"',
        'action in [Action::"low", Action::"medium"]',
        'action in [Action::"run", Action::"read"]',
        'action in [Action::"medium"]',
    ]
)
RESOURCES = st.sampled_from(
    ["resource", 'resource == Tool::"run"', 'resource == Tool::"read"', "resource is Tool", 'resource in Tool::"run"']
)
CONDITIONS = st.sampled_from(["", "when { context.depth == 0 }", "unless { context.depth == 0 }"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["permit", "forbid"]), SCOPES, RESOURCES, CONDITIONS), max_size=6))
def test_a_slice_decides_as_the_whole_set_does(rules: list[tuple[str, str, str, str]]) -> None:
    text = "\n".join(
        f'@id("r{number}") {effect}(principal, {action}, {resource}) {condition};'
        for number, (effect, action, resource, condition) in enumerate(rules)
    )
    try:
        made = bundle(text)
    except RunnerError as error:  # a scope that no tool can meet does not validate
        if error.refused.code != "policy":
            raise
        return
    for tool, arguments in (("run", {"argv": []}), ("read", {"path": "x"})):
        request = {
            "principal": 'Agent::"a"',
            "action": f'Action::"{tool}"',
            "resource": f'Tool::"{tool}"',
            "context": {"arguments": arguments, **CONTEXT},
        }
        groups = [{"type": "Action", "id": group} for group in (TOOLS[tool].consequence, "any")]
        entities = [{"uid": {"type": "Action", "id": tool}, "attrs": {}, "parents": groups}]
        whole = cedarpy.is_authorized(request, text, entities)
        verdict = ask(made, tool, arguments)
        assert (verdict.effect == "allow") == whole.allowed
        assert set(verdict.rules) == set(whole.diagnostics.id_annotations_by_reason.values())


# --- the context that the engine is given --------------------------------------------------------------------

CONDITIONS = (
    "context.session.denied > 1",
    'context["session"]["den\\u{69}ed"] > 1',
    "context has session.untrusted && context.session.untrusted > 1",
    "context.session has calls && context.depth > 1",
    "(if context.depth > 1 then context.session else context.session).denied > 1",
    "[context.session].contains(context.session) && context.peer_uid > 1",
    '{"a": context.depth}.a > 1',
    "context == context && context.session.calls > 1",
    "context.session == context.session && context.depth > 1",
    'context.session.tools.contains("run") && context.session.original_request like "x*"',
    'context.arguments.argv.contains("x") || context.arguments.argv_text like "* x"',
    "context.arguments has count && context.arguments.count > 1",
    'principal in Owner::"o" && resource.consequence == "high"',
)


@given(
    st.lists(st.sampled_from(CONDITIONS), min_size=1, max_size=3),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.fixed_dictionaries({name: st.integers(0, 3) for name in ("calls", "denied", "untrusted")}),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([{"argv": ["ls"]}, {"argv": ["ls", "x"]}, {"argv": ["ls"], "count": 3}]),
)
@settings(max_examples=60, deadline=None)
def test_what_no_rule_reads_changes_no_verdict(
    conditions: list[str],
    forbids: list[bool],
    counts: dict[str, int],
    depth: int,
    peer: int,
    arguments: dict[str, Any],
) -> None:
    rules = [
        f'@id("r{number}") {"forbid" if forbid else "permit"} (principal, action == Action::"run", resource)'
        f" when {{ {condition} }} unless {{ {condition} && context.depth == 3 }};"
        for number, (condition, forbid) in enumerate(zip(conditions, forbids, strict=False))
    ]
    made = bundle(*rules, '@id("base") permit (principal, action, resource);')
    context = {
        "session": {**counts, "tools": ("run",), "original_request": "x"},
        "peer_uid": peer,
        "depth": depth,
    }
    told = made.evaluate("run", WHO, "default", arguments, context)
    whole = bundle(*rules, '@id("base") permit (principal, action, resource) unless { context != context };')
    assert whole._slices["run"].reads >= {()}
    assert told == whole.evaluate("run", WHO, "default", arguments, context)


def test_the_engine_is_given_what_the_rules_read(monkeypatch: pytest.MonkeyPatch) -> None:
    given_to: list[Any] = []
    decide = cedarpy.is_authorized
    monkeypatch.setattr(
        cedarpy, "is_authorized", lambda request, *rest: given_to.append(request) or decide(request, *rest)
    )
    rule = '@id("r") permit (principal, action == Action::"run", resource) when {{ {} }};'
    for condition, seen in (
        ("true", {}),
        ("context.session.denied < 9", {"session": {"denied": 0}}),
        ("context.depth == 0", {"depth": 0}),
        ('context.arguments.argv_text == "ls"', {"arguments": {"argv_text": "ls"}}),
    ):
        assert ask(bundle(rule.format(condition))).effect == "allow"
        assert msgspec.json.decode(given_to.pop()["context"]) == seen


# --- bounded work --------------------------------------------------------------------------------------------------


def _comparisons(segment: str, text: str) -> int:
    """What looking for `segment` place by place costs."""
    count = 0
    for start in range(len(text)):
        for at, char in enumerate(segment):
            count += 1
            if start + at >= len(text) or text[start + at] != char:
                break
    return count


@given(st.text("ab", max_size=12), st.text("ab", max_size=60))
def test_the_work_of_a_pattern_bounds_what_looking_for_it_costs(segment: str, text: str) -> None:
    assert _comparisons(segment, text) <= policy._search_work(segment) * len(text) + len(segment)


@pytest.mark.parametrize(
    ("pattern", "work"), [("*aaaaaaaa*", 9.0), ("*abcd*", 3.1), ("*curl *wget *", 3.3), ("*", 1.0)]
)
def test_work_of_patterns(pattern: str, work: float) -> None:
    made = bundle(ALL, f'@id("p") forbid(principal, {RUN}) when {{ context.arguments.argv_text like "{pattern}" }};')
    assert made._slices["run"].work == pytest.approx(work, abs=0.05)
    assert made._slices["read"].work == 0


@pytest.mark.parametrize(
    ("condition", "work"),
    [
        ('context.arguments.argv.contains("x") && principal in Owner::"o"', 0.0),
        ("context.arguments.argv == context.session.tools", 2.0),
        ("context.arguments.argv.containsAll(context.session.tools) || context.depth > context.peer_uid", 4.0),
        ("[context.depth, 1].contains(context.peer_uid)", 4.0),
        ('{"a": context.arguments.argv}.a.contains("x")', 2.0),
        ('if context.depth > 1 then "a" like "b" else context.arguments.argv_text like "*"', 2.0 + 1.0),
    ],
)
def test_work_of_what_reads_values_whole(condition: str, work: float) -> None:
    made = bundle(ALL, f'@id("p") forbid(principal, {RUN}) when {{ {condition} }};')
    assert made._slices["run"].work == pytest.approx(work)


def test_text_on_which_patterns_could_take_too_long_is_denied_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many comparisons as the text and the patterns could need, not as many seconds: every machine agrees."""
    asked: list[Any] = []
    decide = cedarpy.is_authorized
    monkeypatch.setattr(cedarpy, "is_authorized", lambda *given_: asked.append(given_) or decide(*given_))
    hostile = "*" + "a" * 3000 + "b*"
    made = bundle(ALL, f'@id("p") forbid(principal, {RUN}) when {{ context.arguments.argv_text like "{hostile}" }};')
    assert ask(made, arguments={"argv": ["a" * 1000]}).effect == "allow"
    assert len(asked) == 1
    verdict = ask(made, arguments={"argv": ["a" * (policy.MAX_WORK // 3000)]})
    assert (verdict.effect, bool(verdict.errors), len(asked)) == ("deny", True, 1)
    # A rule that reads another argument is not concerned.
    other = bundle(ALL, f'@id("p") forbid(principal, {RUN}) when {{ principal.task like "{hostile}" }};')
    assert ask(other, arguments={"argv": ["a" * (policy.MAX_WORK // 3000)]}).effect == "allow"
