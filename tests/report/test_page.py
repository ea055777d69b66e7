"""The page: complete, self-contained, escaped, and with the numbers of results.json."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from vlkd.evaluation.seeds import Estimate
from vlkd.report import ReportData, write_page, write_results
from vlkd.report.page import page
from vlkd.report.repetition import RepeatedDifference, Repetition

pytestmark = pytest.mark.slow

PNG = b"\x89PNG\r\n\x1a\n"
NEVER_CLOSED = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Checks nesting; keeps table cells, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tables: list[list[list[str]]] = []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in NEVER_CLOSED:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open) and "small" not in self.open:
            self.tables[-1][-1][-1] += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def written(story: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("page"), story)


@pytest.fixture
def light(story: ReportData) -> ReportData:
    """Without the parts that take time to draw."""
    return replace(story, stages=(), samples=(), attention=())


def test_whole_page(written):
    assert written.name == "report.html"
    html = written.read_text(encoding="utf-8")
    reader = read(html)
    images = [value for tag, name, value in reader.attributes if tag == "img" and name == "src"]
    # intervals, bars, kinds; a figure of curves for each of three tasks; one attention map; two samples
    assert len(images) == 3 + 3 + 1 + 2
    for image in images:
        head, data = image.split(",", 1)
        assert head == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(PNG)
    for words in ("95 % interval", "One seed is one seed", "61.2", "87.4", "vlkd demo --seed 0", "torch 2.15",
                  "no `java` is on the PATH", "10 min 08 s"):  # fmt: skip
        assert words in html, words


def test_self_contained(written):
    html = written.read_text(encoding="utf-8")
    readable = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)  # base64 may hold // by chance
    assert not re.search(r"https?:|//|<script|<link|<iframe|@import|url\(", readable)
    loads = {value.split(":")[0] for _, name, value in read(html).attributes if name in ("src", "href", "srcset")}
    assert loads == {"data"}


def test_table_numbers_are_those_of_results_json(light, tmp_path):
    found = json.loads(write_results(tmp_path, light).read_text())
    tables = read(page(light)).tables
    results, controls, kinds = tables
    for line, row in zip(results[1:], found["rows"], strict=True):
        printed = dict(zip(results[0], line, strict=True))
        assert printed["model"] == row["model"]
        assert printed["parameters"] == f"{row['parameters'] / 1e6:.2f} M"
        for metric in ("BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr"):
            assert printed[metric] == f"{100 * row['captioning']['picture'][metric]:.1f}"
        assert printed["VQA"] == f"{100 * row['vqa']['picture']['all']:.1f}"
    for line, row in zip(controls[1:], found["rows"], strict=True):
        printed = dict(zip(controls[0], line, strict=True))
        assert printed["CIDEr, no picture"] == f"{100 * row['captioning']['none']['CIDEr']:.1f}"
        assert printed["VQA, another picture"] == f"{100 * row['vqa']['other']['all']:.1f}"
    for line, row in zip(kinds[1:], found["rows"], strict=True):
        assert line[1:] == [f"{100 * value:.1f}" for value in row["vqa"]["picture"].values()]
    assert found["comparisons"][0]["interval"]["difference"] == light.comparisons[0].interval.difference


def test_everything_from_outside_is_escaped(story):
    evil = "<b>&\"'</b><script>alert(1)</script>"
    sample = story.samples[0]
    question = replace(sample.questions[0], question=evil, truth=evil, answers={evil: evil})
    story = replace(
        story,
        title=evil,
        rows=tuple(replace(row, name=evil + str(place), note=evil) for place, row in enumerate(story.rows)),
        comparisons=tuple(replace(each, first=evil, second=evil, metric=evil) for each in story.comparisons),
        detectors={evil: 0.5},
        stages=tuple(replace(stage, name=evil, model=evil, result=evil) for stage in story.stages[:1]),
        samples=(replace(sample, key=evil, references=(evil,), captions={evil: evil}, questions=(question,)),),
        attention=tuple(replace(each, key=evil, words=(evil,), word=0) for each in story.attention),
        unavailable={evil: evil},
        tokenisation=evil,
        settings={evil: evil},
        versions={evil: evil},
        command=evil,
    )
    html = page(story)
    assert "<script" not in html and '<b>&"' not in html
    read(html)


def test_right_and_wrong_answers_are_marked(written):
    html = written.read_text(encoding="utf-8")
    assert html.count('<td class="right">✓ red</td>') == 2 * 5
    assert html.count('<td class="wrong">✗ 3</td>') == 2 * 5


def test_an_interval_around_zero_claims_nothing(light):
    html = page(light)
    assert html.count("the interval excludes 0") == 1
    assert html.count("the interval includes 0") == 1


def test_what_other_trainings_gave_stands_beside_this_one(light, tmp_path):
    assert "several" not in page(light) and json.loads(write_results(tmp_path, light).read_text())["repeated"] == []
    first, second = light.comparisons[0].first, light.comparisons[0].second
    known = Repetition(
        differences=(
            RepeatedDifference("CIDEr", first, second, Estimate(0.1234, 0.021, 0.0912, 0.1556, 5)),
            RepeatedDifference("VQA accuracy", first, second, Estimate(-0.01, 0.03, -0.047, 0.027, 5)),
            RepeatedDifference("CIDEr", second, "another model", Estimate(0.777, 0.03, 0.7, 0.8, 5)),
        ),
        settings={}, pictures=240, command="vlkd study <b>", commit="0123456789abcdef",
    )  # fmt: skip
    html = page(replace(light, repetition=known))
    assert "trained with 5 seeds" in html and "on its 240 test pictures" in html
    assert "vlkd study &lt;b&gt;" in html and "at commit 0123456789." in html and "77.7" not in html
    table = read(html).tables[0]
    here = [f"{100 * each.interval.difference:+.1f}" for each in light.comparisons]
    assert table[1:] == [
        [f"{first} minus {second}", "CIDEr", here[0], "+12.3", "+9.1 to +15.6", "2.1"],
        [f"{first} minus {second}", "VQA accuracy", here[1], "-1.0", "-4.7 to +2.7", "3.0"],
    ]
    assert html.count('<td class="best">+12.3') == 1 and '<td class="best">-1.0' not in html
    found = json.loads(write_results(tmp_path, replace(light, repetition=known)).read_text())["repeated"]
    assert found[0]["estimate"]["mean"] == 0.1234 and len(found) == 3


def test_times_of_several_sessions_say_so(light, story):
    first = story.stages[0]
    assert "sessions" not in page(replace(light, stages=(first, first)))
    resumed = page(replace(light, stages=(replace(first, seconds=3725.0, sessions=3), first)))
    assert "62 min 05 s<br>in 3 sessions</td>" in resumed and resumed.count("in 3 sessions") == 1
    assert "times are those of all sessions" in resumed


def test_parts_without_data_are_left_out(light):
    bare = replace(light, comparisons=(), detectors={}, unavailable={}, rows=tuple(
        replace(row, captioning={"picture": row.captioning["picture"]}, vqa={"picture": row.vqa["picture"]})
        for row in light.rows
    ))  # fmt: skip
    html = page(bare)
    for heading in ("What distillation changed", "look at the picture?", "Detectors", "Training", "Sample"):
        assert heading not in html
    assert "Results" in html
    read(html)


def test_a_failing_figure_leaves_no_half_page(story, light, tmp_path):
    (tmp_path / "report.html").write_text("the page of last time")
    broken = replace(story.samples[0], pixels=story.samples[0].pixels[:, :, :2])
    with pytest.raises(TypeError):
        write_page(tmp_path, replace(light, samples=(broken,)))
    assert (tmp_path / "report.html").read_text() == "the page of last time"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_picture_that_cannot_be_shown_says_which_and_why(story, light):
    sample = replace(story.samples[0], pixels="The file '<a>.jpg' cannot be read as a picture (torn).")
    html = page(replace(light, samples=(sample, replace(story.samples[1], tags=(), pixels=""))))
    assert "The file &#x27;&lt;a&gt;.jpg&#x27; cannot be read as a picture (torn). The student’s detector saw: " in html
    assert "saw: ." not in html
    read(html)
