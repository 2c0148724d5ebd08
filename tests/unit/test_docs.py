"""A promise names the test that proves it: the test must exist, and so must every file that the pages link to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "profiles/README.md",
    "policies/README.md",
    "runner/wire/README.md",
)
# `tests/security/test_x.py::test_y`, `test_x.py::test_y` (pages may leave the folder out), `…::test_y`; `…` at the end
# of a name stands for the rest of it.
TEST = re.compile(r"`(?:((?:tests/[\w/]+/)?test_\w+\.py)(?:::(test_\w+)(…?))?|…::(test_\w+)(…?))")


def defined(path: Path) -> set[str]:
    return set(re.findall(r"^\s*(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_every_test_and_link_on_a_page_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    missing, file, seen = [], "", 0
    for match in TEST.finditer(text):
        file, name, cut = match[1] or file, match[2] or match[4], match[3] or match[5]
        path = ROOT / file if "/" in file else ROOT / "tests/security" / file
        names = defined(path) if path.is_file() else set()
        seen += 1
        if not names or (name and not any(n == name or (cut and n.startswith(name)) for n in names)):
            missing.append(match[0])
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing += [link for link in links if not ((ROOT / page).parent / link).exists()]
    assert missing == []
    assert seen or page not in ("README.md", "profiles/README.md")
