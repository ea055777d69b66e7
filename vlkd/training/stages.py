"""The stages of the method as plain values: what is trained, on what, from what, and by whom it is taught."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkd.recipes import Distillation, Encoder, Recipe, Schedule

Task = Literal["pretraining", "captioning", "vqa"]
Role = Literal["teacher", "student"]
View = Literal["own", "paired"]

#: The losses of each task itself, all with weight 1.
TASK_TERMS: dict[Task, tuple[str, ...]] = {
    "pretraining": ("language", "matching"),
    "captioning": ("captioning",),
    "vqa": ("answers",),
}


@dataclass(frozen=True)
class Stage:
    """One training run.

    Attributes:
        name: for progress bars and messages.
        task: what is learned.
        role: whose encoder is trained, and whose regions it reads.
        view: ``own`` reads the teacher's own proposals, ``paired`` the student's boxes.
        schedule: steps, batch, learning rate.
        start: folder of the model whose weights it starts from; random weights without.
        teacher: folder of the model to distil from; no distillation without.
    """

    name: str
    task: Task
    role: Role
    view: View
    schedule: Schedule
    start: Path | None = None
    teacher: Path | None = None

    def encoder(self, recipe: Recipe) -> Encoder:
        encoder = recipe.teacher if self.role == "teacher" else recipe.student
        dropout = self.schedule.dropout
        return encoder if dropout is None else encoder.model_copy(update={"dropout": dropout})

    def weights(self, distillation: Distillation) -> dict[str, float]:
        """Name and weight of every term of the loss. A weight of 0 leaves the term out."""
        weights = dict.fromkeys(TASK_TERMS[self.task], 1.0)
        if self.teacher is not None:
            weights |= {"attention": distillation.alpha, "hidden": distillation.beta}
            if self.task != "pretraining":
                weights["classes"] = distillation.gamma
        return {name: weight for name, weight in weights.items() if weight > 0}


def pretrain(recipe: Recipe, role: Role) -> Stage:
    """Pre-training without distillation: the teacher on its own regions, or the conventional student."""
    if role == "teacher":
        return Stage("pretrain the teacher", "pretraining", "teacher", "own", recipe.schedules.teacher)
    return Stage("pretrain the student", "pretraining", "student", "paired", recipe.schedules.student)


def adapt(recipe: Recipe, teacher: Path) -> Stage:
    """Teacher adaptation: pre-training goes on, on the teacher's features of the student's boxes."""
    return Stage("adapt the teacher", "pretraining", "teacher", "paired", recipe.schedules.adapt, start=teacher)


def distill(recipe: Recipe, teacher: Path) -> Stage:
    """The student's pre-training with L_VLP + α L_ATT + β L_HID, taught by the adapted teacher."""
    schedule = recipe.schedules.student
    return Stage("distil the student", "pretraining", "student", "paired", schedule, teacher=teacher)


def finetune(
    recipe: Recipe,
    task: Literal["captioning", "vqa"],
    role: Role,
    start: Path,
    *,
    view: View = "paired",
    teacher: Path | None = None,
) -> Stage:
    """Fine-tuning with L_task, and with a teacher + α L_ATT + β L_HID + γ L_CLS."""
    schedule: Schedule = getattr(recipe.schedules, f"{role}_{task}")
    return Stage(f"finetune the {role} for {task}", task, role, view, schedule, start=start, teacher=teacher)
