"""The guides' commands, one after the other, as a reader types them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from oscar_files import write_all
from typer.testing import CliRunner

from vlkd.cli import app
from vlkd.data import RegionStore
from vlkd.errors import VlkdError
from vlkd.pipeline.exported import ExportedModel
from vlkd.recipes import load_recipe
from vlkd.regions.zoo import load_detector

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"
STAGES = ("teacher", "adapt", "student", "teacher_captioning", "teacher_vqa", "student_captioning", "student_vqa")
RECIPE = """
name: tiny
text: {vocabulary: 120}
teacher: {layers: 2, width: 32, heads: 2, ffn: 64}
student: {layers: 2, width: 16, heads: 2, ffn: 32}
distillation: {queue_size: 32}
evaluation: {beam: 2}
schedules:
""" + "".join(f"  {stage}: {{steps: 2, batch: 2, lr: 1.0e-3}}\n" for stage in STAGES)


def commands(guide: Path) -> list[list[str]]:
    """Every line of its blocks that begins with `vlkd`, in order."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", guide.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = "\n".join(block for language, block in blocks if not language).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("vlkd ")]


def run_command(step: list[str]) -> str:
    result = CliRunner().invoke(app, step, catch_exceptions=False)
    assert result.exit_code == 0, (step, result.output)
    return result.output


def run(steps: list[list[str]]) -> None:
    for step in steps:
        run_command(step)
    assert Path("student/model.safetensors").is_file()


def test_from_a_folder_of_pictures_to_an_exported_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "vlkd.pipeline.run.known_repetition", lambda recipe: pytest.fail("what is known is of rendered pictures")
    )
    Path("recipe.yaml").write_text(RECIPE)
    steps = commands(DOCS / "own-pictures.md")
    assert len(steps) == 9
    steps[0][steps[0].index("200")] = "6"
    steps[4][steps[4].index("0.1")] = "0.34"
    run(steps)
    assert Path("runs/mine/report.html").read_text().count("data:image/png;base64,") >= 4
    check_exported(Path("student"), Path("pictures/test-000001.png"))


def check_exported(student: Path, picture: Path) -> None:
    """Of a picture by itself it sees what was extracted for training; another detector or task is refused in one sentence."""
    model = ExportedModel.open(student)
    (stored,) = RegionStore.open("data/store").read([picture.stem], "paired")
    memory, corpus = model.regions(picture, "captioning")
    (found,) = memory.read(corpus.keys, "paired")
    np.testing.assert_array_equal(found.boxes, stored.boxes)
    np.testing.assert_allclose(
        found.student_features, stored.student_features, rtol=1e-3, atol=1e-4
    )  # stored in float16
    assert found.tags == stored.tags
    command = ["caption", str(picture), "--exported"]
    for words, sentence in (
        (["data"], "holds no exported model"),
        ([str(student), "--detector", "demo-teacher"], "detector 'demo-student', but 'demo-teacher' is named"),
        ([str(student), "--score-threshold", "0.5"], "--score-threshold 0.2, but this is 'demo-student' with .* 0.5"),
    ):
        with pytest.raises(VlkdError, match=sentence):
            run_command([*command, *words])
    with pytest.raises(VlkdError, match="captions pictures, but one that answers questions is expected"):
        run_command(["answer", str(picture), "what ?", "--exported", str(student)])
    with pytest.raises(VlkdError, match="was trained on regions of the detector 'demo-student'"):
        ExportedModel.open(student, load_detector("demo-teacher"))


def test_the_guides_recipe_begins_with_the_demos(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", (DOCS / "own-pictures.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "recipe.yaml").write_text(block)
    recipe, demo = load_recipe(str(tmp_path / "recipe.yaml")), load_recipe("demo")
    assert (recipe.teacher, recipe.student, recipe.distillation) == (demo.teacher, demo.student, demo.distillation)


def test_from_oscar_files_to_an_exported_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_all(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    steps = commands(DOCS / "oscar-files.md")
    assert len(steps) == 11
    run(steps)
    assert Path("runs/evaluation/captions.json").is_file()
