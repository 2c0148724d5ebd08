"""The decision on one call: the order of denials, what each says, and that nothing ever escapes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import CODES, refuse
from runner.gate.arguments import Arguments
from runner.gate.authorize import Question, SessionView, authorize, decide
from runner.gate.policy import PolicyBundle, Verdict
from runner.model import Authenticated, Ceilings, Manifest, Peer, Principal, TaskProfile, ToolCall

MANIFEST = Manifest(
    id="read",
    description="Reads.",
    consequence="low",
    profile="narrow",
    kind="python",
    digest="d",
    code_digest="",
    parameters={
        "type": "object",
        "additionalProperties": False,
        "properties": {"path": {"type": "string"}, "ratio": {"type": "number"}, "n": {"type": "integer"}},
        "required": ["path"],
    },
    paths={"path": "read"},
)
TOOLS = {"read": MANIFEST, "other": msgspec.structs.replace(MANIFEST, id="other", digest="e")}
POLICY = """
@id("reads") @reason("reading is open") permit(principal, action, resource);
@id("secret") @reason("not that folder") forbid(principal, action in Action::"any", resource)
when { context.arguments.path like "/workspace/secret/*" };
@id("busy") forbid(principal, action, resource) when { context.session.calls >= 10 };
@id("ask") @decision("step_up") permit(principal, action, resource) when { context.session.original_request == "ask" };
@id("wait") @decision("defer") permit(principal, action, resource) when { context.peer_uid == 7 };
"""


class Catalogue:
    """What authorize needs of one generation."""

    def __init__(self) -> None:
        self.tools = TOOLS
        self.task_profiles = {
            "default": TaskProfile(
                name="default", description="", digest="", image="i", seccomp="s", ceilings=Ceilings(), tools=("read",)
            )
        }
        self.arguments = Arguments(TOOLS.values())


CATALOGUE = Catalogue()
POLICIES = PolicyBundle.compile({"p.cedar": POLICY.encode()}, TOOLS)
WHO = Principal(agent="a", owner="o", task="t", session="s")


def question(tool: str = "read", profile: str = "default", uid: int = 1000, **arguments: Any) -> Question:
    return Question(principal=WHO, tool=tool, arguments=arguments or {"path": "x"}, profile=profile, peer_uid=uid)


def authenticated(asked: Question) -> Authenticated:
    return Authenticated(
        call=ToolCall(number=1, proof="", peer=Peer(uid=asked.peer_uid, pid=1)),
        principal=asked.principal,
        tool=asked.tool,
        arguments=asked.arguments,
        constraints={},
        chain=("j",),
        leaf_digest="l",
        proof_id="p",
        profile=asked.profile,
        expires=0,
    )


TABLE = [
    (question(), {}, "allow", "", ("reads",), "reading is open", ""),
    (question("nothing"), {}, "deny", "unknown_tool", (), "no tool `nothing`", ""),
    (question("egress"), {}, "deny", "unknown_tool", (), "no tool `egress`", ""),
    (question("other"), {}, "deny", "not_granted", (), "does not hold tool `other`", ""),
    (question(profile="night"), {}, "deny", "not_granted", (), "`night`, which does not exist", ""),
    (question(path=7), {}, "deny", "arguments", (), "not of type", "path"),
    (question(path="x", ratio=0.00001), {}, "deny", "arguments", (), "four decimal places", "ratio"),
    (question(path="x", n=1.0), {}, "deny", "arguments", (), "written with a fraction", "n"),
    (question(path="secret/a"), {}, "deny", "denied", ("secret",), "not that folder", ""),
    (question(path="b/../secret//a"), {}, "deny", "denied", ("secret",), "not that folder", ""),
    (question(), {"calls": 10}, "deny", "denied", ("busy",), "rule busy forbids", ""),
    (question(), {"original_request": "ask"}, "step_up", "", ("ask",), "rule ask", ""),
    (question(uid=7), {"original_request": "ask"}, "defer", "", ("wait",), "rule wait", ""),
    (question(uid=7), {"calls": 10}, "deny", "denied", ("busy",), "rule busy forbids", ""),
    # the order of denials: a tool that does not exist, before a profile, before arguments, before policy
    (question("nothing", "night", path=7), {"calls": 10}, "deny", "unknown_tool", (), "", ""),
    (question("other", "night", path=7), {"calls": 10}, "deny", "not_granted", (), "does not exist", ""),
    (question("other", path=7), {"calls": 10}, "deny", "not_granted", (), "does not hold", ""),
    (question(path=7), {"calls": 10}, "deny", "arguments", (), "", "path"),
]


@pytest.mark.parametrize(("asked", "session", "effect", "code", "rules", "says", "field"), TABLE)
def test_the_table(
    asked: Question, session: dict[str, Any], effect: str, code: str, rules: tuple[str, ...], says: str, field: str
) -> None:
    decision = decide(asked, SessionView(**session), CATALOGUE, POLICIES)
    assert (decision.effect, decision.code, decision.rules, decision.field) == (effect, code, rules, field)
    assert says in decision.reason
    assert decision.policy == POLICIES.digest
    assert not code or code in CODES
    assert authorize(authenticated(asked), SessionView(**session), CATALOGUE, POLICIES) == decision


def test_a_denial_says_what_would_be_allowed() -> None:
    assert decide(question("other"), SessionView(), CATALOGUE, POLICIES).allowed == "read"
    assert "path" in decide(question(path="x", y=1), SessionView(), CATALOGUE, POLICIES).allowed


class Broken:
    """A part of which every attribute fails."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError("a secret detail")


class Policies:
    """Policies that answer, or fail, as a test wants."""

    digest = "p" * 64

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def evaluate(self, *_: Any) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("catalogue", "policies"),
    [
        (Broken(), POLICIES),
        (None, POLICIES),
        (CATALOGUE, Broken()),
        (CATALOGUE, None),
        (CATALOGUE, Policies(RuntimeError("a secret detail"))),
        (CATALOGUE, Policies(RecursionError())),
        (CATALOGUE, Policies(UnicodeEncodeError("utf-8", "\ud800", 0, 1, "a secret detail"))),
        (CATALOGUE, Policies(refuse("internal", "x"))),
        (CATALOGUE, Policies(None)),
        (CATALOGUE, Policies(Verdict(effect="permit", reason=""))),  # type: ignore[arg-type] # what a defect could answer
        (CATALOGUE, Policies(Verdict(effect="ALLOW", reason=""))),  # type: ignore[arg-type] # what a defect could answer
        (CATALOGUE, Policies(Verdict(effect=["allow"], reason=""))),  # type: ignore[arg-type] # what a defect could answer
    ],
)
def test_a_part_that_is_missing_or_fails_is_a_denial(catalogue: Any, policies: Any) -> None:
    assert decide(question(), SessionView(), CATALOGUE, POLICIES).effect == "allow"
    for decision in (
        decide(question(), SessionView(), catalogue, policies),
        authorize(authenticated(question()), SessionView(), catalogue, policies),
    ):
        assert decision.effect == "deny"
        assert decision.code in CODES
        assert "a secret detail" not in decision.reason


@pytest.mark.parametrize("given_", [None, Broken(), 7])
def test_no_authentication_is_a_denial(given_: Any) -> None:
    assert authorize(given_, SessionView(), CATALOGUE, POLICIES).effect == "deny"
    assert decide(given_, SessionView(), CATALOGUE, POLICIES).effect == "deny"
    assert decide(question(), given_, CATALOGUE, POLICIES).effect == "deny"


def test_text_that_cannot_be_encoded_is_a_denial() -> None:
    assert decide(question(), SessionView(original_request="\ud800"), CATALOGUE, POLICIES).effect == "deny"


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(
    tool=st.sampled_from(["read", "other"]) | st.text(st.characters(codec=None)),
    profile=st.sampled_from(["default", "x"]) | st.text(st.characters(codec=None)),
    arguments=st.dictionaries(st.sampled_from(["path", "ratio", "n"]) | st.text(), ANY, max_size=4) | ANY,
    uid=st.integers(),
)
def test_every_question_has_a_decision(tool: str, profile: str, arguments: Any, uid: int) -> None:
    asked = Question(principal=WHO, tool=tool, arguments=arguments, profile=profile, peer_uid=uid)
    decision = decide(asked, SessionView(), CATALOGUE, POLICIES)
    if decision.effect == "deny":
        assert decision.code in CODES
        assert decision.reason
    else:
        assert (tool, profile) == ("read", "default")
        assert isinstance(arguments["path"], str)
    msgspec.json.encode(decision)


def test_the_same_question_has_the_same_decision() -> None:
    for asked, session, *_ in TABLE:
        first = decide(asked, SessionView(**session), CATALOGUE, POLICIES)
        again = PolicyBundle.compile({"p.cedar": POLICY.encode()}, TOOLS)
        assert decide(asked, SessionView(**session), Catalogue(), again) == first
