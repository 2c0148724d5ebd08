"""Patterns: recall, false positives, and what they cost

Recall by format and label on planted text that no rule was written from (`tests/planted.py`), false positives on what
only looks like it; then microseconds for 10 KB and MB/s of long streams, beside SHA-256 of the same bytes, and beside
Python's `re` rule by rule on a part of them.
"""

from __future__ import annotations

import hashlib
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common import emit, options
from planted import CREDENTIALS, HEX, NEGATIVES, PII, Make, negatives, planted, some

from runner.catalog import shared
from runner.catalog.filters import compile_filter_rules
from runner.model import FilterRule
from runner.stream.actions import DEFAULTS, Actions
from runner.stream.engines import Words
from runner.stream.patterns import Patterns, PatternStage

CHUNK = 64 << 10
SHORT = 10 << 10
SEED = "bench 1"


def prose(source: random.Random) -> bytes:
    """Lines of words."""
    words = [some(source, "abcdefghijklmnoprstuvwy", source.randrange(2, 10)) for _ in range(400)]
    return b"".join((" ".join(source.choices(words, k=14)) + ".\n").encode() for _ in range(20_000))


def log(source: random.Random) -> bytes:
    """Lines of a server's log: times, numbers, ids."""
    return b"".join(
        f"2026-11-21 10:{source.randrange(60):02}:{source.randrange(60):02},{source.randrange(1000):03} INFO worker-"
        f"{source.randrange(9)} {some(source, HEX, 32)} took {source.randrange(999)}ms path=/v1/items/"
        f"{source.randrange(99999)}\n".encode()
        for _ in range(20_000)
    )


def code(source: random.Random) -> bytes:
    """This package's own modules."""
    del source
    return b"".join(path.read_bytes() for path in sorted(Path(sys.modules["runner"].__path__[0]).rglob("*.py")))


def streamed(patterns: Patterns, data: bytes, size: int) -> int:
    """Bytes that came out of a stage that was given `data` in pieces of `size`."""
    stage = PatternStage(patterns, Actions(DEFAULTS, b"k" * 32))
    pieces = [piece for at in range(0, len(data), size) for piece in stage.take("stdout", data[at : at + size])]
    return sum(len(piece) for _, piece in (*pieces, *stage.close()))


def cpu(act: Callable[[], object], times: int) -> float:
    """Seconds of this process for one time, the least of `times`."""
    best = float("inf")
    for _ in range(times):
        began = time.process_time()
        act()
        best = min(best, time.process_time() - began)
    return best


def found(patterns: Patterns, label: str, kind: tuple[Make, tuple[str, ...]], seed: str, count: int) -> float:
    """The share of planted values that go whole, under that label."""
    hits = 0
    for text, value in planted(kind, seed, count):
        at = text.index(value)
        hits += any(
            each.label.startswith(label) and each.start <= at and each.end >= at + len(value)
            for each in patterns.find(text)
        )
    return hits / count


def one_by_one(rules: tuple[FilterRule, ...], data: bytes) -> int:
    """What there was without an engine: each rule over the whole text."""
    return sum(1 for rule in rules for _ in re.finditer(rule.pattern.encode(), data))


def main(*, quick: bool) -> None:
    """Found first, then cost."""
    count, times = (20, 2) if quick else (500, 15)
    files = {path.name: path.read_bytes() for path in sorted((shared("policies") / "filters").glob("*.toml"))}
    rules = compile_filter_rules({f"filters/{name}": data for name, data in files.items()})
    compile_s = cpu(lambda: Patterns(rules), 1 if quick else 3)
    patterns = Patterns(rules)
    by_format = {
        name: found(patterns, "credential", kind, f"{SEED} {name}", count) for name, kind in CREDENTIALS.items()
    }
    by_label = {label: found(patterns, label, kind, f"{SEED} {label}", count) for label, kind in PII.items()}
    wrong = dict.fromkeys(NEGATIVES, 0)
    for kind, text in negatives(SEED, count):
        wrong[kind] += bool(patterns.find(text))
    texts = {make.__name__: make(random.Random(SEED)) for make in (prose, log, code)}
    speed, short, sha, slow, plain = {}, {}, {}, {}, {}
    fallback = Patterns(rules, engine=Words)
    for name, data in texts.items():
        streamed(patterns, data, CHUNK)  # what is compiled when it is first needed is
        speed[name] = len(data) / cpu(lambda data=data: streamed(patterns, data, CHUNK), times) / 1e6
        short[name] = cpu(lambda data=data: streamed(patterns, data[:SHORT], CHUNK), times * 10) * 1e6
        sha[name] = len(data) / cpu(lambda data=data: hashlib.sha256(data).digest(), times) / 1e6
        part = data[: 4 * CHUNK]
        slow[name] = len(part) / cpu(lambda part=part: streamed(fallback, part, CHUNK), 2) / 1e6
        plain[name] = SHORT * 4 / cpu(lambda part=part: one_by_one(rules, part[: SHORT * 4]), 2) / 1e6
    emit(
        "patterns: recall, false positives, cost",
        figures={
            "recall_credentials": sum(by_format.values()) / len(by_format),
            "recall_credentials_least": min(by_format.values()),
            "recall_pii": sum(by_label.values()) / len(by_label),
            "recall_pii_least": min(by_label.values()),
            "false_positives": sum(wrong.values()) / (len(wrong) * count),
            "rules": float(len(rules)),
            "compile_cpu_ms": compile_s * 1e3,
            **{f"{name}_mb_per_s": value for name, value in speed.items()},
            **{f"{name}_10kb_us": value for name, value in short.items()},
            **{f"fallback_{name}_mb_per_s": value for name, value in slow.items()},
        },
        baseline={
            **{f"sha256_{name}_mb_per_s": value for name, value in sha.items()},
            **{f"re_by_rule_{name}_mb_per_s": value for name, value in plain.items()},
        },
        ratios={
            **{f"{name}_over_sha256": speed[name] / sha[name] for name in texts},
            **{f"{name}_over_re_by_rule": speed[name] / plain[name] for name in texts},
        },
        goal={
            "recall_credentials": ">= 0.95",
            "recall_pii": ">= 0.90",
            "false_positives": "<= 0.01",
            "prose_mb_per_s": ">= 600",
            "prose_10kb_us": "<= 50",
        },
        floor={
            "recall_credentials": ">= 0.95",
            "recall_pii": ">= 0.90",
            "false_positives": "<= 0.01",
            "log_mb_per_s": ">= 200",
        },
        guarantee="patterns alone: issued secrets, hygiene, cap and digest are other stages",
        measured=(
            f"CPU time of this process, the least of {times}; {count} texts of each format and kind of look-alike, "
            "from generators that do not read the rules"
        ),
        quick=quick,
        recall_by_format=by_format | by_label,
        false_positives_by_kind={kind: number for kind, number in wrong.items() if number},
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
