"""Two processes, interrupted and resumed, train what one process trains; also when they share one model (FSDP2)."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import fresh_process
import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from hand_made import make_inputs, make_poisoned, make_recipe
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from vlkd.errors import VlkdError
from vlkd.recipes import Schedule
from vlkd.training import Stage, arguments, options, train
from vlkd.training.trainer import MethodTrainer

# A checkpoint at 2, between the rows of metrics at 1 and 3.
SCHEDULE = Schedule(steps=4, batch=16, accumulation=2, lr=1e-4, save_every=2, log_every=3)

TRAINING_STEP = MethodTrainer.training_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="compares with a run on the CPU"),
]


def _distil(folder: Path, teacher: Path, sharded: bool = False) -> None:
    stage = Stage("distil", "pretraining", "student", "paired", SCHEDULE, teacher=teacher)
    recipe = make_recipe(SCHEDULE, dropout=0.0)
    training = recipe.training.model_copy(update={"sharded": sharded})
    train(folder, recipe.model_copy(update={"training": training}), stage, make_inputs("pretraining"), seed=0)


def _process(rank: int, port: int, folder: Path, teacher: Path, sharded: bool, interrupted: bool) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    if sharded:
        _shard_on_a_cpu()

    def watched_step(self: MethodTrainer, *args, **kwargs) -> torch.Tensor:
        assert all(isinstance(parameter, DTensor) == sharded for parameter in self.trained.parameters())
        assert not any(isinstance(parameter, DTensor) for parameter in self.teacher.model.parameters())
        if interrupted and self.state.global_step == 2:
            raise KeyboardInterrupt
        return TRAINING_STEP(self, *args, **kwargs)

    MethodTrainer.training_step = watched_step
    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        _distil(folder, teacher, sharded)
    if interrupted and not sharded:
        _stop_together(folder.with_name("poisoned"))
    dist.destroy_process_group()


def _stop_together(folder: Path) -> None:
    """A sample that is not finite is one process's, and the other does not wait for it."""
    MethodTrainer.training_step = TRAINING_STEP
    stage = Stage("learn", "pretraining", "student", "paired", SCHEDULE.model_copy(update={"steps": 8}))
    with pytest.raises(VlkdError, match=r"step [456]: .* for picture 'picture 6'.* of step [24] is kept"):
        train(folder, make_recipe(SCHEDULE), stage, make_poisoned(), seed=0)


def _shard_on_a_cpu() -> None:
    """accelerate shards on GPUs alone, though gloo and FSDP2 do it on a CPU: let it believe that these are some."""
    build = arguments.TrainingArguments

    def pretending(**values):
        built = build(**values)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return built

    arguments.TrainingArguments = pretending
    options.require_sharding = lambda training: None


def _metrics(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "samples_per_second"} for row in rows]


@pytest.mark.parametrize("sharded", [False, True], ids=["a copy each", "sharded"])
def test_two_processes_train_what_one_trains(sharded: bool, teacher_of: Callable[[str], Path], tmp_path: Path) -> None:
    teacher = teacher_of("pretraining")
    for interrupted in (True, False):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        arguments = (port, tmp_path / "two", teacher, sharded, interrupted)
        processes = [fresh_process.start(_process, rank, *arguments) for rank in range(2)]
        for finished in [process.end() for process in processes]:
            assert finished.returncode == 0, finished.stderr
    _distil(tmp_path / "one", teacher)

    one, two = _metrics(tmp_path / "one"), _metrics(tmp_path / "two")
    assert [row["step"] for row in two] == [1, 3, 4]
    for expected, found in zip(one, two, strict=True):
        # Losses, gradients, their shares: sums in another order, fp32; gradient norms are of 1e-5 and up.
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-8)

    memory = [load_file(tmp_path / name / "checkpoints/checkpoint-4/memory.safetensors") for name in ("one", "two")]
    assert torch.equal(memory[0]["queue.ids"], memory[1]["queue.ids"])
    torch.testing.assert_close(memory[0]["queue.rows"], memory[1]["queue.rows"], rtol=0, atol=1e-6)
    models = [load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two")]
    torch.testing.assert_close(models[1], models[0], rtol=0, atol=2e-5)  # lr 1e-4: AdamW divides tiny gradients
