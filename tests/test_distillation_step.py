"""The measurement of the whole step: every contender does the same step, and what is printed is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import distillation_step
from benchmarks.distillation_contenders import BASE, NAMES, PADDED, PARTS, Case, Step, contenders
from benchmarks.distillation_samples import PAPER, RandomSamples, lengths
from benchmarks.distillation_table import stored, table

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
OVERRIDES = (
    "teacher={layers: 3, width: 32, heads: 4, ffn: 64}",
    "student={layers: 3, width: 16, heads: 4, ffn: 32}",
    "text={vocabulary: 64, caption: 12, question: 8, tags: 6}",
    "evaluation.max_tokens=10",
    "detectors={max_regions: 5, student: {feature_dim: 16}, teacher: {feature_dim: 24}}",
    "distillation={queue_size: 40, queue_tokens: 24}",
)
TINY = Case(4, 2, overrides=OVERRIDES)
EVERY_LAYER = TINY._replace(every_layer=True)
DISTIL = ("vlkd", PADDED, "eager, padded")


def gradients(step: Step) -> dict[str, Tensor]:
    step.backward()
    return {name: x.grad for name, x in step.trained.named_parameters() if x.grad is not None}


@pytest.mark.parametrize("case", [TINY, EVERY_LAYER], ids=["last layer", "every layer"])
def test_cut_padded_and_eager_are_the_same_step(case: Case) -> None:
    steps = contenders(case, "cpu")
    distillation_step.same_step(steps)
    eager, *others = (gradients(steps[name]) for name in reversed(DISTIL))
    largest = max(x.abs().max() for x in eager.values())
    for ours in others:
        assert ours.keys() == eager.keys()
        for name, gradient in eager.items():
            assert (gradient - ours[name]).abs().max() <= 1e-5 * largest, name  # sums of float32 in another order
    without, alone = (gradients(steps[name]) for name in (BASE, "student alone"))
    assert without.keys() == alone.keys() and all(torch.equal(without[name], x) for name, x in alone.items())


def test_means_with_and_without_a_gradient_are_of_the_whole_step() -> None:
    for name, step in contenders(TINY, "cpu").items():
        means = step.forward()
        assert not any(mean.requires_grad for mean in means.values())
        assert {term: mean.item() for term, mean in step.backward()[0].items()} == pytest.approx(
            {term: mean.item() for term, mean in means.items()}
        ), name


def test_they_stay_the_same_when_the_queue_has_been_written() -> None:
    """Also where the queue holds tokens of the step's own pictures, which are no negatives."""
    steps = {name: step for name, step in contenders(TINY, "cpu").items() if name in DISTIL}
    for step in steps.values():
        step()
    queues = [step.method.queue for step in steps.values()]
    for queue in queues[1:]:
        assert torch.equal(queue.ids, queues[0].ids) and (queue.ids >= 0).sum() == 24
        torch.testing.assert_close(queue.rows, queues[0].rows, rtol=0, atol=1e-6)
    for step in steps.values():
        step.optimizer.param_groups[0]["lr"] = 0.0
        step.done = 0  # the pictures that have just been written
    distillation_step.same_step(steps)


def test_no_two_steps_show_the_same_pictures() -> None:
    step = contenders(TINY._replace(contenders=("vlkd",)), "cpu")["vlkd"]
    seen = []
    for step.done in range(20):
        seen += torch.cat([batch["picture_ids"] for batch in step.batches()]).tolist()
    assert len(set(seen)) == 20 * TINY.batch and min(seen) >= 0


def test_a_difference_is_found() -> None:
    steps = contenders(TINY, "cpu")
    with torch.no_grad():
        steps["eager, padded"].trained.projection.weight[0, 0] += 1.0
    with pytest.raises(AssertionError, match="hidden"):
        distillation_step.same_step(steps)


def test_terms_of_each_contender() -> None:
    steps = contenders(TINY, "cpu")
    task = ["language", "matching"]
    assert {name: list(step()) for name, step in steps.items()} == {
        **{name: [*task, "attention", "hidden"] for name in DISTIL},
        BASE: task,
        "student alone": task,
    }
    assert steps[BASE].teacher is not None and steps["student alone"].teacher is None
    assert list(contenders(EVERY_LAYER, "cpu")["vlkd"]())[2:] == ["attention", "hidden", "attention 0", "attention 1"]


def test_only_eager_stores_maps() -> None:
    """Long sequences: the maps, 3 layers of 2 x 4 x 256 x 256 numbers for the student alone, exceed all else."""
    overrides = (*OVERRIDES, "text={vocabulary: 64, caption: 200, question: 8, tags: 51}")
    rows = distillation_step.measure(Case(2, 1, overrides=overrides), "cpu", enough=0.0, least=1)
    memory = {row["contender"]: row["peak_memory"] for row in rows}
    assert memory["eager, padded"] - memory[PADDED] > 3 * 2 * 4 * 256 * 256 * 4
    longest = 100 + 51 + 5  # captions fill half of their budget at most
    assert memory["vlkd"] - memory[BASE] < 2 * 4 * longest**2 * 4


def test_lengths_are_those_that_are_stated() -> None:
    rng = np.random.default_rng(0)
    drawn = {name: lengths(name, budget, 1000, rng) for name, (_, _, budget) in PAPER.items()}
    assert {name: (x.min(), x.max()) for name, x in drawn.items()} == {
        "caption": (10, 20),
        "tags": (10, 30),
        "regions": (10, 50),
    }
    assert sum(x.mean() for x in drawn.values()) == pytest.approx(65, abs=1)
    longer = lengths("caption", 400, 1000, rng)
    assert longer.min() >= 100 and longer.max() <= 200 and len(set(longer.tolist())) > 90


def test_a_step_reads_what_the_collator_gives_of_these_lengths() -> None:
    recipe = TINY.recipe()
    samples = RandomSamples(recipe, 1)
    budget = recipe.text.caption + recipe.text.tags + recipe.detectors.max_regions
    padded, cut = samples.batches("max_length", 1), samples.batches("longest", 2)
    (batch,) = padded.batches
    assert batch["valid"].shape == (4, budget) and padded.order is None
    assert padded.max_length == cut.max_length == budget
    assert padded.real == pytest.approx(sum(samples.lengths) / (4 * budget)) and padded.real < cut.real
    long, short = (batch["valid"].sum(1).tolist() for batch in cut.batches)
    assert sorted(long + short) == sorted(samples.lengths) and min(long) >= max(short)
    assert cut.order is not None and sorted(cut.order.tolist()) == [0, 1, 2, 3]
    for of in (padded, cut):
        assert all(torch.equal(batch["distill_mask"], batch["valid"]) for batch in of.batches)
        assert all(batch["matched"].all() for batch in of.batches)
        masked = sum(int((batch["mlm_labels"] >= 0).sum()) for batch in of.batches)
        assert 0 < masked < sum(samples.lengths) / 2


def test_the_paper_has_the_papers_size() -> None:
    assert distillation_step._described(distillation_step.PAPER_ON_CPU) == {
        "teacher": [12, 768],
        "student": [12, 384],
        "heads": 12,
        "tokens": 120,
        "batch": 64,
        "micro_batches": 4,
        "vocabulary": 30522,
        "queue": 4096,
        "dtype": "float32",
        "every_layer": False,
    }
    assert [distillation_step._described(case)["tokens"] for case in distillation_step.ON_CPU] == [120, 512]
    cases = (*distillation_step.ON_CPU, *distillation_step.ON_GPU)
    assert all(case.micro_batches > 1 and case.recipe().schedules.student.batch == case.batch for case in cases)
    assert distillation_step.PAPER_ON_CPU.contenders == ("vlkd", PADDED)


def test_the_command_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(distillation_step, "ENOUGH", 0.0)
    monkeypatch.setattr(distillation_step, "PAPER_ON_CPU", EVERY_LAYER._replace(contenders=("vlkd", PADDED)))
    out = tmp_path / "step" / "run.json"
    distillation_step.main(["--out", str(out), "--paper"], cases=[TINY])
    printed, run = capsys.readouterr().out, json.loads(out.read_text())
    assert printed == table([out])
    assert [row["contender"] for row in run["steps"]] == [*NAMES, "vlkd", PADDED]
    assert all(f"| {name} |" in printed for name in (*NAMES, *PARTS))
    assert run["machine_info"]["threads"] and run["machine_info"]["versions"]["torch"] and "commit_info" in run
    assert "`vlkd.training.budget` predicted" in printed and "The process held at most" in printed
    for row in run["steps"]:
        seconds, parts = row["seconds"], row["parts"]
        assert seconds["q1"] <= seconds["median"] <= seconds["q3"]
        assert (
            0.2 * seconds["min"] < sum(parts.values()) <= seconds["max"] * len(PARTS)
        )  # medians of each part by itself
        absent = {part for part in PARTS if not parts[part]}
        expected = {BASE: {"enqueue"}, "student alone": {"teacher", "enqueue"}}
        assert absent == expected.get(row["contender"], set())
        assert bool(row["of_padded"]) == (row["contender"] in DISTIL) and 0 < row["real"] <= 1
    by_name = {row["contender"]: row for row in run["steps"][:5]}
    assert by_name[PADDED]["of_padded"]["median"] == by_name[BASE]["ratio"]["median"] == 1
    assert by_name["vlkd"]["real"] == by_name["student alone"]["real"] > by_name["eager, padded"]["real"]


def test_the_table_is_that_of_the_committed_measurements() -> None:
    assert table(stored()) in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


def test_without_measurements_the_table_says_so() -> None:
    assert table([]) == "Not yet measured.\n"
