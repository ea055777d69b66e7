"""One optimizer step of the method: what is divided by what, what counts, and what moves when a part is broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from vlkd.errors import VlkdError
from vlkd.objectives import Term
from vlkd.recipes import Distillation, Recipe, Schedule
from vlkd.training import Stage, StageInputs
from vlkd.training.method import Method
from vlkd.training.run import build_trainer
from vlkd.training.teaching import Teacher
from vlkd.training.trained import Trained
from vlkd.training.trainer import MethodTrainer
from vlkd_kernels import RingQueue

pytestmark = pytest.mark.slow

TASKS = ("pretraining", "captioning", "vqa")
POOLED = {"pooling": "mean", "layers": "all"}
SQUARED = {"hidden": "mse"}
#: A task, and settings of its distillation.
CASES = [
    *(pytest.param(task, {}, id=task) for task in TASKS),
    pytest.param("pretraining", POOLED, id="pretraining, pooled, all layers"),
    pytest.param("captioning", SQUARED, id="captioning, squared"),
    pytest.param("vqa", POOLED | SQUARED, id="vqa, pooled, squared, all layers"),
]


class GradientSpy(TrainerCallback):
    """Keeps every optimizer step's gradient, flat, before it is clipped away."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.gradients: list[Tensor] = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        grads = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        self.gradients.append(torch.cat([grad.flatten() for grad in grads]))


@pytest.fixture
def build(
    tmp_path: Path,
    distilling: Callable[..., Stage],
    recipe_with: Callable[..., Recipe],
    inputs_for: Callable[..., StageInputs],
) -> Callable[..., MethodTrainer]:
    def trainer(task: str = "pretraining", schedule: Schedule | None = None, **settings) -> MethodTrainer:
        stage = distilling(task, schedule) if schedule else distilling(task)
        data = {key: settings.pop(key) for key in ("size", "padding") if key in settings}
        recipe = recipe_with(stage.schedule, **settings)
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return build_trainer(folder, recipe, stage, inputs_for(task, **data), seed=0)

    return trainer


def _batch(trainer: MethodTrainer, size: int = 16) -> dict[str, Tensor]:
    return trainer.data_collator([trainer.stream[position] for position in range(size)])


def _terms(trainer: MethodTrainer, batch: dict[str, Tensor]) -> dict[str, Term]:
    trainer.trained.eval()
    return trainer.method.terms(trainer.trained(batch), trainer.teacher(batch), batch)


@pytest.mark.parametrize(("task", "settings"), CASES)
def test_an_accumulated_step_equals_one_at_once(
    build: Callable[..., MethodTrainer], task: str, settings: dict[str, str]
) -> None:
    seen, queues = [], []
    for accumulation in (1, 4):
        # Steps so small that the second one, which reads a filled queue, starts from the same weights.
        schedule = Schedule(steps=2, batch=64, accumulation=accumulation, lr=1e-12, clip=1e9, log_every=1)
        trainer = build(task, schedule, dropout=0.0, **settings)
        spy = GradientSpy(trainer.trained)
        trainer.add_callback(spy)
        trainer.train()
        seen.append(spy.gradients)
        queues.append(trainer.method.queue)
    for at_once, accumulated in zip(*seen, strict=True):
        assert (at_once - accumulated).abs().max() <= 1e-5 * at_once.abs().max()
    if "hidden" in settings:
        assert queues == [None, None]
        return
    for at_once, accumulated in zip(queues[0].buffers(), queues[1].buffers(), strict=True):
        torch.testing.assert_close(at_once, accumulated, rtol=0, atol=1e-6)  # teacher forwards of other batch shapes
    assert queues[0].fill == 48 and torch.equal(queues[0].ids, queues[1].ids)


@pytest.mark.parametrize(("task", "settings"), CASES)
def test_counts_known_before_the_step_are_those_of_the_terms(
    build: Callable[..., MethodTrainer], task: str, settings: dict[str, str]
) -> None:
    trainer = build(task, **settings)
    batch = _batch(trainer)
    terms = _terms(trainer, batch)
    assert trainer.method.rows_counted(batch).tolist() == [int(term.count) for term in terms.values()]


@pytest.mark.parametrize(("task", "settings"), CASES)
def test_padding_counts_nowhere(build: Callable[..., MethodTrainer], task: str, settings: dict[str, str]) -> None:
    trainers = [build(task, **settings), build(task, padding=7, **settings)]
    rows = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
    losses = []
    for trainer in trainers:
        if trainer.method.queue is not None:
            trainer.method.queue.enqueue_(rows)
        losses.append(_terms(trainer, _batch(trainer)))
    for name, term in losses[0].items():
        torch.testing.assert_close(term.sum, losses[1][name].sum, rtol=1e-4, atol=1e-5)
        assert term.count == losses[1][name].count


@pytest.mark.parametrize("settings", [{}, POOLED, POOLED | SQUARED], ids=["tokens", "pooled", "pooled, squared"])
def test_mismatched_pairs_are_not_distilled(build: Callable[..., MethodTrainer], settings: dict[str, str]) -> None:
    trainer = build(**settings)
    batch = _batch(trainer)
    mismatched = batch["matched"] == 0
    assert 0 < mismatched.sum() < 16
    if trainer.method.queue is not None:
        trainer.method.queue.enqueue_(torch.randn(32, 16, generator=torch.Generator().manual_seed(1)))
    before = _terms(trainer, batch)
    changed = dict(batch)
    for name in ("student_regions", "teacher_regions"):
        noise = torch.randn(batch[name].shape, generator=torch.Generator().manual_seed(2))
        changed[name] = torch.where(mismatched[:, None, None], noise, batch[name])
    after = _terms(trainer, changed)
    for name in ("attention", "hidden"):
        torch.testing.assert_close(before[name].sum, after[name].sum, rtol=1e-5, atol=1e-6)
    assert not torch.equal(before["language"].sum, after["language"].sum)  # they are still read and learned from


@pytest.fixture
def agreeing(teacher_of: Callable[[str], Path], inputs_for: Callable[..., StageInputs]):
    """A student that agrees with its teacher in everything: itself. Gives its terms for two batches."""
    from vlkd.models import VLForVQA, load_model

    def model() -> VLForVQA:
        return load_model(VLForVQA, teacher_of("vqa"))

    trained = Trained(model(), "teacher", teacher_width=16, attends=True).eval()
    assert trained.projection is not None
    nn.init.eye_(trained.projection.weight)
    nn.init.zeros_(trained.projection.bias)
    teacher = Teacher(model(), torch.device("cpu"), with_logits=True)
    queue = RingQueue(16, 64)
    method = Method({"attention": 1.0, "hidden": 1.0, "classes": 1.0}, 2, Distillation(), queue)
    inputs = inputs_for("vqa")
    batch = inputs.collate([inputs.samples[i] for i in range(16)])
    others = inputs.collate([inputs.samples[i] for i in range(16, 32)])
    queue.enqueue_(teacher(others).hidden, others["distill_mask"], others["picture_ids"].unsqueeze(1).expand(-1, 12))

    @torch.no_grad()
    def means(seen_by_teacher: dict[str, Tensor] | None = None) -> dict[str, float]:
        terms = method.terms(trained(batch), teacher(seen_by_teacher or batch), batch)
        return {name: (term.sum / term.count).item() for name, term in terms.items()}

    return batch, means, queue


def test_a_teacher_of_other_pictures_raises_every_distillation_loss(agreeing) -> None:
    batch, means, _ = agreeing
    true = means()
    shuffled = means(batch | {"teacher_regions": batch["teacher_regions"].roll(1, 0)})
    assert true["attention"] < 1e-12 and abs(true["classes"]) < 1e-6
    assert shuffled["attention"] > 1e-4 and shuffled["classes"] > 1e-6
    assert shuffled["hidden"] > true["hidden"] + 0.05


def test_a_queue_held_at_zero_changes_the_hidden_loss(agreeing) -> None:
    _, means, queue = agreeing
    filled = means()
    queue.rows.zero_()
    zero = means()
    assert zero["attention"] == filled["attention"]
    assert zero["hidden"] < 0.5 * filled["hidden"]  # zeros are easier negatives than other pictures' tokens


def test_the_teacher_is_frozen_and_in_eval_mode(build: Callable[..., MethodTrainer]) -> None:
    trainer = build()
    before = {name: tensor.clone() for name, tensor in trainer.teacher.model.state_dict().items()}
    trainer.train()
    assert not trainer.teacher.model.training
    assert not any(parameter.requires_grad for parameter in trainer.teacher.model.parameters())
    after = trainer.teacher.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    trained = {id(parameter) for parameter in trainer.model.parameters()}
    assert trained.isdisjoint(id(parameter) for parameter in trainer.teacher.model.parameters())


def test_a_weight_of_zero_leaves_a_term_out(build: Callable[..., MethodTrainer]) -> None:
    trainer = build("captioning", beta=0.0, gamma=0.0)
    assert tuple(trainer.method.weights) == ("captioning", "attention")
    assert trainer.method.queue is None and trainer.trained.projection is None
    trainer.train()


def test_a_loss_that_turns_nan_is_told(build: Callable[..., MethodTrainer]) -> None:
    trainer = build()
    with torch.no_grad():
        trainer.trained.projection.weight.fill_(float("nan"))
    with pytest.raises(VlkdError, match="step 1: the loss term 'hidden' is not finite"):
        trainer.train()


def test_a_loaded_model_is_trained_with_its_dropout(
    teacher_of: Callable[[str], Path], recipe_with: Callable[..., Recipe], inputs_for, tmp_path: Path
) -> None:
    schedule = Schedule(steps=1, batch=4)
    stage = Stage("goes on", "pretraining", "teacher", "paired", schedule, start=teacher_of("pretraining"))
    trainer = build_trainer(tmp_path, recipe_with(schedule), stage, inputs_for("pretraining"), seed=0)
    assert not trainer.trained.model.training
    trainer.train()
    assert all(module.training for module in trainer.trained.modules())


def test_a_batch_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    from vlkd.training.arguments import training_arguments

    with pytest.raises(VlkdError, match="multiple of 6"):
        training_arguments(tmp_path, Schedule(steps=1, batch=64, accumulation=2), seed=0, ranks=3)
