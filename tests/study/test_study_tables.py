"""The tables print the study's numbers: rounded in Markdown and in the terminal, whole in the CSVs."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace

import pytest
from rich.console import Console

from vlkd.evaluation.seeds import Estimate
from vlkd.study.findings import Outcome, RowInfo, Study
from vlkd.study.statistics import summarise
from vlkd.study.tables import (
    bounds,
    change,
    markdown,
    runs_csv,
    signed,
    spread,
    table_csv,
    terminal_table,
)


def lines_of(markdown_text: str) -> dict[str, list[str]]:
    """First cell -> the line's cells."""
    cells = [line.strip("|").split(" | ") for line in markdown_text.splitlines() if line.startswith("| ")]
    return {each[0].strip(): [cell.strip() for cell in each] for each in cells}


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def in_terminal(study: Study) -> str:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(terminal_table(study))
    return console.file.getvalue()


def test_how_numbers_print():
    several = Estimate(0.612, 0.0149, -0.0004, 0.1249, 3)
    assert spread(several) == "61.2 ± 1.5"
    assert bounds(several) == "[+0.0, +12.5]" and bounds(several, sign=False) == "[-0.0, 12.5]"
    assert change(several) == "+61.2 [+0.0, +12.5]"
    one = Estimate(-0.05, math.nan, math.nan, math.nan, 1)
    assert (spread(one), change(one), bounds(one), bounds(None), change(None)) == ("-5.0", "-5.0", "–", "–", "–")
    assert (signed(math.nan), signed(-0.0004), signed(-0.0006)) == ("–", "+0.0", "-0.1")


def test_markdown_numbers_are_those_of_the_data(study):
    lines, summary = lines_of(markdown(study)), summarise(study)
    assert len(lines["row"]) == 10
    for row in study.rows:
        cells = lines[row.name]
        seeds = study.of(row.name)
        assert cells[1] == ("0.91 M" if "teacher" in row.name else "0.20 M")
        assert cells[2:4] == [str(len(seeds)), row.baseline or "–"]
        for place, metric in ((4, "cider"), (7, "vqa")):
            mean = sum(each.score(metric) for each in seeds.values()) / len(seeds)
            result = summary.of(row.name, metric)
            assert cells[place].startswith(f"{100 * mean:.1f}")
            assert cells[place].count("[") == (len(seeds) > 1)
            assert cells[place + 1] == change(result.difference)
            assert cells[place + 2] == bounds(result.over_test_items)
    assert lines["distilled"][5].startswith(f"{100 * summary.of('distilled', 'cider').difference.mean:+.1f} [")


def test_markdown_groups_and_says_what_the_intervals_are(study):
    text = markdown(study)
    headings = re.findall(r"\| \*\*(.+?)\*\*", text)
    assert headings == ["Teachers", "Students", "Which losses", "Queue", "Data"]
    assert text.index("**Queue**") < text.index("| no queue") < text.index("**Data**")
    for words in ("Student's t interval over seeds, 95 %", "1 to 5 seeds", "24 test pictures", "not about seeds",
                  "paired over the seeds"):  # fmt: skip
        assert words in text, words
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {11}


def test_markdown_cells_hold_any_name(study):
    evil = "a|b <script>\n# c"
    rows = (RowInfo(evil, "g|h", "", None), RowInfo("x", "g|h", "", evil))
    text = markdown(Study("t", "test", rows, (Outcome(evil, 0, 1, 0.5, 0.5, 1.0), Outcome("x", 0, 1, 0.5, 0.5, 1.0))))
    assert text.count(r"a\|b &lt;script> # c") == 2 and r"**g\|h**" in text
    assert not any(line.startswith("#") for line in text.splitlines())


def test_table_csv_is_unrounded(study):
    lines, summary = read_csv(table_csv(study)), summarise(study)
    assert len(lines) == len(study.rows) * 3
    names = {"CIDEr": "cider", "VQA accuracy": "vqa", "BLEU-4": "BLEU-4"}
    for line in lines:
        result = summary.of(line["row"], names[line["metric"]])
        assert float(line["mean"]) == result.score.mean and int(line["seeds"]) == result.score.seeds
        if result.difference is None:
            assert line["difference_mean"] == line["baseline"] == ""
        else:
            assert float(line["difference_mean"]) == result.difference.mean
        if result.over_test_items is not None:
            assert float(line["pictures_low"]) == result.over_test_items.low
            assert line["pictures"] == "24"
    single = next(line for line in lines if line["row"] == "attention only")
    assert single["low"] == single["deviation"] == single["difference_high"] == ""
    assert "nan" not in table_csv(study).lower()


def test_runs_csv_has_every_seed(study):
    lines = read_csv(runs_csv(study))
    assert len(lines) == len(study.outcomes)
    for line, outcome in zip(lines, study.outcomes, strict=True):
        assert (line["row"], int(line["seed"]), float(line["CIDEr"])) == (outcome.row, outcome.seed, outcome.cider)
        assert float(line["VQA accuracy"]) == outcome.vqa
        assert float(line["BLEU-4"]) == outcome.scores["BLEU-4"]
        assert float(line["seconds"]) == outcome.seconds


def test_terminal_table_fits_100_columns_and_keeps_its_numbers_whole(study):
    long = "a student that was distilled from a teacher on its own regions, tokens misaligned"
    rows = tuple(replace(row, name=long) if row.name == "distilled, 1 %" else row for row in study.rows)
    outcomes = tuple(replace(o, row=long) if o.row == "distilled, 1 %" else o for o in study.outcomes)
    study = replace(study, rows=rows, outcomes=outcomes)
    text, summary = in_terminal(study), summarise(study)
    assert max(map(len, text.splitlines())) <= 100
    for row in study.rows:
        for metric in ("cider", "vqa"):
            result = summary.of(row.name, metric)
            assert spread(result.score) in text and change(result.difference) in text
    assert [group for group in study.groups() if group not in text] == []


def test_a_row_without_outcomes_prints_dashes(study):
    study = replace(study, rows=(*study.rows, RowInfo("to come", "Students", "", "student alone")))
    assert lines_of(markdown(study))["to come"] == ["to come", "–", "0", "student alone"] + ["–"] * 6
    assert "0 to 5 seeds" in markdown(study)
    assert re.search(r"to come +0 +– +– +– +–", in_terminal(study))


def test_a_metric_that_nobody_measured_has_no_column(study):
    captions_only = replace(study, outcomes=tuple(replace(each, vqa=math.nan) for each in study.outcomes))
    text = markdown(captions_only)
    assert "VQA" not in text and "CIDEr" in text
    assert "VQA" not in in_terminal(captions_only) and "VQA" not in runs_csv(captions_only)


@pytest.mark.parametrize("seeds, words", [(1, "with 1 seed;"), (2, "with 2 seeds;")])
def test_seeds_are_counted(seeds, words):
    outcomes = tuple(Outcome("a", seed, 1, 0.5, 0.5, 1.0) for seed in range(seeds))
    assert words in markdown(Study("t", "test", (RowInfo("a", "g"),), outcomes))
