"""Every page's links lead somewhere, its prose is plain, and the first page is short."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "vlkd_kernels").glob("*/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
PROSE = [page for page in PAGES if page.name not in ("CHANGELOG.md", "log.md")]
WORN = re.compile(r"\bof (its|their) own\b|\bwhat is left of\b|\bstands? in\b|\btells\b")
CLAIMS = ROOT / "docs" / "results" / "ablations" / "claims.md"  # is on a page as it was made
LONGEST_LINE = 140
MOST_WORDS = 900  # of README.md: four minutes


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def anchors(page: Path) -> set[str]:
    """As GitHub makes them: lower case, no punctuation, a hyphen for each space."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One, two\n[a](#one-two) [b](#three) [c](page.md#one-two) [d](other.md)\n```\n[e](f)\n```\n")
    assert broken_links(page) == ["#three", "other.md"]


@pytest.mark.parametrize("page", PROSE, ids=name)
def test_prose_is_plain(page: Path) -> None:
    """No line is too wide to read, tables and commands aside; no phrase that hides who does what."""
    text = page.read_text(encoding="utf-8").replace(CLAIMS.read_text(encoding="utf-8").strip(), "")
    assert WORN.findall(re.sub(r"\s+", " ", text)) == []
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE).splitlines()
    assert [line for line in prose if len(line) > LONGEST_LINE and not line.startswith("|")] == []


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MOST_WORDS
