"""A small study from its file to its page; what is there already is not done again, and numbers repeat."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vlkd.recipes import load_recipe
from vlkd.study import load_study, run_study

pytestmark = pytest.mark.slow

SHORT = [f"schedules.{stage}.steps=3" for stage in type(load_recipe("quick").schedules).model_fields]
ROWS = f"""
name: mine
recipe: quick
changes: {SHORT}
seeds: {{main: 2, others: 1}}
rows:
  - {{name: student, group: Models, model: student, main: true}}
  - {{name: taught, group: Models, model: distilled, main: true, baseline: student}}
  - {{name: attention, group: Losses, model: distilled, baseline: student, changes: [distillation.beta=0]}}
"""


@pytest.fixture(scope="module")
def study_in(quick_run, tmp_path_factory: pytest.TempPathFactory):
    """Runs some rows of the study in a folder of that name, whose pictures have been detected."""
    base = tmp_path_factory.mktemp("study")
    (base / "mine.yaml").write_text(ROWS)

    def run(name: str, more: list[str] | None = None, **options) -> Path:
        folder = base / name
        if not folder.exists():
            shutil.copytree(quick_run.folder / "regions", folder / "regions")
            shutil.copytree(quick_run.folder / "tokenizer", folder / "tokenizer")
        spec = load_study(str(base / "mine.yaml"))
        run_study(spec, folder, folder / "results", changes=more or [], split="validation", jobs=1, **options)
        return folder

    return run


@pytest.fixture(scope="module")
def whole(study_in) -> Path:
    return study_in("whole")


def outcomes(folder: Path) -> dict[tuple[str, int], dict]:
    found = json.loads((folder / "results" / "study.json").read_text())["outcomes"]
    return {(one["row"], one["seed"]): one for one in found}


def test_every_row_has_its_seeds_and_its_results(whole: Path) -> None:
    found = outcomes(whole)
    assert set(found) == {("student", 0), ("student", 1), ("taught", 0), ("taught", 1), ("attention", 0)}
    assert all(0 <= one["vqa"] <= 1 and one["cider"] >= 0 and one["parameters"] > 0 for one in found.values())
    assert (
        found["student", 0]["vqa"] != found["student", 1]["vqa"]
        or found["student", 0]["cider"] != found["student", 1]["cider"]
    )
    results = {path.name for path in (whole / "results").iterdir()}
    assert results == {"study.json", "table.md", "claims.md", "table.csv", "runs.csv", "page.html", "seeds.png"}
    table = (whole / "results" / "table.md").read_text()
    assert all(f"| {row} |" in table for row in ("student", "taught", "attention"))


def test_a_finished_study_is_told_again_without_training(study_in, whole: Path) -> None:
    weights = {path: path.stat().st_mtime_ns for path in whole.glob("stages/*/model/model.safetensors")}
    before = outcomes(whole)
    assert study_in("whole") == whole
    assert {path: path.stat().st_mtime_ns for path in whole.glob("stages/*/model/model.safetensors")} == weights
    assert outcomes(whole) == before


def steps(folder: Path) -> list[int]:
    return sorted({json.loads(path.read_text())["steps"] for path in folder.glob("stages/*/results.json")})


def test_a_commands_settings_go_over_the_studys_and_are_another_row_in_the_same_folder(study_in, whole: Path) -> None:
    before = outcomes(whole)
    assert steps(whole) == [3]
    study_in("whole", rows=["student"], seeds=1, more=["schedules.student_vqa.steps=4"])
    found = outcomes(whole)["student", 0]
    assert found["cider"] == before["student", 0]["cider"] and steps(whole) == [3, 4]
    study_in("whole")
    assert outcomes(whole) == before


def test_a_row_by_itself_gives_the_same_numbers(study_in, whole: Path) -> None:
    alone = outcomes(study_in("alone", rows=["student"], seeds=1))
    assert set(alone) == {("student", 0)}
    expected = outcomes(whole)["student", 0]
    assert {key: value for key, value in alone["student", 0].items() if key != "seconds"} == {
        key: value for key, value in expected.items() if key != "seconds"
    }
