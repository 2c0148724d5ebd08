"""Examples of rules, and whether each is found by its own rule. `<kind:count>` in an example stands for random text, so
that a file of rules holds nothing that looks like a secret itself."""

from __future__ import annotations

import functools
import random
import re
import string
from collections.abc import Sequence

from runner.errors import RunnerError, refuse
from runner.model import FilterRule
from runner.stream.patterns import Patterns

_ALNUM = string.ascii_letters + string.digits
KINDS = {
    "an": _ALNUM,
    "alpha": string.ascii_letters,
    "lan": string.ascii_lowercase + string.digits,
    "uan": string.ascii_uppercase + string.digits,
    "hex": "0123456789abcdef",
    "d": string.digits,
    "d1": "123456789",
    "b64": _ALNUM + "+/",
    "b64u": _ALNUM + "-_",
    "b32": string.ascii_uppercase + "234567",
    "b32l": string.ascii_lowercase + "234567",
    "bech": "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L",
}
_RANDOM = re.compile(r"<([a-z0-9]{1,5}):([0-9]{1,4})>")
_UUID = (8, 4, 4, 4, 12)


def written(example: str, seed: str) -> bytes:
    """`example` with random text in place of every `<kind:count>`; the same for the same `seed`."""
    source = random.Random(f"{seed} {example}")  # noqa: S311 - examples have to be the same each time

    def drawn(match: re.Match[str]) -> str:
        kind, count = match.group(1), int(match.group(2))
        if kind == "uuid":
            return "-".join("".join(source.choices(KINDS["hex"], k=size)) for size in _UUID)
        if kind not in KINDS:
            return match.group()
        text = source.choices(KINDS[kind], k=count)
        # An end that is a sign reads as punctuation to some rules, as it would in the world.
        text[-1] = text[-1] if text[-1].isalnum() else "7"
        return "".join(text)

    return _RANDOM.sub(drawn, example).encode()


@functools.lru_cache(maxsize=2)  # a reload that changes no rule compiles none
def ready(rules: tuple[FilterRule, ...]) -> Patterns:
    """`rules` compiled, and every example tried. Raises `RunnerError` (policy) naming file and line of the rule that
    does not compile, or that does not find what it says."""
    patterns = Patterns(rules)
    check_examples(patterns, rules)
    return patterns


def check_examples(patterns: Patterns, rules: Sequence[FilterRule], seed: str = "example") -> int:
    """How many examples hold. Raises `RunnerError` (policy) for the first that its rule, among all rules, does not
    find, or for a counter-example that it does."""
    count = 0
    for rule in rules:
        if not rule.examples:
            raise _wrong(rule, "has no examples", "give one text at least that it must find")
        for example in rule.examples:
            found = patterns.find(written(example, seed))
            if rule.id not in {each.rule for each in found}:
                others = ", ".join(sorted({each.rule for each in found})) or "no rule"
                raise _wrong(rule, f"does not find its example `{example[:80]}`; found by {others}")
        for example in rule.counter_examples:
            if rule.id in {each.rule for each in patterns.find(written(example, seed))}:
                raise _wrong(rule, f"finds its counter-example `{example[:80]}`")
        count += len(rule.examples) + len(rule.counter_examples)
    return count


def _wrong(rule: FilterRule, reason: str, next_step: str = "") -> RunnerError:
    step = next_step or "correct the pattern or the example; at one place the rule that comes first wins"
    return refuse("policy", f"rule {rule.id}: {reason}", field=rule.place, next_step=step)
