"""Constraints: what each type accepts, which pairs attenuate (every other is refused), and that no input raises."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.token import constraints as constraints_module
from runner.token.constraints import (
    KINDS,
    Work,
    check,
    confined_to,
    describe,
    normal_path,
    problem,
    subsumes,
)
from runner.token.jcs import canonical

BIG = 1152921504606847000  # as JSON writes the double 2^60
EXAMPLES = int(os.environ.get("RUNNER_PROPERTY_EXAMPLES", "1500"))


def c(kind: str, **members: Any) -> dict[str, Any]:
    return {"constraint_type": kind, **members}


WILD = c("wildcard")
SRC = c("path_containment", root="/workspace/src")


@pytest.mark.parametrize(
    ("constraint", "accepted", "refused"),
    [
        (c("exact", value=1), [1, 1.0], [True, "1", None, 2, [1]]),
        (c("exact", value="a"), ["a"], ["A", "a ", "", ["a"], {"a": 1}]),
        (c("exact", value=None), [None], [0, False, "", "null"]),
        (c("exact", value=True), [True], [1, "true"]),
        (c("range"), [0, -1e300, 2**53], ["0", None, True, [1], float("nan"), float("inf")]),
        (c("range", min=1, max=3), [1, 2.5, 3], [0.999, 3.001, True]),
        (c("range", min=1, min_inclusive=False, max=3, max_inclusive=False), [1.001, 2], [1, 3]),
        # One double, written in two ways; as `int` and `float` they differ in Python.
        (c("range", min=BIG, max=BIG), [BIG, float(BIG), float(2**60)], [BIG + 128, BIG + 1, float(BIG + 128)]),
        (c("exact", value=float(BIG)), [BIG, float(2**60)], [BIG + 128]),
        (c("one_of", values=["a", 1, [1, 2], {"b": 1}]), ["a", 1.0, [1.0, 2], {"b": 1}], [[2, 1], "1", True, {"b": 2}]),
        (c("not_one_of", excluded=["a", 1]), ["b", 2, "1", True, []], ["a", 1, 1.0]),
        (c("not_one_of", excluded=[]), [None, "a"], []),
        (c("contains", required=[1, "a"]), [[1, "a"], ["a", 1.0, 2]], [[1], "a1", {"1": 1, "a": 1}, None]),
        (c("subset", allowed=[1, "a"]), [[], [1, 1], ["a"]], [[2], "a", None, [[1]], {}]),
        (WILD, [None, [], {}, "x"], []),
        (c("all", constraints=[c("range", min=1), c("range", max=2)]), [1, 2], [0, 3]),
        (c("any", constraints=[c("exact", value=1), c("exact", value=5)]), [1, 5], [2]),
        (
            SRC,
            ["/workspace/src", "src", "src/", "/workspace/src/a/../b", "./src//a", "/x/../workspace/src/a"],
            [
                "/workspace",
                "/workspace/src2",
                "src/../x",
                "../src",
                "/src",
                "",
                "src\0",
                1,
                None,
                ["src"],
                "SRC",
                "~/src",
            ],
        ),
        (c("path_containment", root="/"), ["/", "a", "/etc/passwd"], ["", 1]),
    ],
)
def test_check(constraint: dict[str, Any], accepted: list[Any], refused: list[Any]) -> None:
    assert problem(constraint) == ""
    assert [value for value in accepted if not check(constraint, value)] == []
    assert [value for value in refused if check(constraint, value)] == []


# One constraint per type whose accepted values lie within PARENTS' of the same type, and one that does not.
PARENTS = {
    "exact": c("exact", value=5),
    "range": c("range", min=1, max=9),
    "one_of": c("one_of", values=[4, 5, 6]),
    "not_one_of": c("not_one_of", excluded=[1]),
    "contains": c("contains", required=[1]),
    "subset": c("subset", allowed=[1, 2]),
    "all": c("all", constraints=[c("range", min=1)]),
    "any": c("any", constraints=[c("exact", value=5), c("exact", value=6)]),
    "path_containment": SRC,
    "wildcard": WILD,
}
NARROWER = {
    "exact": c("exact", value=5),
    "range": c("range", min=2, max=9),
    "one_of": c("one_of", values=[5]),
    "not_one_of": c("not_one_of", excluded=[1, 2]),
    "contains": c("contains", required=[1, 2]),
    "subset": c("subset", allowed=[1]),
    "all": c("all", constraints=[c("range", min=1), c("range", max=3)]),
    "any": c("any", constraints=[c("exact", value=6)]),
    "path_containment": c("path_containment", root="/workspace/src/a"),
    "wildcard": WILD,
}
WIDER = {
    "exact": c("exact", value=6),
    "range": c("range", min=0, max=9),
    "one_of": c("one_of", values=[5, 7]),
    "not_one_of": c("not_one_of", excluded=[2]),
    "contains": c("contains", required=[2]),
    "subset": c("subset", allowed=[1, 3]),
    "all": c("all", constraints=[c("range", max=3)]),
    "any": c("any", constraints=[c("exact", value=6), c("exact", value=7)]),
    "path_containment": c("path_containment", root="/workspace"),
}
# The draft's table (§4.5) beside a type under itself, and §5.3: parents that take a fitting `exact`.
CROSS = {("range", "exact"), ("one_of", "exact")}


@pytest.mark.parametrize("parent", PARENTS)
@pytest.mark.parametrize("child", PARENTS)
def test_every_pair_of_types(parent: str, child: str) -> None:
    valid = parent in (child, "wildcard") or (parent, child) in CROSS
    assert subsumes(PARENTS[parent], NARROWER[child]) is valid


@pytest.mark.parametrize("kind", WIDER)
def test_wider_is_refused(kind: str) -> None:
    assert subsumes(PARENTS[kind], WIDER[kind]) is False


@pytest.mark.parametrize(
    ("parent", "child", "valid"),
    [
        (SRC, c("exact", value="src/a"), True),
        (SRC, c("exact", value="src/../a"), False),
        (SRC, c("exact", value=1), False),
        (c("range", max=3), c("exact", value=True), False),
        (c("range", max=3), c("exact", value=4), False),
        (c("one_of", values=["a"]), c("exact", value="b"), False),
        # facts of the draft's vectors J.15, J.16, J.17, J.18 (tenuo-ai/tenuo, ietf/vectors)
        (c("all", constraints=[WILD, WILD]), c("all", constraints=[c("exact", value=5)]), True),
        (c("all", constraints=[c("range", max=9)]), c("range", max=3), False),
        (
            c("any", constraints=[c("one_of", values=["pdf", "csv"])]),
            c("any", constraints=[c("exact", value="pdf")]),
            True,
        ),
        (c("any", constraints=[c("exact", value=5)]), c("exact", value=5), False),
        (c("any", constraints=[WILD]), c("all", constraints=[WILD]), False),
        (c("range", min=1), c("range", min=1, min_inclusive=False), True),
        (c("range", min=1, min_inclusive=False), c("range", min=1), False),
        (c("range", max=1, max_inclusive=False), c("range", max=1), False),
        (c("range", max=1), c("range"), False),
        (c("range"), c("range", min=1, max=2), True),
        (c("one_of", values=[1, 2]), c("not_one_of", excluded=[3]), False),
    ],
)
def test_pairs(parent: dict[str, Any], child: dict[str, Any], valid: bool) -> None:
    assert subsumes(parent, child) is valid


atoms = st.sampled_from(
    [0, 1, 2, 3, 1.5, BIG, float(BIG), True, None, "a", "b", "src/a", "/workspace/src", "/workspace/src/../x", ""]
)
values = atoms | st.lists(atoms, max_size=3)
paths = st.sampled_from(["/", "/workspace", "/workspace/src", "/workspace/src/../x", "/x"])
bounds = st.sampled_from([0, 1, 2, 3, 1.5, BIG, float(BIG)])


@st.composite
def ranges(draw: st.DrawFn) -> dict[str, Any]:
    made = c("range")
    for name in draw(st.sets(st.sampled_from(["min", "max"]))):
        made[name] = draw(bounds)
        if draw(st.booleans()):
            made[f"{name}_inclusive"] = draw(st.booleans())
    return made if problem(made) == "" else c("range")


simple = (
    st.builds(lambda value: c("exact", value=value), atoms)
    | ranges()
    | st.builds(lambda many: c("one_of", values=many), st.lists(values, min_size=1, max_size=4))
    | st.builds(lambda many: c("not_one_of", excluded=many), st.lists(values, max_size=3))
    | st.builds(lambda many: c("contains", required=many), st.lists(atoms, max_size=2))
    | st.builds(lambda many: c("subset", allowed=many), st.lists(atoms, max_size=4))
    | st.builds(lambda root: c("path_containment", root=root), paths)
    | st.just(WILD)
)
constraints = st.recursive(
    simple,
    lambda inner: st.builds(
        lambda kind, clauses: c(kind, constraints=clauses),
        st.sampled_from(["all", "any"]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=5,
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(constraints, constraints, st.lists(values, max_size=12))
def test_what_a_child_accepts_its_parent_accepts(
    parent: dict[str, Any], child: dict[str, Any], seen: list[Any]
) -> None:
    assert problem(parent) == problem(child) == ""
    if subsumes(parent, child):
        assert [value for value in seen if check(child, value) and not check(parent, value)] == []


@settings(max_examples=EXAMPLES // 3, deadline=None)
@given(constraints)
def test_a_constraint_subsumes_itself_and_wildcard_subsumes_it(constraint: dict[str, Any]) -> None:
    assert subsumes(constraint, constraint)
    assert subsumes(WILD, constraint)
    assert 0 < len(describe(constraint)) <= 400


hostile = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(list(KINDS)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["constraint_type", "value", "values", "excluded", "required", "allowed", "root", "min", "constraints"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@settings(max_examples=EXAMPLES // 3, deadline=None)
@given(hostile, hostile)
def test_hostile_input_never_raises(one: Any, other: Any) -> None:
    assert isinstance(problem(one), str)
    if isinstance(one, dict) and isinstance(other, dict):
        assert check(one, other) in (True, False)
        assert subsumes(one, other) in (True, False)
        assert describe(one)
        assert isinstance(confined_to(one), str)


@pytest.mark.parametrize(
    "constraint",
    [
        c("regex", pattern="x"),
        {},
        {"constraint_type": []},
        {"constraint_type": None},
        c("exact"),
        c("exact", value=[]),
        c("exact", value={}),
        c("exact", value=1, extra=1),
        c("range", min="1"),
        c("range", min=True),
        c("range", min=2, max=1),
        c("range", min_inclusive=True),
        c("range", min=1, min_inclusive=1),
        c("range", max=float("nan")),
        c("one_of", values=[]),
        c("one_of", values="ab"),
        c("one_of", values=None),
        c("not_one_of"),
        c("contains", required={}),
        c("subset", allowed=1),
        c("wildcard", value=1),
        c("all", constraints=[]),
        c("any", constraints=[]),
        c("any", constraints=[c("exact", value=1, optional=True)]),
        c("all", constraints=[c("regex")]),
        c("path_containment"),
        c("path_containment", root="src"),
        c("path_containment", root=""),
        c("path_containment", root="/a\0b"),
        c("path_containment", root=["/"]),
        c("wildcard", optional="true"),
    ],
)
def test_not_well_formed(constraint: dict[str, Any]) -> None:
    assert problem(constraint)


def test_optional_is_for_the_top_only() -> None:
    assert problem(c("wildcard", optional=True)) == ""
    assert problem(c("wildcard", optional=True), nested=True)


def nested(levels: int) -> dict[str, Any]:
    made = c("exact", value=1)
    for _ in range(levels - 1):
        made = c("any", constraints=[made])
    return made


def test_depth() -> None:
    assert problem(nested(32)) == ""
    assert check(nested(32), 1)
    assert subsumes(nested(32), nested(32))
    assert "deep" in problem(nested(33))
    assert not check(nested(33), 1)
    assert not subsumes(nested(33), nested(33))
    assert not check(nested(5000), 1)
    assert problem(nested(5000))


def test_pairs_that_multiply_are_cut_off() -> None:
    many = c("any", constraints=[c("exact", value=number) for number in range(1000)])
    last = c("any", constraints=[c("exact", value=999)] * 1000)
    assert subsumes(many, c("any", constraints=[c("exact", value=999)]))
    work = Work()
    assert not subsumes(many, last, work)
    assert work.left < 0


def test_a_long_list_is_serialised_once_however_many_pairs_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists as long as a token in clauses that multiply once took 350 ms a derivation step, all of it gate's."""
    size = 0

    def counted(value: Any) -> bytes:
        nonlocal size
        size += len(canonical(value))
        return canonical(value)

    monkeypatch.setattr(constraints_module, "canonical", counted)
    for kind, member in (("subset", "allowed"), ("contains", "required"), ("one_of", "values")):
        clauses = [c(kind, **{member: [[number] + [1] * 400]}) for number in range(60)]
        parent, child = c("all", constraints=clauses), c("all", constraints=clauses[::-1])
        size = 0
        assert subsumes(parent, child)
        assert size <= 2 * len(canonical(parent))  # it is the same lists on both sides
    lists = [c("one_of", values=[[number] + [1] * 400]) for number in range(40)]
    last = c("one_of", values=list(range(40)))
    exacts = [c("exact", value=number) for number in range(40)]
    size = 0
    parent = c("any", constraints=[*lists, last])
    assert subsumes(parent, c("any", constraints=exacts))
    assert size <= len(canonical(parent)) + 40 * 41 * 2


def test_long_paths_cost_little() -> None:
    clauses = c("any", constraints=[c("path_containment", root="/x")] * 900)
    assert not check(clauses, "a/" * 100_000)
    assert normal_path("a" * 4096) is not None
    assert normal_path("a" * 4097) is None
    roots = c("any", constraints=[c("path_containment", root="/" + "a/" * 500 + str(number)) for number in range(60)])
    work = Work()
    assert not subsumes(roots, c("any", constraints=[c("path_containment", root="/a" * 500 + "/59")] * 60), work)
    assert work.left < 0


def test_a_large_argument_is_serialised_once() -> None:
    clauses = c("any", constraints=[c("one_of", values=[[number]]) for number in range(2000)])
    assert not check(clauses, ["x" * 1000] * 200)  # 2000 clauses times 200 kB would be minutes


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("a", "/workspace/a"),
        (".", "/workspace"),
        ("..", "/"),
        ("../../../x", "/x"),
        ("//a///b/", "/a/b"),
        ("/a/./../b", "/b"),
        ("/", "/"),
        ("/..", "/"),
        ("...", "/workspace/..."),
        ("a\\..\\b", "/workspace/a\\..\\b"),
        ("", None),
        ("a\0", None),
        (None, None),
        (["a"], None),
    ],
)
def test_normal_path(text: object, normal: str | None) -> None:
    assert normal_path(text) == normal


def test_confined_to() -> None:
    assert confined_to(c("path_containment", root="/workspace/./src/")) == "/workspace/src"
    assert confined_to(c("all", constraints=[c("path_containment", root="/"), SRC, WILD])) == "/workspace/src"
    assert confined_to(WILD) == confined_to(c("any", constraints=[SRC, WILD])) == ""


def test_descriptions_teach_and_stay_short() -> None:
    assert describe(SRC) == "a path within /workspace/src"
    assert describe(c("range", min=1, max=9, max_inclusive=False)) == "a number at least 1 and less than 9"
    assert describe(c("one_of", values=["a", 2])) == 'one of "a", 2'
    assert "\x1b" not in describe(c("exact", value="\x1b[2J\u202e"))
    assert len(describe(c("one_of", values=["x" * 1000] * 50))) <= 400
    assert describe(c("regex")).startswith("nothing")
    assert describe({"constraint_type": "exact"}).startswith("nothing")


@pytest.mark.parametrize("clauses", ["0", None, 7, [None], ["x"], {"a": 1}, [[]]])
def test_clauses_that_are_none(clauses: Any) -> None:
    for kind in ("all", "any"):
        bad = {"constraint_type": kind, "constraints": clauses}
        assert problem(bad)
        assert not check(bad, 1)
        assert not subsumes(bad, bad)
        assert confined_to(bad) == ""
        assert describe(bad)
