"""A process that is killed in the middle of a step, and the same command again: the bits of a run that nobody killed."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import fresh_process
import killed_run
import pytest
import torch
import torch.distributed as dist
from fresh_process import Finished
from safetensors.torch import load_file
from torch.distributed import run as torchrun

pytestmark = pytest.mark.slow

# A step and who dies in it: before any checkpoint, right behind one, and between one and the end.
ALONE = [2, 4, 8]


def _together(*arguments: object) -> list[Finished]:
    """What became of two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        together = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    started = [fresh_process.start(killed_run.main, *arguments, **together, **rank) for rank in ranks]
    return [process.end() for process in started]


def _under_torchrun(*arguments: object) -> Finished:
    """Forks are safe there: in its place stands a process without threads."""
    launcher = ("--standalone", "--nproc-per-node=2", "--start-method=fork", "--run-path", killed_run.__file__)
    return fresh_process.start(torchrun.main, [*launcher, *map(str, arguments)]).end()


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
    for step, checkpoints in zip(ALONE, ([], ["checkpoint-3"], ["checkpoint-6"]), strict=True):
        finished = fresh_process.start(killed_run.main, killed, teacher, step, 0).end()
        assert finished.returncode == -signal.SIGKILL, finished.stderr
        assert _checkpoints(killed) == checkpoints and not (killed / "results.json").exists()
    for folder in (tmp_path / "whole", killed):
        finished = fresh_process.start(killed_run.main, folder, teacher).end()
        assert finished.returncode == 0, finished.stderr
    _assert_same_run(tmp_path / "whole", killed)


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
def test_one_of_two_processes_is_killed_and_both_resume_to_the_same_bits(
    teacher_of: Callable[[str], Path], tmp_path: Path
) -> None:
    teacher, killed = teacher_of("pretraining"), tmp_path / "killed"
    survivor, dead = _together(killed, teacher, 5, 1)
    assert dead.returncode == -signal.SIGKILL and survivor.returncode > 0, dead.stderr + survivor.stderr
    assert _checkpoints(killed) == ["checkpoint-3"] and not (killed / "results.json").exists()
    for finished in (_under_torchrun(tmp_path / "whole", teacher), *_together(killed, teacher)):
        assert finished.returncode == 0, finished.stderr
    _assert_same_run(tmp_path / "whole", killed)
