"""What is no stream passes the same filters in one go: texts, results, arguments, decisions."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from runner.errors import Refusal
from runner.model import Action, Decision, FilterRule
from runner.stream.actions import DEFAULTS, Actions
from runner.stream.exact import Needles
from runner.stream.patterns import Patterns
from runner.stream.texts import Memo, Texts

KEY = b'sk-live-3f9d"1c7ab2\\e84'
NUMBER = 4929174386103552
_PASS = r'"pass":"(?P<it>[a-z]{8,40})"'
RULES = (
    FilterRule(id="mail", label="pii.email", description="a", pattern=r"[a-z]{1,30}@[a-z]{1,30}\.test"),
    FilterRule(id="word", label="credential.word", description="a", pattern=r"tok_[a-z]{4,20}"),
    FilterRule(id="said", label="credential.said", description="a", pattern=_PASS, group="it"),
    FilterRule(id="odd", label="odd", description="a", pattern=r"odd_[a-z]{4,20}"),
    FilterRule(id="stop", label="stop", description="a", pattern=r"stop_[a-z]{4,20}"),
    FilterRule(id="keep", label="keep", description="a", pattern=r"keep_[a-z]{4,20}"),
)  # fmt: skip
PATTERNS = Patterns(RULES)
TABLE: dict[str, Action] = {**DEFAULTS, "odd": "mark", "stop": "block", "keep": "hold"}


def texts(table: dict[str, Action] = TABLE, memo: Memo | None = None) -> Texts:
    needles = Needles.of({"key": (KEY,), "number": (str(NUMBER).encode(),)})
    return Texts(lambda: needles, (PATTERNS,), Actions(table, bytes(32)), memo)


@pytest.mark.parametrize(
    ("text", "clean", "rule"),
    [
        (f"no access with {KEY.decode()}", "no access with [REDACTED:key]", "secret:key"),
        (base64.b64encode(b"x" + KEY + b"y").decode(), "eH[REDACTED:key]eQ==", "secret:key"),
        ("for jo@host.test:", "for j***@h***.test:", "mail"),
        ("with tok_abcdef", "with [REDACTED:word]", "word"),
        ("an odd_thing", "an odd_thing", "odd"),
        ("a\x1b[0m", r"a\x1b[0m", "hygiene:control"),
        ("a\0b", r"a\x00b", "hygiene:control"),
        ("\u202ea", r"\u{202e}a", "hygiene:bidi"),
    ],
)
def test_a_text_is_told_without_what_is_found(text: str, clean: str, rule: str) -> None:
    found = texts()
    assert found.text(text) == clean
    assert found.counts == {rule: 1}
    assert found.text("nothing of it") == "nothing of it"


def test_labels_say_what_was_found_also_where_nothing_was_changed() -> None:
    found = texts()
    found.text(f"odd_thing jo@host.test {KEY.decode()}")
    assert found.labels == {"odd", "pii.email", "secret"}
    allowed = texts({**TABLE, "pii.email": "allow"})
    assert allowed.text("jo@host.test") == "jo@host.test"
    assert not allowed.labels
    assert not allowed.counts


def test_what_blocks_and_what_holds_is_named() -> None:
    found = texts()
    assert (found.blocked, found.held) == ("", "")
    assert "stop_abcd" not in found.text("stop_abcd keep_abcd")
    assert (found.blocked, found.held) == ("stop", "keep")


def test_a_value_is_told_without_what_is_found_in_keys_texts_and_numbers() -> None:
    found = texts()
    key = KEY.decode()
    value = {
        key: 1,
        f"{key}": 2,
        "list": [f"a {key}", {"deep": ["jo@host.test", None, True, 1.5, 7]}],
        "number": NUMBER,
        "pass": "correcthorse",
        "\x1b": "a\u200bb",
    }
    assert found.value(value) == {
        "[REDACTED:key]": 2,
        "list": ["a [REDACTED:key]", {"deep": ["j***@h***.test", None, True, 1.5, 7]}],
        "number": "[REDACTED:number]",
        "pass": "[REDACTED:said]",
        r"\x1b": r"a\u{200b}b",
    }
    assert found.counts["secret:key"] == 2
    assert found.counts["said"] == 1


def test_a_word_that_a_secret_begins_with_stays_in_a_value_and_not_where_a_text_was_cut_off() -> None:
    needles = Needles.of({"db": (b"postgresql://me:correct-horse@db.test/orders",)})
    found = Texts(lambda: needles, (), Actions(TABLE, bytes(32)))
    assert found.value({"engine": "postgresql", "postgresql": 1}) == {"engine": "postgresql", "postgresql": 1}
    assert not found.counts
    assert found.text("cannot open postgresql://me:cor") == "cannot open [REDACTED:db]"
    assert found.value(["postgresql://me:correct-horse@db.test/orders"]) == ["[REDACTED:db]"]


def test_two_keys_that_become_one_are_both_kept() -> None:
    assert texts().value({"tok_aaaa": 1, "tok_bbbb": 2, "tok_cccc": 3}) == {
        "[REDACTED:word]": 1, "[REDACTED:word]#2": 2, "[REDACTED:word]#3": 3,
    }  # fmt: skip


@pytest.mark.parametrize("value", [None, True, 0, 1.5, "", "plain", [], {}, {"argv": ["/bin/echo", "x", "a\nb", "é"]}])
def test_a_clean_value_is_the_same(value: Any) -> None:
    found = texts()
    assert found.value(value) == value
    assert not found.counts
    if value == {}:
        assert found.value(value) is value


LEAVES = some.none() | some.booleans() | some.integers(-(2**53), 2**53) | some.text(max_size=5)
VALUES = some.recursive(
    LEAVES,
    lambda each: some.lists(each, max_size=3) | some.dictionaries(some.text(max_size=3), each, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(VALUES, some.sampled_from([KEY.decode(), "tok_abcdef", "jo@host.test", "\x1b"]))
def test_nothing_is_left_of_it_wherever_it_stands(value: Any, needle: str) -> None:
    def planted(inner: Any) -> Any:
        if isinstance(inner, dict):
            return {f"{key}{needle}": planted(each) for key, each in inner.items()} | {"x": needle}
        return [planted(each) for each in inner] if isinstance(inner, list) else [inner, f"{needle} "]

    found = texts().value(planted(value))
    assert json.dumps(needle)[1:-1] not in json.dumps(found, ensure_ascii=False)


def test_what_was_counted_already_is_not_counted_again() -> None:
    found = texts()
    assert found.value({"a": "tok_abcd"}) == {"a": "[REDACTED:word]"}
    assert found.again(["x", "tok_abcd"]) == ["x", "[REDACTED:word]"]
    assert found.counts == {"word": 1}


def test_what_is_known_to_be_clean_is_looked_at_again_when_there_is_more_to_find() -> None:
    known = {"needles": Needles.of({})}
    memo = Memo()
    found = Texts(lambda: known["needles"], (PATTERNS,), Actions(TABLE, bytes(32)), memo)
    assert found.text("the quick brown fox") == "the quick brown fox"
    assert memo.knows("the quick brown fox", known["needles"], PATTERNS)
    known["needles"] = Needles.of({"fox": (b"quick brown",)})
    assert found.text("the quick brown fox") == "the [REDACTED:fox] fox"
    other = Texts(lambda: known["needles"], (Patterns(()),), Actions(TABLE, bytes(32)), memo)
    assert other.text("tok_abcd") == "tok_abcd"
    assert found.text("tok_abcd") == "[REDACTED:word]"
    for number in range(1000):
        found.text(f"text {number}")
    assert len(memo._texts) <= 16


def test_decisions_and_refusals_do_not_repeat_arguments() -> None:
    found = texts()
    key = KEY.decode()
    decision = Decision(
        effect="deny", reason=f"`{key}` is not below /workspace", field=key, allowed="tok_abcd", missing=(key,)
    )
    clean = found.decision(decision)
    assert (clean.reason, clean.field) == ("`[REDACTED:key]` is not below /workspace", "[REDACTED:key]")
    assert (clean.allowed, clean.missing) == ("[REDACTED:word]", ("[REDACTED:key]",))
    plain = Decision(effect="allow", reason="a rule")
    assert found.decision(plain) is plain
    refused = found.refusal(Refusal(code="arguments", reason=f"no program {key}", next_step="name another"))
    assert (refused.code, refused.reason, refused.next_step) == (
        "arguments",
        "no program [REDACTED:key]",
        "name another",
    )
