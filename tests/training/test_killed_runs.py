"""A process that is killed in the middle of a step, and the same command again: the bits of a run that nobody killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("killed_run.py")
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

# A step and who dies in it: before any checkpoint, right behind one, and between one and the end.
ALONE = [2, 4, 8]


def _start(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    command = [sys.executable, *launcher, str(SCRIPT), *map(str, arguments)]
    path = os.pathsep.join((str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")))
    return subprocess.Popen(
        command, env=os.environ | ENVIRONMENT | {"PYTHONPATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def _end(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors.decode()


def _metrics(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "samples_per_second"} for row in rows]


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Model, projection, queue and ledger of the last checkpoint, AdamW's moments, and the model as users get it."""
    checkpoint = folder / "checkpoints" / "checkpoint-8"
    files = (checkpoint / "model.safetensors", checkpoint / "memory.safetensors", folder / "model/model.safetensors")
    tensors = {f"{file.parent.name}/{file.name}/{name}": t for file in files for name, t in load_file(file).items()}
    moments = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
    return tensors | {f"{name}/{key}": t for name, state in moments.items() for key, t in state.items()}


def _assert_same_run(one: Path, other: Path) -> None:
    assert [row["step"] for row in _metrics(one)] == [1, 2, 4, 6, 8]
    assert _metrics(one) == _metrics(other)
    expected, found = _tensors(one), _tensors(other)
    assert expected.keys() == found.keys() and any("queue.rows" in name for name in found)
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []


def _checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoints/checkpoint-*"))


def test_a_killed_process_resumes_to_the_same_bits(teacher_of: Callable[[str], Path], tmp_path: Path) -> None:
    """One run is killed three times over: each resumption is killed further on, the last one is left in peace."""
    teacher, killed = teacher_of("pretraining"), tmp_path / "killed"
    whole = _start(tmp_path / "whole", teacher)
    for step, checkpoints in zip(ALONE, ([], ["checkpoint-3"], ["checkpoint-6"]), strict=True):
        code, errors = _end(_start(killed, teacher, step, 0))
        assert code == -signal.SIGKILL, errors
        assert _checkpoints(killed) == checkpoints and not (killed / "results.json").exists()
    for process in (whole, _start(killed, teacher)):
        code, errors = _end(process)
        assert code == 0, errors
    _assert_same_run(tmp_path / "whole", killed)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_one_of_two_processes_is_killed_and_both_resume_to_the_same_bits(
    teacher_of: Callable[[str], Path], tmp_path: Path
) -> None:
    teacher, killed = teacher_of("pretraining"), tmp_path / "killed"
    code, errors = _end(_start(killed, teacher, 5, 1, launcher=LAUNCHER))
    assert code != 0 and "SIGKILL" in errors, errors
    assert _checkpoints(killed) == ["checkpoint-3"] and not (killed / "results.json").exists()
    for folder in (tmp_path / "whole", killed):
        code, errors = _end(_start(folder, teacher, launcher=LAUNCHER))
        assert code == 0, errors
    _assert_same_run(tmp_path / "whole", killed)
