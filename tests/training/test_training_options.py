"""The recipe's section ``training``: what each option changes, and what it must not."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import TrainerCallback

from vlkd.errors import VlkdError
from vlkd.recipes import Recipe, Schedule, Training
from vlkd.training import Stage, StageInputs, train
from vlkd.training import options as options_module
from vlkd.training import trackers as trackers_module
from vlkd.training.run import build_trainer, stage_settings
from vlkd.training.trainer import MethodTrainer

pytestmark = pytest.mark.slow

SCHEDULE = Schedule(steps=4, batch=16, accumulation=2, lr=1e-3, save_every=2, log_every=1)
TERMS = {
    "pretraining": ("language", "matching", "attention", "hidden"),
    "vqa": ("answers", "attention", "hidden", "classes"),
}


@pytest.fixture
def build(
    tmp_path: Path,
    distilling: Callable[..., Stage],
    recipe_with: Callable[..., Recipe],
    inputs_for: Callable[..., StageInputs],
) -> Callable[..., MethodTrainer]:
    def trainer(task: str = "pretraining", dropout: float = 0.1, **training) -> MethodTrainer:
        recipe = recipe_with(SCHEDULE, dropout=dropout).model_copy(update={"training": Training(**training)})
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return build_trainer(folder, recipe, distilling(task, SCHEDULE), inputs_for(task), seed=0)

    return trainer


def _metrics(trainer: MethodTrainer) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (trainer.checkpoints.parent / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "samples_per_second"} for row in rows]


def _trained(trainer: MethodTrainer) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Weights and queue after the whole run, and its metrics."""
    trainer.train()
    assert trainer.method.queue is not None
    return trainer.trained.state_dict() | trainer.method.queue.state_dict(), _metrics(trainer)


def _assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name, tensor in one.items() if not torch.equal(tensor, other[name])] == []


# precision


def test_training_in_bfloat16_stays_close_to_single_precision(build: Callable[..., MethodTrainer]) -> None:
    for task, terms in TERMS.items():
        (single, rows), (half, half_rows) = (_trained(build(task, 0.0, precision=p)) for p in ("fp32", "bf16"))
        assert all(math.isfinite(value) for row in half_rows for value in row.values())
        for name in terms:
            # weights and features rounded at 2^-8, layer by layer; the queue has no row before the second step
            step = 1 if name == "hidden" else 0
            assert half_rows[step][f"raw/{name}"] == pytest.approx(rows[step][f"raw/{name}"], rel=0.05)
            assert half_rows[step][f"raw/{name}"] != rows[step][f"raw/{name}"]
        assert {name: tensor.dtype for name, tensor in half.items()} == {n: t.dtype for n, t in single.items()}


def test_the_teacher_and_the_losses_run_in_bfloat16_too(
    build: Callable[..., MethodTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(precision="bf16")
    seen = []
    terms = type(trainer.method).terms

    def spy(self, student, teacher, batch):
        seen.append((teacher.attention.query.dtype, torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return terms(self, student, teacher, batch)

    monkeypatch.setattr(type(trainer.method), "terms", spy)
    trainer.train()
    assert set(seen) == {(torch.bfloat16, True, torch.bfloat16)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_float16_without_a_gpu_is_one_sentence(
    recipe_with: Callable[..., Recipe], distilling: Callable[..., Stage], inputs_for, tmp_path: Path
) -> None:
    recipe = recipe_with(SCHEDULE).model_copy(update={"training": Training(precision="fp16")})
    with pytest.raises(VlkdError, match="fp16, which needs a GPU"):
        train(tmp_path / "run", recipe, distilling("pretraining", SCHEDULE), inputs_for("pretraining"), seed=0)
    assert not (tmp_path / "run").exists()


# gradient checkpointing


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("task", ["pretraining", "vqa"])
def test_recomputed_activations_train_the_same_bits(
    build: Callable[..., MethodTrainer], task: str, dropout: float
) -> None:
    weights, rows = _trained(build(task, dropout))
    checkpointed = build(task, dropout, gradient_checkpointing=True)
    calls = _count_layer_passes(checkpointed)
    again, rows_again = _trained(checkpointed)
    assert rows == rows_again  # the ledger's gradients too, which are taken through the recomputed layers
    _assert_same(weights, again)
    assert calls[0] > 2 * 2 * SCHEDULE.steps * SCHEDULE.accumulation - 1  # two layers, each at least twice a pass


def _count_layer_passes(trainer: MethodTrainer) -> list[int]:
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    for layer in trainer.trained.model.bert.encoder.layer:
        layer.attention.register_forward_pre_hook(count)
    return calls


def test_dropout_is_at_work_in_the_comparison_above(build: Callable[..., MethodTrainer]) -> None:
    one, other = (_trained(build("pretraining", dropout))[0] for dropout in (0.0, 0.3))
    assert not torch.equal(one["projection.weight"], other["projection.weight"])


# torch.compile


@pytest.mark.slow
def test_compiled_layers_train_the_same(build: Callable[..., MethodTrainer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, split in forward and backward and run, with dropout and recomputed activations; no code is generated."""
    compile_module, compiled = nn.Module.compile, []

    def compile_and_tell(module: nn.Module) -> None:
        compiled.append(type(module).__name__)
        compile_module(module, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(nn.Module, "compile", compile_and_tell)
    weights, rows = _trained(build())
    weights_compiled, rows_compiled = _trained(build(compile=True, gradient_checkpointing=True))
    assert compiled == ["VLLayer", "BertSelfOutput", "BertIntermediate", "BertOutput"] * 2  # the student, its teacher
    for row, found in zip(rows, rows_compiled, strict=True):
        assert found == pytest.approx(row, rel=1e-5, abs=1e-8)
    for name, tensor in weights.items():
        torch.testing.assert_close(weights_compiled[name], tensor, rtol=0, atol=SCHEDULE.lr)  # Adam divides by noise


def test_compiling_without_a_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options_module.shutil, "which", lambda name: None)
    monkeypatch.setattr(options_module, "find_spec", lambda name: None)
    with pytest.raises(VlkdError, match=r"training\.compile needs"):
        options_module.require_options(Training(compile=True, trackers=()))


# sharding (what it computes: test_two_processes.py)


@pytest.mark.parametrize(
    ("gpu", "processes", "sentence"),
    [(False, 2, "splits the model among GPUs, and there is none"), (True, 1, "this is the only one: start several")],
)
def test_sharding_needs_several_gpus(gpu: bool, processes: int, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(VlkdError, match=sentence):
        options_module.require_options(Training(sharded=True))


def test_sharding_is_asked_for_in_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(VlkdError, match=r"set training\.sharded=true"):
        options_module.require_options(Training())


# trackers


def test_a_tracker_that_is_not_installed_is_one_sentence(
    recipe_with: Callable[..., Recipe],
    distilling: Callable[..., Stage],
    inputs_for: Callable[..., StageInputs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(options_module, "find_spec", lambda name: None)
    recipe = recipe_with(SCHEDULE).model_copy(update={"training": Training(trackers=("tensorboard", "mlflow"))})
    with pytest.raises(VlkdError, match="'mlflow' is not installed: run `pip install mlflow`"):
        train(tmp_path / "run", recipe, distilling("pretraining", SCHEDULE), inputs_for("pretraining"), seed=0)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValidationError):
        Training(trackers=("tensorbord",))  # type: ignore[arg-type]


class Recorder(TrainerCallback):
    """Stands for an integration of transformers."""

    rows: ClassVar[list[tuple[str, int, dict[str, float]]]] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self.rows.append((args.run_name, state.global_step, logs))


def test_trackers_get_every_row_and_wandb_a_run_a_stage(
    recipe_with: Callable[..., Recipe],
    distilling: Callable[..., Stage],
    inputs_for: Callable[..., StageInputs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, finished = [], []
    wandb = SimpleNamespace(run=None, finish=lambda: finished.append(len(Recorder.rows)))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(options_module, "find_spec", lambda name: wandb)
    monkeypatch.setattr(
        trackers_module, "get_reporting_integration_callbacks", lambda names: asked.extend(names) or [Recorder]
    )
    monkeypatch.setattr(Recorder, "rows", [])
    recipe = recipe_with(SCHEDULE).model_copy(update={"training": Training(trackers=("wandb", "mlflow"))})
    train(tmp_path / "run", recipe, distilling("pretraining", SCHEDULE), inputs_for("pretraining"), seed=0)
    assert asked == ["wandb", "mlflow"] and finished == [2 * SCHEDULE.steps]
    assert [(name, step) for name, step, _ in Recorder.rows[::2]] == [("distil pretraining", i) for i in (1, 2, 3, 4)]
    assert all(logs["raw/attention"] > 0 for _, _, logs in Recorder.rows)
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_without_trackers_there_are_no_events(
    recipe_with: Callable[..., Recipe],
    distilling: Callable[..., Stage],
    inputs_for: Callable[..., StageInputs],
    tmp_path: Path,
) -> None:
    recipe = recipe_with(SCHEDULE).model_copy(update={"training": Training(trackers=())})
    train(tmp_path / "run", recipe, distilling("pretraining", SCHEDULE), inputs_for("pretraining"), seed=0)
    assert (tmp_path / "run" / "metrics.jsonl").exists() and not (tmp_path / "run" / "tensorboard").exists()


# the parity guard


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_guard_passes_sound_losses_and_changes_no_bit(build: Callable[..., MethodTrainer], precision: str) -> None:
    weights, rows = _trained(build(precision=precision))
    watched, watched_rows = _trained(build(precision=precision, check_steps=3))
    _assert_same(weights, watched)
    told = [{key: value for key, value in row.items() if key.startswith("check/")} for row in watched_rows]
    assert [set(row) for row in told] == [{"check/attention", "check/hidden"}] * 3 + [set()]
    # rounding of the sums alone: the reference sees the same rounded inputs
    assert all(value < (1e-5 if precision == "fp32" else 2e-2) for row in told for value in row.values())
    assert [{k: v for k, v in row.items() if not k.startswith("check/")} for row in watched_rows] == rows


@pytest.mark.parametrize(
    ("name", "module", "output", "what"),
    [
        ("attention", "attention_mse", 3, "gradient for the student's queries"),
        ("attention", "attention_mse", 4, "gradient for the student's keys"),
        ("attention", "attention_mse", 0, "value"),
        ("hidden", "token_nce", 2, "gradient for the student's projected hidden states"),
    ],
)
def test_the_guard_stops_a_run_whose_loss_is_broken(
    build: Callable[..., MethodTrainer],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    module: str,
    output: int,
    what: str,
) -> None:
    """What a fused forward returns is off by a tenth: of the queue's term at step 2, where the queue has rows."""
    op = importlib.import_module(f"vlkd_kernels.{module}.op")
    choose = op._forward

    def broken(backend: str):
        forward = choose(backend)
        if backend == "reference":
            return forward

        def wrong(*args: object) -> tuple[Tensor, ...]:
            results = list(forward(*args))
            results[output] = results[output] * 1.1
            return tuple(results)

        return wrong

    monkeypatch.setattr(op, "_forward", broken)
    if choose.__globals__["backends"].available_backends(module, device="cpu")[0] == "reference":
        pytest.skip("no fused operator runs here")
    step = 2 if name == "hidden" else 1
    with pytest.raises(VlkdError, match=rf"Step {step}, loss term '{name}': the {what} .* has norm .* reference "):
        build(check_steps=2).train()
    build(check_steps=step - 1).train()  # unwatched, it goes unseen


# what makes a run another run


def test_only_what_changes_the_numbers_makes_another_run(
    recipe_with: Callable[..., Recipe], distilling: Callable[..., Stage]
) -> None:
    def settings(**training) -> dict:
        recipe = recipe_with(SCHEDULE).model_copy(update={"training": Training(**training)})
        return stage_settings(recipe, distilling("pretraining", SCHEDULE), seed=0)

    assert recipe_with(SCHEDULE).settings() == recipe_with(SCHEDULE).model_dump(exclude={"training"}, exclude_none=True)
    assert "dropout" not in settings()["schedule"]  # so that folders from before it resume
    plain = settings()
    assert "training" not in plain
    assert settings(gradient_checkpointing=True, trackers=("mlflow",), check_steps=5) == plain
    assert settings(compile=True) == plain | {"training": {"compile": True}}
    assert settings(precision="bf16") == plain | {"training": {"precision": "bf16"}}
