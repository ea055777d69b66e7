"""Distils a hand-made student in a process that may be told to die: ``killed_run.py FOLDER TEACHER [STEP RANK]``, or ``main``.

With a step, the process of that rank kills itself (SIGKILL: nothing is cleaned up, no handler runs) in the backward of that
step's first micro-batch. The others notice in their next collective, or are ended by the launcher.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from hand_made import make_inputs, make_recipe

from vlkd.recipes import Schedule
from vlkd.training import Stage, train
from vlkd.training.trainer import MethodTrainer

# Checkpoints at 3, 6 and 8; rows of metrics at 1, 2, 4, 6 and 8.
SCHEDULE = Schedule(steps=8, batch=16, accumulation=2, lr=1e-3, save_every=3, log_every=2)


def distil(folder: Path, teacher: Path) -> None:
    stage = Stage("distil", "pretraining", "student", "paired", SCHEDULE, teacher=teacher)
    train(folder, make_recipe(SCHEDULE, dropout=0.1), stage, make_inputs("pretraining"), seed=0)


def die_in(step: int, rank: int) -> None:
    training_step = MethodTrainer.training_step

    def deadly(self: MethodTrainer, *args, **kwargs) -> torch.Tensor:
        if self.state.global_step + 1 == step and self.accelerator.process_index == rank:
            next(self.trained.parameters()).register_hook(lambda _: os.kill(os.getpid(), signal.SIGKILL))
        return training_step(self, *args, **kwargs)

    MethodTrainer.training_step = deadly


def main(folder: Path, teacher: Path, *death: int) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(1)
    if death:
        die_in(*death)
    distil(folder, teacher)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
