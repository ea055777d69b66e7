"""Fixtures of the hand-made world."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hand_made import make_inputs, make_recipe, save_teacher

from vlkd.recipes import Recipe, Schedule
from vlkd.training import Stage, StageInputs


@pytest.fixture(scope="session")
def inputs_for() -> Callable[..., StageInputs]:
    return make_inputs


@pytest.fixture(scope="session")
def recipe_with() -> Callable[..., Recipe]:
    return make_recipe


@pytest.fixture(scope="session")
def teacher_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a random teacher with the head of a task."""
    made: dict[str, Path] = {}

    def teacher(task: str) -> Path:
        if task not in made:
            made[task] = tmp_path_factory.mktemp(f"teacher-{task}")
            save_teacher(task, made[task])
        return made[task]

    return teacher


@pytest.fixture(scope="session")
def short() -> Schedule:
    return Schedule(steps=6, batch=16, lr=1e-3, save_every=4, log_every=3)


@pytest.fixture(scope="session")
def distilling(teacher_of, short: Schedule) -> Callable[..., Stage]:
    """A student's stage of any task under that task's random teacher."""

    def stage(task: str = "pretraining", schedule: Schedule = short) -> Stage:
        return Stage(f"distil {task}", task, "student", "paired", schedule, teacher=teacher_of(task))

    return stage
