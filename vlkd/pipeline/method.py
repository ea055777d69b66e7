"""The method's order, once: who is trained on what, from what, and taught by whom.

Teacher: pre-trained on its own regions, then adapted to the student's boxes. Student: pre-trained once alone and once taught by
the adapted teacher, on the same data for the same steps. All four are then fine-tuned for both tasks, the taught student
by the fine-tuned adapted teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkd.recipes import Recipe
from vlkd.training import Stage, StageData, adapt, distill, finetune, pretrain, train_stage

Task = Literal["captioning", "vqa"]
Role = Literal["teacher", "student"]
View = Literal["own", "paired"]
TASKS: tuple[Task, ...] = ("captioning", "vqa")


@dataclass(frozen=True)
class Trained:
    """A model after all its stages: one folder of weights a task, and how it looks at a picture."""

    folders: dict[Task, Path]
    role: Role
    view: View


@dataclass(frozen=True)
class Done:
    """A finished stage, for the report."""

    model: str
    stage: Stage
    folder: Path


def train_all(recipe: Recipe, folder: Path, data: StageData) -> tuple[dict[str, Trained], list[Done]]:
    """Train, or take up, every model. Model names are those of the folders."""
    done: list[Done] = []

    def train(model: str, name: str, stage: Stage) -> Path:
        weights = train_stage(folder / model / name, recipe, stage, data)
        done.append(Done(model, stage, folder / model / name))
        return weights

    def finetune_both(model: str, role: Role, start: Path, view: View, taught_by: Trained | None = None) -> Trained:
        folders = {}
        for task in TASKS:
            teacher = taught_by.folders[task] if taught_by else None
            stage = finetune(recipe, task, role, start, view=view, teacher=teacher)
            folders[task] = train(model, task, stage)
        return Trained(folders, role, view)

    teacher = train("teacher", "pretrain", pretrain(recipe, "teacher"))
    adapted = train("adapted", "adapt", adapt(recipe, teacher))
    student = train("student", "pretrain", pretrain(recipe, "student"))
    distilled = train("distilled", "distill", distill(recipe, adapted))

    models = {
        "teacher": finetune_both("teacher", "teacher", teacher, "own"),
        "adapted": finetune_both("adapted", "teacher", adapted, "paired"),
        "student": finetune_both("student", "student", student, "paired"),
    }
    models["distilled"] = finetune_both("distilled", "student", distilled, "paired", taught_by=models["adapted"])
    return models, done
