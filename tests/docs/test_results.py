"""What is told of the study is what its committed raw outcomes say, wherever it is told."""

from __future__ import annotations

import re
from importlib import resources
from itertools import permutations
from pathlib import Path

import pytest

from vlkd.recipes import Recipe, load_recipe
from vlkd.report.repetition import known_repetition
from vlkd.study import Study, load_study
from vlkd.study.findings import METRICS
from vlkd.study.results import FIGURES, REPETITION, texts
from vlkd.study.statistics import paired_difference
from vlkd.study.tables import change

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results" / "ablations"


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.load(RESULTS / "study.json")


def test_the_committed_study_is_the_packaged_one_whole(study: Study) -> None:
    spec = load_study("ablations")
    assert [row.name for row in study.rows] == [row.name for row in spec.rows]
    for row in spec.rows:
        assert list(study.of(row.name)) == list(spec.seeds_of(row)), row.name
    packaged = load_recipe(spec.recipe, spec.changes)
    assert Recipe.model_validate(study.settings).trained_numbers() == packaged.trained_numbers()
    assert study.split == "test" and len(study.pictures) == study.settings["world"]["test"]
    assert len(study.commit) == 40 and study.hardware and study.versions["torch"]


def test_tables_and_claims_are_made_from_the_raw_outcomes(study: Study) -> None:
    made = texts(study)
    assert {path.name for path in RESULTS.iterdir()} == {"study.json", "page.html", *made, *FIGURES}
    for name, text in made.items():
        assert (RESULTS / name).read_text(encoding="utf-8") == text, name


def test_the_claims_of_the_docs_are_the_studys(study: Study) -> None:
    table = texts(study)["claims.md"].strip()
    assert table in (DOCS / "does-distillation-help.md").read_text(encoding="utf-8")


def test_every_difference_in_print_is_one_of_the_studys(study: Study) -> None:
    pairs = permutations([row.name for row in study.rows], 2)
    known = {change(paired_difference(study, *pair, metric)) for pair in pairs for metric in METRICS}
    for page, least in ((DOCS / "does-distillation-help.md", 30), (DOCS.parent / "README.md", 5)):
        printed = re.findall(r"[+-]\d+\.\d \[[+-]\d+\.\d,\s[+-]\d+\.\d\]", page.read_text(encoding="utf-8"))
        assert len(printed) >= least
        assert [each for each in printed if " ".join(each.split()) not in known] == []


def test_the_demos_page_says_how_sure_it_is() -> None:
    packaged = resources.files("vlkd.report") / REPETITION
    assert packaged.read_text(encoding="utf-8") == (RESULTS / REPETITION).read_text(encoding="utf-8")
    known = known_repetition(load_recipe("demo", ["seed=1", "world.seed=1"]))
    assert known is not None and known_repetition(load_recipe("quick")) is None
    for metric in ("CIDEr", "VQA accuracy"):
        assert known.of(metric, "distilled student", "student") is not None
