"""Two processes, interrupted and resumed, train what one process trains."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hand_made import make_inputs, make_recipe
from safetensors.torch import load_file

from vlkd.recipes import Schedule
from vlkd.training import Stage, train
from vlkd.training.trainer import MethodTrainer

# A checkpoint at 2, between the rows of metrics at 1 and 3.
SCHEDULE = Schedule(steps=4, batch=16, accumulation=2, lr=1e-4, save_every=2, log_every=3)

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


def _distil(folder: Path, teacher: Path) -> None:
    stage = Stage("distil", "pretraining", "student", "paired", SCHEDULE, teacher=teacher)
    train(folder, make_recipe(SCHEDULE, dropout=0.0), stage, make_inputs("pretraining"), seed=0)


def _process(rank: int, port: int, folder: Path, teacher: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    step = MethodTrainer.training_step

    def interrupted_step(self: MethodTrainer, *args, **kwargs) -> torch.Tensor:
        if self.state.global_step == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    MethodTrainer.training_step = interrupted_step
    with pytest.raises(KeyboardInterrupt):
        _distil(folder, teacher)
    MethodTrainer.training_step = step
    _distil(folder, teacher)
    dist.destroy_process_group()


def _metrics(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "samples_per_second"} for row in rows]


@pytest.mark.skipif(torch.cuda.is_available(), reason="compares with a run on the CPU")
def test_two_processes_train_what_one_trains(teacher_of: Callable[[str], Path], tmp_path: Path) -> None:
    teacher = teacher_of("pretraining")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, tmp_path / "two", teacher), nprocs=2)
    _distil(tmp_path / "one", teacher)

    one, two = _metrics(tmp_path / "one"), _metrics(tmp_path / "two")
    assert [row["step"] for row in two] == [1, 3, 4]
    for expected, found in zip(one, two, strict=True):
        # Sums in another order, fp32; gradient norms are of 1e-5 and up.
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-8)

    memory = [load_file(tmp_path / name / "checkpoints/checkpoint-4/memory.safetensors") for name in ("one", "two")]
    assert torch.equal(memory[0]["queue.ids"], memory[1]["queue.ids"])
    torch.testing.assert_close(memory[0]["queue.rows"], memory[1]["queue.rows"], rtol=0, atol=1e-6)
