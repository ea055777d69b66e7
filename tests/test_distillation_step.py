"""The measurement of the whole step: every contender does the same step, and what is printed is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import distillation_step
from benchmarks.distillation_contenders import NAMES, PARTS, Case, Step, contenders, random_batch
from benchmarks.distillation_table import BASE, stored, table

ROOT = Path(__file__).resolve().parent.parent
OVERRIDES = (
    "teacher={layers: 3, width: 32, heads: 4, ffn: 64}",
    "student={layers: 3, width: 16, heads: 4, ffn: 32}",
    "text={vocabulary: 64, caption: 12, question: 8, tags: 6}",
    "evaluation.max_tokens=10",
    "detectors={max_regions: 5, student: {feature_dim: 16}, teacher: {feature_dim: 24}}",
    "distillation={queue_size: 40, queue_tokens: 24}",
)
TINY = Case(4, overrides=OVERRIDES)
EVERY_LAYER = TINY._replace(every_layer=True)


def gradients(step: Step) -> dict[str, Tensor]:
    step.backward()
    return {name: x.grad for name, x in step.trained.named_parameters() if x.grad is not None}


@pytest.mark.parametrize("case", [TINY, EVERY_LAYER], ids=["last layer", "every layer"])
def test_ours_and_eager_are_the_same_step(case: Case) -> None:
    steps = contenders(case, "cpu")
    distillation_step.same_step(steps)
    ours, eager = (gradients(steps[name]) for name in ("vlkd", "eager"))
    assert ours.keys() == eager.keys()
    largest = max(x.abs().max() for x in eager.values())
    for name, gradient in eager.items():
        assert (gradient - ours[name]).abs().max() <= 1e-5 * largest, name  # sums of float32 in another order


def test_they_stay_the_same_when_the_queue_has_been_written() -> None:
    """Also where the queue holds tokens of the batch's own pictures, which are no negatives."""
    steps = {name: step for name, step in contenders(TINY, "cpu").items() if name in ("vlkd", "eager")}
    for step in steps.values():
        step()
    rows = [step.method.queue for step in steps.values()]
    assert all(torch.equal(queue.ids, rows[0].ids) and (queue.ids >= 0).sum() == 24 for queue in rows)
    for step in steps.values():
        step.optimizer.param_groups[0]["lr"] = 0.0
        step.done = 0  # the pictures that have just been written
    distillation_step.same_step(steps)


def test_a_difference_is_found() -> None:
    steps = contenders(TINY, "cpu")
    with torch.no_grad():
        steps["eager"].trained.projection.weight[0, 0] += 1.0
    with pytest.raises(AssertionError, match="hidden"):
        distillation_step.same_step(steps)


def test_terms_of_each_contender() -> None:
    steps = contenders(TINY, "cpu")
    task = ["language", "matching"]
    assert {name: list(step()) for name, step in steps.items()} == {
        "vlkd": [*task, "attention", "hidden"],
        "eager": [*task, "attention", "hidden"],
        BASE: task,
        "student alone": task,
    }
    assert steps[BASE].teacher is not None and steps["student alone"].teacher is None
    assert list(contenders(EVERY_LAYER, "cpu")["vlkd"]())[2:] == ["attention", "hidden", "attention 0", "attention 1"]


def test_only_eager_stores_maps() -> None:
    """Long sequences: the maps, 3 layers of 2 x 4 x 256 x 256 numbers for the student alone, exceed all else."""
    overrides = (*OVERRIDES, "text={vocabulary: 64, caption: 200, question: 8, tags: 51}")
    rows = distillation_step.measure(Case(2, overrides=overrides), "cpu", enough=0.0, least=1)
    memory = {row["contender"]: row["peak_memory"] for row in rows}
    assert memory["eager"] - memory["vlkd"] > 3 * 2 * 4 * 256 * 256 * 4
    assert memory["vlkd"] - memory[BASE] < 2 * 4 * 256 * 256 * 4


def test_a_batch_is_as_the_collator_gives_it() -> None:
    recipe = TINY.recipe()
    batch = random_batch(recipe, "cpu")
    tokens = recipe.text.caption + recipe.text.tags + recipe.detectors.max_regions
    assert batch["attention_mask"].shape == (4, 1, tokens) and batch["distill_mask"].shape == (4, tokens)
    assert 0 < (~batch["distill_mask"]).sum() < batch["distill_mask"].sum()
    labels = batch["mlm_labels"]
    assert (labels >= 0).sum() < labels.numel() / 2 and torch.equal(
        labels[labels >= 0], batch["input_ids"][labels >= 0]
    )


def test_the_paper_has_the_papers_size() -> None:
    assert distillation_step._described(distillation_step.PAPER_ON_CPU) == {
        "teacher": [12, 768],
        "student": [12, 384],
        "heads": 12,
        "tokens": 120,
        "batch": 64,
        "vocabulary": 30522,
        "queue": 4096,
        "dtype": "float32",
        "every_layer": False,
    }
    assert [distillation_step._described(case)["tokens"] for case in distillation_step.ON_CPU] == [120, 512]


def test_the_command_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(distillation_step, "ENOUGH", 0.0)
    monkeypatch.setattr(distillation_step, "PAPER_ON_CPU", EVERY_LAYER._replace(contenders=("vlkd",)))
    out = tmp_path / "step" / "run.json"
    distillation_step.main(["--out", str(out), "--paper"], cases=[TINY])
    printed, run = capsys.readouterr().out, json.loads(out.read_text())
    assert printed == table([out])
    assert [row["contender"] for row in run["steps"]] == [*NAMES, "vlkd"]
    assert all(f"| {name} |" in printed for name in (*NAMES, *PARTS))
    assert run["machine_info"]["threads"] and run["machine_info"]["versions"]["torch"] and "commit_info" in run
    assert "of which `vlkd.training.budget` tells" in printed and "the process at most" in printed
    for row in run["steps"]:
        seconds, parts = row["seconds"], row["parts"]
        assert seconds["q1"] <= seconds["median"] <= seconds["q3"]
        assert 0.2 * seconds["min"] < sum(parts.values()) < 5 * seconds["max"]  # other rounds of some milliseconds
        absent = {part for part in PARTS if not parts[part]}
        assert absent == {"vlkd": set(), "eager": set(), BASE: {"enqueue"}}.get(
            row["contender"], {"teacher", "enqueue"}
        )


def test_the_table_is_that_of_the_committed_measurements() -> None:
    assert table(stored()) in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


def test_without_measurements_the_table_says_so() -> None:
    assert table([]) == "Not yet measured.\n"
