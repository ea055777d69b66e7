"""The stages of the method as plain values: what is trained, on what, from what, and by whom it is taught."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlkd.errors import VlkdError
from vlkd.recipes import Distillation, Encoder, Recipe, Schedule

Task = Literal["pretraining", "captioning", "vqa"]
Role = Literal["teacher", "student"]
View = Literal["own", "paired", "misaligned"]

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
        view: ``own`` reads the teacher's own proposals, ``paired`` the student's boxes. With ``misaligned`` the student
            reads its boxes and tags and its teacher its own, and the two are compared index by index, attention maps over
            the keys that both have: the ablation of what it is worth that both read the same tokens.
        schedule: steps, batch, learning rate.
        start: folder of the model whose weights it starts from; random weights without.
        teacher: folder of the model to distil from; no distillation without.
        share: the part of the training pictures that it learns from, see :meth:`vlkd.data.Corpus.share`.

    Raises:
        VlkdError: the view ``misaligned`` without a student and its teacher, the view ``own`` with a student, or a share outside (0, 1].
    """

    name: str
    task: Task
    role: Role
    view: View
    schedule: Schedule
    start: Path | None = None
    teacher: Path | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.view == "misaligned" and (self.role != "student" or self.teacher is None):
            raise VlkdError(
                f"The view 'misaligned' compares a student with a teacher that reads its own regions, but '{self.name}' trains "
                f"a {self.role} {'with' if self.teacher else 'without'} a teacher: choose the view 'paired' or 'own', or distil."
            )
        if self.view == "own" and self.role == "student":
            raise VlkdError(
                f"The view 'own' is of the teacher's regions, but '{self.name}' trains a student, which reads its own detector's boxes: "
                "choose the view 'paired'."
            )
        if not 0 < self.share <= 1:
            raise VlkdError(
                f"The share of the training pictures must be above 0 and at most 1, but '{self.name}' has {self.share}: "
                "give such as 0.1 for a tenth."
            )

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


def pretrain(recipe: Recipe, role: Role, *, share: float = 1.0) -> Stage:
    """Pre-training without distillation: the teacher on its own regions, or the conventional student."""
    if role == "teacher":
        return Stage("pretrain the teacher", "pretraining", "teacher", "own", recipe.schedules.teacher, share=share)
    return Stage("pretrain the student", "pretraining", "student", "paired", recipe.schedules.student, share=share)


def adapt(recipe: Recipe, teacher: Path) -> Stage:
    """Teacher adaptation: pre-training goes on, on the teacher's features of the student's boxes."""
    return Stage("adapt the teacher", "pretraining", "teacher", "paired", recipe.schedules.adapt, start=teacher)


def distill(recipe: Recipe, teacher: Path, *, view: View = "paired", share: float = 1.0) -> Stage:
    """The student's pre-training with L_VLP + α L_ATT + β L_HID, taught by the adapted teacher.

    A teacher that was never adapted teaches in the view ``misaligned``.
    """
    schedule = recipe.schedules.student
    return Stage("distil the student", "pretraining", "student", view, schedule, teacher=teacher, share=share)


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
