"""The study's page: its numbers, its verdicts, self-contained and escaped, and small studies too."""

from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from vlkd.study.findings import Outcome, RowInfo, Study
from vlkd.study.page import page, write_page
from vlkd.study.plots import data_shares, differences, queue_sizes, seed_strips
from vlkd.study.statistics import summarise
from vlkd.study.tables import bounds, signed, spread

pytestmark = pytest.mark.slow

PNG = b"\x89PNG\r\n\x1a\n"


class Reader(HTMLParser):
    """Checks nesting; keeps images and the text of table lines."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.lines: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
        if tag == "tr":
            self.lines.append("")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "tr" in self.open:
            self.lines[-1] += f"{data} "


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def two_rows(gains: list[float]) -> Study:
    """A baseline that scores 0.5 and a row that scores more by ``gains``, one a seed, in CIDEr alone."""
    rows = (RowInfo("alone", "g"), RowInfo("taught", "g", baseline="alone"))
    alone = [Outcome("alone", seed, 1000, 0.5, math.nan, 1.0) for seed in range(len(gains))]
    taught = [Outcome("taught", seed, 1000, 0.5 + gain, math.nan, 1.0) for seed, gain in enumerate(gains)]
    return Study("t", "test", rows, (*alone, *taught), headline="taught")


@pytest.fixture(scope="module")
def html(study) -> str:
    return page(study)


def test_whole_page(html, study):
    images = read(html).images
    # one forest for each of five groups; seeds, queue and shares
    assert len(images) == 5 + 3
    for image in images:
        head, data = image.split(",", 1)
        assert head == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(PNG)
    for words in ("8 rows, 26 trainings", "24 test pictures", "vlkd study ablations --seeds 5", "torch 2.15", "0123abc",
                  "two cores", "2.00 h", "&quot;train&quot;: 10"):  # fmt: skip
        assert words in html, words


def test_table_numbers_are_those_of_the_data(html, study):
    lines, summary = read(html).lines, summarise(study)
    for row in study.rows:
        line = next(line for line in lines if line.startswith(f"{row.name} "))
        for metric in ("cider", "vqa"):
            result = summary.of(row.name, metric)
            assert spread(result.score) in line
            if result.difference is not None:
                assert f"{signed(result.difference.mean)} " in line
                assert f"bootstrap {bounds(result.over_test_items)}" in line
            if result.difference is not None and result.difference.seeds > 1:
                assert f"seeds {bounds(result.difference)}" in line


def test_headline_is_the_difference_of_the_two_students(html, study):
    cards = re.findall(r'<div class="card">.*?</div>', html)
    assert len(cards) == 2
    for card, metric in zip(cards, ("cider", "vqa"), strict=True):
        result = summarise(study).of("distilled", metric)
        difference, items = result.difference, result.over_test_items
        assert difference is not None and items is not None
        assert f">{signed(difference.mean)}</b>" in card and "distilled minus student alone" in card
        assert f"over 5 seeds: {signed(difference.low)} to {signed(difference.high)}" in card
        assert f"Bootstrap over 24 pictures: {signed(items.low)} to {signed(items.high)}" in card


@pytest.mark.parametrize("gains, verdict, colour", [
    ([0.09, 0.10, 0.11], "CIDEr: yes, the interval over 3 seeds excludes 0.", "up"),
    ([-0.09, -0.10, -0.11], "CIDEr: no, it hurts, the interval over 3 seeds excludes 0.", "down"),
    ([-0.1, 0.1, 0.2], "CIDEr: not resolved, the interval over 3 seeds includes 0.", ""),
    ([0.3], "CIDEr: one seed cannot tell.", ""),
])  # fmt: skip
def test_the_answer(gains, verdict, colour):
    html = page(two_rows(gains))
    assert f'<p class="lead">{verdict}</p>' in html
    assert f'<b class="{colour}">' in html
    assert ('<td class="best">' in html) == bool(colour)


def test_a_headline_that_nobody_measured():
    study = two_rows([0.1])
    html = page(replace(study, outcomes=study.outcomes[:1]))
    assert "CIDEr: not measured." in html and '<div class="card">' not in html
    read(html)


def test_a_single_row_and_seed(tmp_path):
    study = Study("t", "validation", (RowInfo("student", "g"),), (Outcome("student", 0, 1000, 0.5, 0.25, 1.0),))
    path = write_page(tmp_path, study)
    html = path.read_text(encoding="utf-8")
    assert path.name == "page.html" and read(html).images == []
    for words in ("50.0", "25.0", "1 row, 1 training, scored on the validation pictures", "no test of them"):
        assert words in html, words
    for words in (
        "Does distillation help?",
        "Differences to",
        "Seed by seed",
        "Size of the queue",
        "Share of the data",
    ):
        assert words not in html, words


def test_a_study_without_any_outcome():
    html = page(Study("t", "test", (RowInfo("student", "g", main=True, queue=1, share=1.0),), (), headline="student"))
    assert read(html).images == []


def test_plots_leave_out_what_is_not_there(study):
    bare = tuple(replace(row, queue=None, share=None, main=False) for row in study.rows)
    summary = summarise(replace(study, rows=bare))
    assert queue_sizes(summary) is data_shares(summary) is seed_strips(summary) is None
    assert differences(summary, [row for row in bare if row.baseline is None]) is None
    one_share = tuple(replace(row, share=1.0 if row.share == 1.0 else None) for row in study.rows)
    assert data_shares(summarise(replace(study, rows=one_share))) is None


def test_the_same_study_gives_the_same_page():
    assert page(two_rows([0.1, 0.2])) == page(two_rows([0.1, 0.2]))


def test_self_contained(html):
    readable = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)  # base64 may hold // by chance
    assert not re.search(r"https?:|//|<script|<link|<iframe|@import|url\(", readable)


def test_everything_from_outside_is_escaped(study):
    evil = "<b>&\"'</b><script>alert($x_1$)</script>"
    names = {row.name: f"{evil}{place}" for place, row in enumerate(study.rows)}
    study = replace(
        study,
        title=evil,
        rows=tuple(
            replace(row, name=names[row.name], group=evil, note=evil, baseline=names.get(row.baseline or ""))
            for row in study.rows
        ),
        outcomes=tuple(replace(each, row=names[each.row]) for each in study.outcomes),
        settings={evil: evil},
        versions={evil: evil},
        hardware=evil,
        commit=evil,
        command=evil,
        headline=names["distilled"],
    )
    html = page(study)
    assert "<script" not in html and '<b>&"' not in html
    assert html.count("&lt;script&gt;") > 30
    read(html)
