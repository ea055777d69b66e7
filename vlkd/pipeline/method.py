"""The method's order, once: who is trained on what, from what, and taught by whom.

Teacher: pre-trained on its own regions, then adapted to the student's boxes. Student: pre-trained once alone and once taught by
the adapted teacher, on the same data for the same steps. All four are then fine-tuned for the tasks, the taught student
by the fine-tuned adapted teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vlkd.models import Layout, read_card
from vlkd.models.card import check_is, check_reads
from vlkd.recipes import Encoder, Recipe
from vlkd.training import MODEL, Stage, StageData, adapt, distill, finetune, pretrain

Task = Literal["captioning", "vqa"]
Role = Literal["teacher", "student"]
View = Literal["own", "paired"]
TASKS: tuple[Task, ...] = ("captioning", "vqa")
#: The texts that each task needs.
TEXTS: dict[Task, Literal["captions", "questions"]] = {"captioning": "captions", "vqa": "questions"}


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

    def check(self, recipe: Recipe, data: StageData) -> None:
        """Whether these are models of such a run. Their view may be another than in training, as of a teacher not adapted.

        Raises:
            VlkdError: one is not, or says nothing of itself.
        """
        for task, folder in self.folders.items():
            card = read_card(folder)
            check_is(card, folder, task=task, role=self.role)
            check_reads(card, folder, data.identity, Layout.of(recipe.text), boxes=False)


@dataclass(frozen=True)
class Plan:
    """All stages, none before those that it starts from or is taught by, and the models that come of them.

    The stage comes first from which the way to the end is the longest, so that processes side by side end together.
    """

    jobs: tuple[Job, ...]
    models: dict[str, Trained]

    def makers(self, *weights: Path | None) -> tuple[str, ...]:
        """Names of the jobs that train the models in ``weights``; none for a model that was there before."""
        return tuple(job.name for job in self.jobs if job.weights in weights)


def plan_method(
    recipe: Recipe, folder: Path, tasks: Sequence[Task] = TASKS, own: bool = True, start: Path | None = None
) -> Plan:
    """The stages of the whole method in ``folder``; model names are those of its folders.

    Args:
        tasks: what is fine-tuned for.
        own: the data have regions of the teacher's own. Without them it is pre-trained on the student's boxes from the
            beginning, and there is no teacher that was not adapted.
        start: a pre-trained teacher, whose pre-training is then not done here.
    """
    jobs: list[Job] = []

    def train(model: str, name: str, stage: Stage) -> Path:
        jobs.append(Job(model, stage, folder / model / name))
        return jobs[-1].weights

    def finetune_all(model: str, role: Role, start: Path, view: View, taught_by: Trained | None = None) -> Trained:
        folders = {}
        for task in reversed(tasks):  # the longer one first
            teacher = taught_by.folders[task] if taught_by else None
            stage = finetune(recipe, task, role, start, view=view, teacher=teacher)
            folders[task] = train(model, task, stage)
        return Trained(folders, role, view)

    pretraining = pretrain(recipe, "teacher")
    if not own:
        pretraining = replace(pretraining, view="paired")
    teacher = start or train("teacher", "pretrain", pretraining)
    student = train("student", "pretrain", pretrain(recipe, "student"))
    adapted = train("adapted", "adapt", adapt(recipe, teacher))
    distilled = train("distilled", "distill", distill(recipe, adapted))

    models = {"adapted": finetune_all("adapted", "teacher", adapted, "paired")}
    models["distilled"] = finetune_all("distilled", "student", distilled, "paired", taught_by=models["adapted"])
    models["student"] = finetune_all("student", "student", student, "paired")
    if own:
        models["teacher"] = finetune_all("teacher", "teacher", teacher, "own")
    return Plan(tuple(_longest_way_first(jobs, recipe)), models)


def _longest_way_first(jobs: Sequence[Job], recipe: Recipe) -> list[Job]:
    """``jobs``, none before those that it comes after, by the work from each to the end of all that waits for it."""
    remaining: dict[Path, float] = {}
    for job in reversed(jobs):
        waiting = (other for other in jobs if job.weights in (other.stage.start, other.stage.teacher))
        remaining[job.weights] = _work(job.stage, recipe) + max((remaining[one.weights] for one in waiting), default=0)
    return sorted(jobs, key=lambda job: -remaining[job.weights])


def _work(stage: Stage, recipe: Recipe) -> float:
    """About how long a stage takes, in no unit of time: forward and backward of what is trained, forward of its teacher."""

    def size(encoder: Encoder) -> int:
        return encoder.layers * encoder.width * (4 * encoder.width + 2 * encoder.ffn)

    passes = 3 * size(stage.encoder(recipe)) + (size(recipe.teacher) if stage.teacher else 0)
    return stage.schedule.steps * stage.schedule.batch * passes
