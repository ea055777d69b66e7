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
from vlkd.training import MODEL, Stage, adapt, distill, finetune, pretrain

Task = Literal["captioning", "vqa"]
Role = Literal["teacher", "student"]
View = Literal["own", "paired"]
TASKS: tuple[Task, ...] = ("captioning", "vqa")


@dataclass(frozen=True)
class Job:
    """A stage to train, and where."""

    model: str
    stage: Stage
    folder: Path

    @property
    def name(self) -> str:
        """Such as ``student/pretrain``."""
        return f"{self.model}/{self.folder.name}"

    @property
    def weights(self) -> Path:
        """The folder of the trained model."""
        return self.folder / MODEL


@dataclass(frozen=True)
class Trained:
    """A model after all its stages: one folder of weights a task, and how it looks at a picture."""

    folders: dict[Task, Path]
    role: Role
    view: View


@dataclass(frozen=True)
class Plan:
    """All stages, none before those that it starts from or is taught by, and the models that come of them.

    Stages that many others wait for come first.
    """

    jobs: tuple[Job, ...]
    models: dict[str, Trained]

    def maker(self, weights: Path) -> Job:
        """The job that trains the model in ``weights``."""
        return next(job for job in self.jobs if job.weights == weights)


def plan_method(recipe: Recipe, folder: Path) -> Plan:
    """The stages of the whole method in ``folder``; model names are those of its folders."""
    jobs: list[Job] = []

    def train(model: str, name: str, stage: Stage) -> Path:
        jobs.append(Job(model, stage, folder / model / name))
        return jobs[-1].weights

    def finetune_both(model: str, role: Role, start: Path, view: View, taught_by: Trained | None = None) -> Trained:
        folders = {}
        for task in reversed(TASKS):  # the longer one first
            teacher = taught_by.folders[task] if taught_by else None
            stage = finetune(recipe, task, role, start, view=view, teacher=teacher)
            folders[task] = train(model, task, stage)
        return Trained(folders, role, view)

    teacher = train("teacher", "pretrain", pretrain(recipe, "teacher"))
    student = train("student", "pretrain", pretrain(recipe, "student"))
    adapted = train("adapted", "adapt", adapt(recipe, teacher))
    distilled = train("distilled", "distill", distill(recipe, adapted))

    models = {"adapted": finetune_both("adapted", "teacher", adapted, "paired")}
    models["distilled"] = finetune_both("distilled", "student", distilled, "paired", taught_by=models["adapted"])
    models["student"] = finetune_both("student", "student", student, "paired")
    models["teacher"] = finetune_both("teacher", "teacher", teacher, "own")
    return Plan(tuple(jobs), models)
