"""Without dropout, batches as long as their longest row give the losses and gradients of batches as long as the budgets."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from tiny_store import make_data, make_recipe
from torch import Tensor

from vlkd.data.collate import Collator
from vlkd.models import VLForCaptioning, VLForPreTraining, VLForVQA, build_encoder
from vlkd.recipes import Recipe
from vlkd.training import Stage, StageData
from vlkd.training.run import METRICS, build_trainer

pytestmark = pytest.mark.slow

MODELS = {"pretraining": VLForPreTraining, "captioning": VLForCaptioning, "vqa": VLForVQA}
PICTURES = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StageData:
    return make_data(tmp_path_factory.mktemp("padding") / "store", PICTURES)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """Budgets far above what the texts need; one batch holds every sample."""
    recipe = make_recipe()
    text = recipe.text.model_copy(update={"caption": 40, "question": 30, "tags": 20, "mismatched": 0.25})
    schedules = {
        name: schedule.model_copy(update={"batch": PICTURES, "dropout": 0.0}) for name, schedule in recipe.schedules
    }
    still = {
        role: getattr(recipe, role).model_copy(update={"dropout": 0.0, "layers": 2}) for role in ("teacher", "student")
    }
    return recipe.model_copy(update={"text": text, "schedules": recipe.schedules.model_copy(update=schedules), **still})


def trainer_of(recipe: Recipe, data: StageData, task: str, view: str, folder: Path):
    """A stage with every loss that its view allows: a student with its teacher, or a teacher that reads its own regions."""
    schedule = recipe.schedules.student
    if view == "own":
        stage = Stage("alone", task, "teacher", "own", schedule)  # type: ignore[arg-type]
    else:
        torch.manual_seed(3)
        shape = recipe.teacher.model_copy(update={"layers": 2})
        answers = {"num_answers": len(data.answer_vocabulary())} if task == "vqa" else {}
        teacher = build_encoder(shape, data.store.teacher_dim, len(data.tokenizer), model_class=MODELS[task], **answers)
        teacher.save_pretrained(folder / "teacher")
        stage = Stage("taught", task, "student", view, schedule, teacher=folder / "teacher")  # type: ignore[arg-type]
    return build_trainer(folder, recipe, stage, data.inputs(recipe, stage), seed=0)


def losses_and_gradients(trainer, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """Every term's mean, and the gradient of their sum for all weights, flat."""
    trainer.trained.zero_grad()
    teacher = trainer.teacher(batch) if trainer.teacher else None
    terms = trainer.method.terms(trainer.trained(batch), teacher, batch)
    means = {name: term.sum / term.count for name, term in terms.items()}
    torch.stack(list(means.values())).sum().backward()
    gradients = [weight.grad.flatten() for weight in trainer.trained.parameters() if weight.grad is not None]
    return {name: mean.detach() for name, mean in means.items()}, torch.cat(gradients)


@pytest.mark.parametrize(
    ("task", "view"), list(itertools.product(("pretraining", "captioning", "vqa"), ("own", "paired", "misaligned")))
)
def test_losses_and_gradients(data: StageData, recipe: Recipe, tmp_path: Path, task: str, view: str) -> None:
    trainer = trainer_of(recipe, data, task, view, tmp_path)
    samples = [trainer.stream[position] for position in range(PICTURES)]
    short: Collator = trainer.data_collator
    full = Collator(data.tokenizer, recipe.text, short.view, short.source, short.task, "max_length")
    batches = [collator(samples) for collator in (short, full)]
    assert 2 * batches[0]["valid"].shape[1] < batches[1]["valid"].shape[1]
    if trainer.method.queue is not None:
        torch.manual_seed(5)
        trainer.method.queue.enqueue_(torch.randn(9, trainer.method.queue.rows.shape[1]))

    computed: list[int] = []  # rows of the last layer's output
    last = trainer.trained.model.bert.encoder.layer[-1].output
    last.register_forward_hook(lambda module, inputs, output: computed.append(output.shape[:-1].numel()))
    (ours, our_gradient), (theirs, their_gradient) = (losses_and_gradients(trainer, batch) for batch in batches)
    # What no loss reads is left out where hidden states are not distilled.
    assert (computed[0] < batches[0]["valid"].sum()) == (view == "own")
    assert computed[1] == batches[1]["valid"].numel()
    expected = {"own": 1, "paired": 3, "misaligned": 3}[view] + (1 if task == "pretraining" else int(view != "own"))
    assert len(ours) == expected and all(value > 0 for value in ours.values())
    for name, value in theirs.items():
        # The divergence of answers cancels logarithms of order 1, so its error is one of those.
        assert ours[name].item() == pytest.approx(value.item(), rel=1e-6, abs=1e-7), name
    assert their_gradient.abs().max() > 1e-3
    assert (our_gradient - their_gradient).abs().max() <= 1e-6 * their_gradient.abs().max()


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_a_step_cut_by_length_has_the_gradient_and_the_queue_of_one_that_is_not_cut(
    data: StageData, recipe: Recipe, tmp_path: Path, parts: int
) -> None:
    """Two steps, so small that the second one, which reads a filled queue, starts from the same weights."""
    seen = []
    for accumulation in (1, parts):
        (tmp_path / str(accumulation)).mkdir()
        update = {"steps": 2, "accumulation": accumulation, "lr": 1e-12, "log_every": 1, "clip": 1e9}
        schedule = recipe.schedules.student.model_copy(update=update)
        changed = recipe.model_copy(update={"schedules": recipe.schedules.model_copy(update={"student": schedule})})
        trainer = trainer_of(changed, data, "pretraining", "paired", tmp_path / str(accumulation))
        lengths = []
        collate = trainer.data_collator

        def watched(samples, collate=collate, lengths=lengths):
            batch = collate(samples)
            lengths.append(batch["valid"].sum(1).tolist())
            return batch

        trainer.data_collator = watched
        trainer.train()
        metrics = (tmp_path / str(accumulation) / METRICS).read_text().splitlines()
        seen.append(([json.loads(line) for line in metrics], trainer.method.queue, lengths))
    (whole, queue, _), (cut, other, lengths) = seen
    assert len(lengths) == 2 * parts
    for step in (lengths[:parts], lengths[parts:]):
        assert all(min(longer) >= max(shorter) for longer, shorter in itertools.pairwise(step))
    assert len(whole) == len(cut) == 2
    for one, two in zip(whole, cut, strict=True):
        for row in (one, two):
            del row["samples_per_second"]
        assert two == pytest.approx(one, rel=2e-5, abs=1e-9)  # norms of gradients too: sums in another order, fp32
    assert queue.fill == other.fill > 0 and torch.equal(queue.ids, other.ids)
    torch.testing.assert_close(queue.rows, other.rows, rtol=0, atol=1e-6)


def test_the_batchs_own_negatives_keep_the_order_in_which_samples_were_drawn(
    data: StageData, recipe: Recipe, tmp_path: Path
) -> None:
    """A micro-batch is part of that loss, so what it holds is not changed."""
    schedule = recipe.schedules.student.model_copy(update={"accumulation": 3})
    distillation = recipe.distillation.model_copy(update={"in_batch": True})
    schedules = recipe.schedules.model_copy(update={"student": schedule})
    for changed, is_sorted in ((recipe, True), (recipe.model_copy(update={"distillation": distillation}), False)):
        folder = tmp_path / str(is_sorted)
        folder.mkdir()
        trainer = trainer_of(changed.model_copy(update={"schedules": schedules}), data, "vqa", "paired", folder)
        assert trainer.stream.is_sorted == is_sorted
