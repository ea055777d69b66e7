"""A stage's folder: what it holds, how it resumes, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from vlkd.errors import VlkdError
from vlkd.locks import locked
from vlkd.models import VLForPreTraining, load_model
from vlkd.recipes import Recipe, Schedule
from vlkd.training import Stage, StageInputs, train
from vlkd.training import trainer as trainer_module
from vlkd.training.trainer import MethodTrainer

pytestmark = pytest.mark.slow

# Checkpoints at 4 and 8, rows of metrics at 1, 3, 6 and 8: the row at 6 spans the checkpoint at 4.
SCHEDULE = Schedule(steps=8, batch=16, accumulation=2, lr=1e-3, warmup=0.25, save_every=4, log_every=3)


@pytest.fixture(scope="module")
def run(
    distilling: Callable[..., Stage], recipe_with: Callable[..., Recipe], inputs_for: Callable[..., StageInputs]
) -> Callable[..., Path]:
    """Distil the student in a folder; keywords change the recipe."""

    def start(folder: Path, schedule: Schedule = SCHEDULE, fingerprint: str = "hand-made", **settings) -> Path:
        recipe = recipe_with(schedule, **settings)
        stage = distilling("pretraining", schedule)
        return train(folder, recipe, stage, inputs_for("pretraining", fingerprint), seed=0)

    return start


def _interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Control-C in the middle of optimizer step ``steps + 1``."""
    step = MethodTrainer.training_step

    def training_step(self: MethodTrainer, *args, **kwargs):
        if self.state.global_step == steps and not self.accelerator.sync_gradients:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(MethodTrainer, "training_step", training_step)


def _metrics(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "samples_per_second"} for row in rows]


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Everything that a run trained: model, projection, queue, ledger, and the model as users get it."""
    checkpoint = folder / "checkpoints" / "checkpoint-8"
    files = (checkpoint / "model.safetensors", checkpoint / "memory.safetensors", folder / "model/model.safetensors")
    return {f"{file.parent.name}/{file.name}/{name}": t for file in files for name, t in load_file(file).items()}


def _assert_same_run(one: Path, other: Path) -> None:
    assert _metrics(one) == _metrics(other)
    expected, found = _tensors(one), _tensors(other)
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@pytest.fixture(scope="module")
def uninterrupted(run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    run(folder)
    return folder


def test_a_run_folder_tells_the_whole_story(uninterrupted: Path, run: Callable[..., Path]) -> None:
    settings = yaml.safe_load((uninterrupted / "settings.yaml").read_text())
    assert settings["schedule"]["steps"] == 8 and settings["data_fingerprint"] == "hand-made"
    assert "transformers" in json.loads((uninterrupted / "versions.json").read_text())
    assert [path.name for path in (uninterrupted / "checkpoints").iterdir()] == ["checkpoint-8"]
    modes = {path.stat().st_mode & 0o777 for path in uninterrupted.rglob("*") if path.is_file()}
    assert modes == {(uninterrupted / "settings.yaml").stat().st_mode & 0o777}  # all as the umask says
    assert any((uninterrupted / "tensorboard").iterdir())

    rows = _metrics(uninterrupted)
    assert [row["step"] for row in rows] == [1, 3, 6, 8]
    terms = ("language", "matching", "attention", "hidden")
    for row in rows:
        assert all(f"{what}/{term}" in row for what in ("raw", "weighted", "gradient", "share") for term in terms)
        assert row["loss"] == pytest.approx(sum(row[f"weighted/{term}"] for term in terms))
        assert sum(row[f"share/{term}"] for term in terms) == pytest.approx(1.0)
    assert rows[0]["raw/hidden"] == 0.0 < rows[1]["raw/hidden"]  # the queue is read before it is filled

    student = load_model(VLForPreTraining, uninterrupted / "model")
    assert student.config.hidden_size == 8
    names = load_file(uninterrupted / "model/model.safetensors")
    assert not any("projection" in name and "region" not in name for name in names)
    assert not any(word in name for name in names for word in ("queue", "teacher", "rows"))


def test_a_finished_run_is_left_as_it_is(
    uninterrupted: Path, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupt_after(monkeypatch, 0)
    assert run(uninterrupted) == uninterrupted / "model"


@pytest.mark.parametrize("steps", [2, 5, 7])
def test_an_interrupted_run_resumes_to_the_same_bits(
    uninterrupted: Path, run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Before the first checkpoint, after it, and after a row of metrics that the checkpoint does not know."""
    folder = tmp_path / "interrupted"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _interrupt_after(patch, steps)
        run(folder)
    assert not (folder / "model").exists() and not (folder / "results.json").exists()
    run(folder)
    _assert_same_run(uninterrupted, folder)


def test_a_run_goes_on_with_other_settings_that_change_no_number(
    uninterrupted: Path, run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "interrupted"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _interrupt_after(patch, 5)
        run(folder)
    changed = SCHEDULE.model_copy(update={"save_every": 2, "log_every": 5})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _interrupt_after(patch, 7)
        run(folder, changed)
    assert [path.name for path in (folder / "checkpoints").glob("checkpoint-*")] == ["checkpoint-6"]
    recorded = yaml.safe_load((folder / "settings.yaml").read_text())["schedule"]
    assert (recorded["save_every"], recorded["log_every"]) == (2, 5)
    run(folder, changed)
    assert [row["step"] for row in _metrics(folder)] == [1, 3, 5, 8]
    expected, found = _tensors(uninterrupted), _tensors(folder)
    own = [name for name in expected if "ledger" not in name]  # the ledger's sums are since the last row
    assert own and all(torch.equal(expected[name], found[name]) for name in own)
    results = json.loads((folder / "results.json").read_text())
    assert results["sessions"] == 3 and results["seconds"] > 0


def test_a_second_process_in_the_same_folder_is_refused(run: Callable[..., Path], tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(VlkdError, match="is being written by process"):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_is_one_error_and_leaves_the_checkpoint_before(
    uninterrupted: Path, run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "full"
    save_file = trainer_module.save_file

    def full(tensors, path: Path) -> None:
        if path.parent.name == "checkpoint-8":
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(tensors, path)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left") as caught:
        patch.setattr(trainer_module, "save_file", full)
        run(folder)
    assert (caught.value.errno, caught.value.filename) == (28, str(folder / "checkpoints"))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-4"]
    run(folder)
    _assert_same_run(uninterrupted, folder)


def test_a_run_killed_while_it_saves_resumes_from_the_checkpoint_before(
    uninterrupted: Path, run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "killed"
    save_file = trainer_module.save_file

    def die_at_the_end(tensors, path: Path) -> None:
        if path.parent.name == "checkpoint-8":
            raise KeyboardInterrupt
        save_file(tensors, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer_module, "save_file", die_at_the_end)
        run(folder)
    whole = [path.name for path in (folder / "checkpoints").glob("checkpoint-*")]
    assert whole == ["checkpoint-4"]
    run(folder)
    _assert_same_run(uninterrupted, folder)


def test_another_recipe_other_data_or_another_teacher_is_refused(
    uninterrupted: Path, run: Callable[..., Path], teacher_of: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(VlkdError, match=r"schedule\.lr = 0\.001, but this one has schedule\.lr = 0\.002"):
        run(uninterrupted, SCHEDULE.model_copy(update={"lr": 2e-3}))
    with pytest.raises(VlkdError, match=r"distillation\.alpha"):
        run(uninterrupted, alpha=3.0)
    with pytest.raises(VlkdError, match="data_fingerprint"):
        run(uninterrupted, fingerprint="other regions")
    with pytest.raises(VlkdError, match=r"encoder\.dropout"):
        run(uninterrupted, dropout=0.2)


def test_a_teacher_that_is_not_there_is_one_sentence(
    recipe_with: Callable[..., Recipe], inputs_for: Callable[..., StageInputs], tmp_path: Path
) -> None:
    stage = Stage("distil", "pretraining", "student", "paired", SCHEDULE, teacher=tmp_path / "nowhere")
    with pytest.raises(VlkdError, match="There is no model in"):
        train(tmp_path / "run", recipe_with(SCHEDULE), stage, inputs_for("pretraining"), seed=0)
    assert not (tmp_path / "run").exists()


def test_both_students_start_from_the_same_weights(
    recipe_with: Callable[..., Recipe],
    inputs_for: Callable[..., StageInputs],
    distilling: Callable[..., Stage],
    tmp_path: Path,
) -> None:
    """What differs between the students with and without distillation is distillation alone."""
    from vlkd.training.run import build_trainer

    with_teacher = distilling("pretraining", SCHEDULE)
    alone = Stage("pretrain", "pretraining", "student", "paired", SCHEDULE)
    recipe, inputs = recipe_with(SCHEDULE), inputs_for("pretraining")
    one, other = (
        build_trainer(tmp_path / stage.name, recipe, stage, inputs, seed=0) for stage in (with_teacher, alone)
    )
    found = other.trained.model.state_dict()
    assert all(torch.equal(t, found[name]) for name, t in one.trained.model.state_dict().items())
    assert [one.stream[i]["picture_ids"] for i in range(96)] == [other.stream[i]["picture_ids"] for i in range(96)]
