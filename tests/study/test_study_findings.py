"""A study's data: JSON there and back, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from vlkd.errors import VlkdError
from vlkd.study.findings import Outcome, RowInfo, Study


def test_there_and_back(study, tmp_path):
    study.save(tmp_path / "study.json")
    assert Study.load(tmp_path / "study.json") == study


def test_what_was_not_measured_stays_so(tmp_path):
    """NaN, pictures of one metric only, and no pictures at all: valid JSON, and the same after it."""
    study = Study("t", "validation", (RowInfo("a", "g"), RowInfo("b", "g")), (
        Outcome("a", 0, 1, math.nan, 0.5, 1.0, {"METEOR": math.nan}, {}, {"p": 0.25, "q": 0.75}, {"p": 2, "q": 2}),
        Outcome("a", 1, 1, 0.5, math.nan, 1.0, {}, {"q": 0.5, "r": 0.5}),
        Outcome("b", 0, 1, 0.5, 0.5, 1.0),
    ))  # fmt: skip
    study.save(tmp_path / "study.json")
    text = (tmp_path / "study.json").read_text()
    json.loads(text, parse_constant=pytest.fail)
    found = Study.load(tmp_path / "study.json")
    assert math.isnan(found.outcomes[0].cider) and math.isnan(found.outcomes[0].scores["METEOR"])
    assert repr(found) == repr(study)  # NaN equals nothing, so the objects cannot be compared


def test_every_outcome_is_a_line_and_keys_are_written_once(study, tmp_path):
    study.save(tmp_path / "study.json")
    text = (tmp_path / "study.json").read_text()
    assert sum(line.startswith('{"row"') for line in text.splitlines()) == len(study.outcomes)
    assert text.count('"test-000000"') == 1


def test_outcomes_come_by_seed_and_rows_by_group(study):
    turned = replace(study, outcomes=study.outcomes[::-1])
    assert list(turned.of("distilled")) == [0, 1, 2, 3, 4]
    assert [row.name for row in study.groups()["Students"]] == ["student alone", "distilled"]
    assert study.of("nothing") == {} and study.row(None) is None
    assert study.metrics() == ["cider", "vqa", "BLEU-4"]
    assert study.outcomes[0].score("cider") == study.outcomes[0].cider
    assert study.outcomes[0].score("BLEU-4") == study.outcomes[0].scores["BLEU-4"]
    assert math.isnan(study.outcomes[0].score("METEOR"))


def test_contradictions_are_refused(study):
    with pytest.raises(ValueError, match="each row once, got 'distilled' twice"):
        replace(study, rows=(*study.rows, study.row("distilled")))
    with pytest.raises(ValueError, match=r"outcome of row and seed once, got \('distilled', 4\) twice"):
        replace(study, outcomes=(*study.outcomes, study.of("distilled")[4]))
    with pytest.raises(ValueError, match="got one of 'distilled'"):
        replace(study, rows=tuple(row for row in study.rows if row.name != "distilled"))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"pictures": [], "rows": [{"x": 1}], "outcomes": []}'])
def test_a_file_of_something_else(tmp_path, text):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(VlkdError, match=r"study\.json' to hold a study"):
        Study.load(tmp_path / "study.json")


def test_no_file(tmp_path):
    with pytest.raises(VlkdError, match="There is no study"):
        Study.load(tmp_path / "study.json")
