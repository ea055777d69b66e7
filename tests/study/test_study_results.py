"""A study's folder: complete, made again from study.json, and what it lends to a single run's page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vlkd.recipes import load_recipe
from vlkd.report.repetition import Repetition
from vlkd.study import Study, write_results
from vlkd.study.findings import METRICS, Claim
from vlkd.study.results import REPETITION, repetition, texts
from vlkd.study.statistics import paired_difference

pytestmark = pytest.mark.slow

TEXTS = {"table.md", "claims.md", "table.csv", "runs.csv"}
FIGURES = {"claims.png", "seeds.png", "queue.png", "data.png"}
RENAMED = {"distilled": "distilled student", "student alone": "student"}


@pytest.fixture(scope="module")
def claiming(study: Study) -> Study:
    """With a claim, and with the names that the pages of single runs have."""
    rows = tuple(
        replace(row, name=RENAMED.get(row.name, row.name), baseline=RENAMED.get(row.baseline or "", row.baseline))
        for row in study.rows
    )
    outcomes = tuple(replace(each, row=RENAMED.get(each.row, each.row)) for each in study.outcomes)
    claims = (Claim("It helps", "distilled student", "student"),)
    settings = load_recipe("demo", ["seed=3", "world.seed=5"]).model_dump(mode="json")
    return replace(study, rows=rows, outcomes=outcomes, claims=claims, settings=settings, headline="distilled student")


def test_everything_is_made_again_from_the_raw_outcomes(claiming: Study, tmp_path: Path) -> None:
    page = write_results(tmp_path / "one", claiming)
    again = write_results(tmp_path / "two", Study.load(tmp_path / "one" / "study.json"))
    assert page.read_text() == again.read_text()
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"study.json", "page.html", REPETITION} | TEXTS | FIGURES
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_a_study_of_other_rows_lends_nothing(study: Study, tmp_path: Path) -> None:
    assert repetition(study).differences == () and set(texts(study)) == TEXTS
    for stale in ("claims.png", REPETITION):
        (tmp_path / stale).write_text("of another study")
    write_results(tmp_path, study)
    assert not (tmp_path / "claims.png").exists() and not (tmp_path / REPETITION).exists()


def test_the_lent_differences_are_the_studys(claiming: Study) -> None:
    lent = Repetition.from_json(repetition(claiming).to_json())
    assert lent == repetition(claiming)
    assert [(each.first, each.second) for each in lent.differences] == [("distilled student", "student")] * 2
    for metric, name in METRICS.items():
        expected = paired_difference(claiming, "distilled student", "student", metric)
        found = lent.of(name, "distilled student", "student")
        assert found is not None
        assert found.estimate == expected and expected.seeds == 5
    assert lent.of("CIDEr", "student", "distilled student") is None


def test_one_seed_repeats_nothing(claiming: Study) -> None:
    once = replace(claiming, outcomes=tuple(each for each in claiming.outcomes if each.seed == 0))
    assert repetition(once).differences == ()


def test_validation_is_no_test(claiming: Study) -> None:
    assert REPETITION in texts(claiming) and REPETITION not in texts(replace(claiming, split="validation"))


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ([], True),
        (["seed=7"], True),
        (["world.seed=9"], True),
        (["name=mine"], True),
        (["schedules.student.log_every=7", "schedules.adapt.save_every=9"], True),
        (["world.train=1199"], False),
        (["distillation.alpha=999"], False),
        (["schedules.student_vqa.steps=801"], False),
    ],
)
def test_other_settings_are_another_matter(claiming: Study, changes: list[str], same: bool) -> None:
    assert repetition(claiming).is_of(load_recipe("demo", changes)) is same
