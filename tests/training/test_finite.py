"""A training whose loss, gradient or weights are not finite stops, says where it began, and keeps its last good checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hand_made import make_inputs, make_poisoned, make_recipe
from safetensors.torch import load_file
from torch import Tensor

from vlkd.errors import VlkdError
from vlkd.recipes import Schedule
from vlkd.training import Stage, StageInputs, train
from vlkd.training.finite import FiniteWatch
from vlkd.training.trained import Forward
from vlkd.training.trainer import MethodTrainer

pytestmark = pytest.mark.slow

# 48 samples are three steps: epoch 1 is steps 4 to 6. Checkpoints at 3, 6 and 8, rows of metrics at 1, 4 and 8.
SCHEDULE = Schedule(steps=8, batch=16, accumulation=2, lr=1e-3, save_every=3, log_every=4)


def _alone(task: str = "pretraining", schedule: Schedule = SCHEDULE) -> Stage:
    return Stage("learn", task, "student", "paired", schedule)


def _train(folder: Path, stage: Stage, inputs: StageInputs, schedule: Schedule = SCHEDULE) -> None:
    train(folder, make_recipe(schedule, dropout=0.0), stage, inputs, seed=0)


def _kept(folder: Path) -> list[str]:
    """The checkpoints, all of whose weights are finite; there is no model."""
    assert not (folder / "model").exists() and not (folder / "results.json").exists()
    found = sorted(path for path in (folder / "checkpoints").glob("checkpoint-*"))
    for path in found:
        assert all(tensor.isfinite().all() for tensor in load_file(path / "model.safetensors").values())
    return [path.name for path in found]


@pytest.mark.parametrize(
    ("task", "name", "value", "terms", "where"),
    [
        ("pretraining", "student_regions", float("nan"), "'language' and 'matching' are", "the features that the student reads"),
        ("pretraining", "student_regions", float("inf"), "'language' and 'matching' are", "the features that the student reads"),
        ("vqa", "answers", float("nan"), "'answers' is", "the scores of the answers"),
    ],
)  # fmt: skip
def test_bad_data_are_named_by_step_term_and_picture_and_mended_data_go_on(
    tmp_path: Path, task: str, name: str, value: float, terms: str, where: str
) -> None:
    for folder in ("run", "run"):  # the same command meets the same numbers again
        with pytest.raises(VlkdError, match=rf"step [456]: the loss terms? {terms} not finite") as caught:
            _train(tmp_path / folder, _alone(task), make_poisoned(task, name, value))
        assert f"so are {where} for picture 'picture 6'" in str(caught.value)
        assert "the checkpoint of step 3 is kept" in str(caught.value)
        assert _kept(tmp_path / folder) == ["checkpoint-3"]
    good = dataclasses.replace(make_inputs(task))
    _train(tmp_path / "run", _alone(task), good)
    _train(tmp_path / "never", _alone(task), good)
    models = [load_file(tmp_path / folder / "model/model.safetensors") for folder in ("run", "never")]
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


def test_a_teachers_features_are_named_as_the_teachers(distilling: Callable[..., Stage], tmp_path: Path) -> None:
    with pytest.raises(VlkdError, match=r"'attention' and 'hidden' are not finite") as caught:
        _train(tmp_path, distilling("pretraining", SCHEDULE), make_poisoned(name="teacher_regions"))
    assert "the features that the teacher reads for picture 'picture 6'" in str(caught.value)
    assert _kept(tmp_path) == ["checkpoint-3"]


def test_a_learning_rate_far_too_high_stops_before_any_checkpoint(tmp_path: Path) -> None:
    schedule = SCHEDULE.model_copy(update={"lr": 1e30, "save_every": 1})
    with pytest.raises(VlkdError, match=r"step \d: .*not finite.*lower learning rate"):
        _train(tmp_path, _alone(schedule=schedule), make_inputs("pretraining"), schedule)
    _kept(tmp_path)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = MethodTrainer.training_step

    def training_step(self: MethodTrainer, *args, **kwargs) -> Tensor:
        loss = step(self, *args, **kwargs)
        if self.state.global_step == 4:
            next(self.trained.parameters()).grad.view(-1)[0] = float("inf")
        return loss

    monkeypatch.setattr(MethodTrainer, "training_step", training_step)
    with pytest.raises(VlkdError, match=r"step 5: the gradient, though every loss term is finite, is not finite"):
        _train(tmp_path, _alone(), make_inputs("pretraining"))
    assert _kept(tmp_path) == ["checkpoint-3"]


def test_weights_are_looked_at_before_a_checkpoint_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = MethodTrainer._save_checkpoint

    def save_checkpoint(self: MethodTrainer, *args) -> None:
        if self.state.global_step == 6:
            next(self.trained.parameters()).data.view(-1)[0] = float("nan")
        save(self, *args)

    monkeypatch.setattr(MethodTrainer, "_save_checkpoint", save_checkpoint)
    with pytest.raises(VlkdError, match=r"step 6: 1 of \d+ weight tensors are not finite, 'model\."):
        _train(tmp_path, _alone(), make_inputs("pretraining"))
    assert _kept(tmp_path) == ["checkpoint-3"]


def test_weights_that_were_bad_already_are_never_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as those of a last checkpoint that an earlier version saved."""
    train_ = MethodTrainer.train

    def trained(self: MethodTrainer, *args, **kwargs) -> None:
        train_(self, *args, **kwargs)
        next(self.trained.parameters()).data.view(-1)[0] = float("nan")

    monkeypatch.setattr(MethodTrainer, "train", trained)
    with pytest.raises(VlkdError, match=r"step 8: 1 of \d+ weight tensors"):
        _train(tmp_path, _alone(), make_inputs("pretraining"))
    assert _kept(tmp_path) == ["checkpoint-8"]


def test_a_gpu_is_asked_when_a_row_is_due_and_still_knows_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = FiniteWatch.__init__

    def as_on_a_gpu(self: FiniteWatch, *args, **kwargs) -> None:
        made(self, *args, **kwargs)
        self.asks_freely = False

    monkeypatch.setattr(FiniteWatch, "__init__", as_on_a_gpu)
    schedule = SCHEDULE.model_copy(update={"save_every": 8, "log_every": 7})
    with pytest.raises(
        VlkdError, match=r"step [456]: .*the step's first picture is 'picture \d+'\).*no checkpoint yet"
    ):
        _train(tmp_path / "row", _alone(schedule=schedule), make_poisoned(), schedule)
    schedule = SCHEDULE.model_copy(update={"log_every": 100})
    with pytest.raises(VlkdError, match=r"step [456]: .* the checkpoint of step 3 is kept"):
        _train(tmp_path / "checkpoint", _alone(schedule=schedule), make_poisoned(), schedule)
    assert _kept(tmp_path / "checkpoint") == ["checkpoint-3"]


def test_between_two_rows_a_device_is_never_asked(tmp_path: Path) -> None:
    """Tensors without data, which whoever asks them for a number fails at."""
    device = torch.device("meta")
    watch = FiniteWatch(("language",), device, tmp_path, str, lambda step: 0)
    assert not watch.asks_freely
    batch = {"valid": torch.ones(2, 3, dtype=torch.bool, device=device)}
    student = Forward(torch.zeros(2, 3, 8, device=device))
    for step in (1, 2):
        watch.see(step, torch.zeros(1, device=device), batch, student, None)
        watch.see_gradient(step, torch.zeros((), device=device))
    with pytest.raises((RuntimeError, NotImplementedError)):
        watch.see(3, torch.zeros(1, device=device), batch, student, None, look=True)
    with pytest.raises((RuntimeError, NotImplementedError)):
        watch.check()


@pytest.mark.parametrize("scaler", [None, SimpleNamespace(get_scale=lambda: 1.0)], ids=["float32", "float16"])
def test_a_gradient_that_overflows_in_float16_is_the_scalers_business(scaler, monkeypatch, tmp_path: Path) -> None:
    from vlkd.training.run import build_trainer

    trainer = build_trainer(tmp_path, make_recipe(SCHEDULE), _alone(), make_inputs("pretraining"), seed=0)
    monkeypatch.setattr(trainer.accelerator, "scaler", scaler)
    trainer._get_grad_norm(trainer.trained, torch.tensor(1.0))
    if scaler is not None:
        trainer._get_grad_norm(trainer.trained, torch.tensor(float("inf")))
        return
    with pytest.raises(VlkdError, match="gradient"):
        trainer._get_grad_norm(trainer.trained, torch.tensor(float("inf")))
