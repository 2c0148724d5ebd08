"""Text that speaks to a model: recall by kind and disguise, false positives, and what inspecting costs

Recall on hand-written attacks, plain and disguised; of those that the rules were made for, and of those that were
written to get past them. False positives on ordinary texts, and on the source of the standard library, which nobody
here wrote. Processor time per window, for text that is ordinary and for text that is made to be slow.
"""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from common import ROOT, emit, options
from injection_texts import DIRECT, DISGUISES, FOREIGN, ORDINARY, ORDINARY_UNSEEN, SUBTLE, UNSEEN

from runner.catalog.injection import compile_injection_rules
from runner.stream.inspect import INJECTED, Instructions
from runner.stream.windows import OVERLAP, STEP, inspect_whole

NONE = frozenset[str]()
PAGE = b'<div class="a"><p>Some text <b>that</b> goes on &amp; on, <a href="/foo">a link</a></p></div>\n'
DATA = b'{"title": "A \\"thing\\"", "body": "Some text\\nthat goes on, 100% of it: https://example.com/a?c=d&e=f"},\n'
WORDS = b"The quick brown fox jumps over the lazy dog, and it is not amused at all. "
TEXTS = {"text": WORDS, "json": DATA, "html": PAGE}
HOSTILE = {"beginnings": b"ignore all the ", "sends": b"send your password to ", "entities": b"&lt;", "tags": b"<a "}


def flagged(inspector: Instructions, text: str) -> bool:
    return INJECTED in inspect_whole(inspector, text.encode(), NONE).labels


def share(inspector: Instructions, texts: tuple[str, ...]) -> float:
    """How many of them are taken for injected."""
    return sum(flagged(inspector, text) for text in texts) / len(texts)


def documents(count: int) -> Iterator[str]:
    """Source and documents of the standard library."""
    folder = Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.rglob("*.py"))[:: 1 if count > 500 else 8][:count]:
        yield path.read_text(encoding="utf-8", errors="replace")[:65_536]


def cost(inspector: Instructions, unit: bytes, rounds: int) -> float:
    """Processor time of one window, in microseconds: the least of so many."""
    data = (unit * (STEP // len(unit) + 1))[: STEP + OVERLAP]
    found = []
    for _ in range(rounds):
        began = time.process_time_ns()
        inspector.inspect(data)
        found.append((time.process_time_ns() - began) / 1e3)
    return min(found)


def main(*, quick: bool) -> None:
    """Everything once; `quick` looks at fewer documents and disguises."""
    text = (ROOT / "policies/filters/injection.toml").read_bytes()
    inspector = Instructions(compile_injection_rules({"filters/injection.toml": text}))
    attacks = tuple(each for each in (*DIRECT, *FOREIGN) if flagged(inspector, each))
    names = list(DISGUISES)[:6] if quick else list(DISGUISES)
    disguised = {name: share(inspector, tuple(DISGUISES[name](each) for each in attacks)) for name in names}
    found = list(documents(60 if quick else 3000))
    rounds = 3 if quick else 30
    figures = {
        "recall_made_for_percent": 100 * share(inspector, DIRECT),
        "recall_other_languages_percent": 100 * share(inspector, FOREIGN),
        "recall_unseen_percent": 100 * share(inspector, UNSEEN),
        "recall_subtle_percent": 100 * share(inspector, SUBTLE),
        "recall_disguised_least_percent": 100 * min(disguised.values()),
        "false_ordinary_percent": 100 * share(inspector, (*ORDINARY, *ORDINARY_UNSEEN)),
        "false_documents_percent": 100 * sum(flagged(inspector, each) for each in found) / len(found),
        **{f"window_{name}_us": cost(inspector, unit, rounds) for name, unit in TEXTS.items()},
        **{f"window_hostile_{name}_us": cost(inspector, unit, rounds) for name, unit in HOSTILE.items()},
    }
    emit(
        "injection",
        figures=figures,
        baseline={"documents_count": len(found), "window_bytes": STEP + OVERLAP},
        ratios={},
        goal={
            "recall_made_for_percent": ">= 95",
            "false_ordinary_percent": "<= 1",
            "false_documents_percent": "<= 0.5",
        },
        floor={"recall_made_for_percent": ">= 90", "false_ordinary_percent": "<= 2", "false_documents_percent": "<= 1"},
        guarantee="phrases are known, meaning is not: what avoids them is for an inspector of one's own to find",
        measured="hand-written texts (tests/injection_texts.toml); processor time of gate's own code, least of several",
        quick=quick,
        disguises={name: round(100 * value, 1) for name, value in disguised.items()},
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
