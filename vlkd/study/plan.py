"""Which stages the rows of a study need; what several rows need is trained once.

A stage is known by everything that its result depends on: its settings, its seed, and the stages whose weights it starts from
or is taught by. Two rows whose stages agree in all of this share the folder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from vlkd.pipeline.method import TASKS, Job, Task, Trained
from vlkd.recipes import Recipe
from vlkd.study.rows import Row
from vlkd.training import Stage, adapt, distill, finetune, pretrain
from vlkd.training.run import stage_settings
from vlkd.training.stages import Role, View


@dataclass(frozen=True)
class Exam:
    """A row's model of one seed, to be examined once its stages are trained."""

    row: Row
    seed: int
    recipe: Recipe
    trained: Trained
    after: tuple[str, ...]  # names of the jobs that train it

    @property
    def name(self) -> str:
        return f"{self.row.name}, seed {self.seed}"


@dataclass(frozen=True)
class SeededJob:
    """A stage to train, with its recipe and seed."""

    job: Job
    recipe: Recipe
    seed: int
    after: tuple[str, ...]


class StudyPlan:
    """The stages and examinations of rows, added one by one with :meth:`add`.

    Attributes:
        jobs: name → stage, each after those whose weights it reads.
        exams: one for every row and seed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: dict[str, SeededJob] = {}
        self.exams: list[Exam] = []
        self._keys: dict[Path, str] = {}  # weights -> the name of the job that makes them

    def add(self, row: Row, recipe: Recipe, seed: int) -> None:
        """Plan a row's training with one seed."""
        chain = _Chain(self, row, recipe, seed)
        trained = getattr(chain, row.model)()
        after = tuple(self._keys[weights] for weights in trained.folders.values())
        self.exams.append(Exam(row, seed, recipe, trained, after))

    def train(self, model: str, stage: Stage, recipe: Recipe, seed: int) -> Path:
        """Plan a stage, unless it is planned already; returns the folder of its weights."""
        settings = stage_settings(recipe, stage, seed, self._keys.__getitem__)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{model}-{stage.task}-seed{seed}-{digest}"
        job = Job(model, stage, self.folder / "stages" / name)
        if name not in self.jobs:
            after = tuple(self._keys[weights] for weights in (stage.start, stage.teacher) if weights is not None)
            self.jobs[name] = SeededJob(job, recipe, seed, after)
            self._keys[job.weights] = name
        return job.weights


@dataclass(frozen=True)
class _Chain:
    """The models of one row and seed. Each method plans what it takes and returns the model."""

    plan: StudyPlan
    row: Row
    recipe: Recipe
    seed: int

    def teacher(self) -> Trained:
        return self._finetuned("teacher", "teacher", self._pretrained_teacher(), view="own")

    def unadapted(self) -> Trained:
        return replace(self.teacher(), view="paired")

    def adapted(self) -> Trained:
        return self._finetuned("adapted", "teacher", self._adapted_teacher())

    def student(self) -> Trained:
        return self._finetuned("student", "student", self._train("student", self._pretraining()))

    def distilled(self) -> Trained:
        view: View = "paired" if self.row.aligned else "misaligned"
        stage = self._pretraining()
        if "pre-training" in self.row.taught_in:
            teacher = self._adapted_teacher() if self.row.aligned else self._pretrained_teacher()
            stage = distill(self.recipe, teacher, view=view, share=self.row.share)
        start = self._train("distilled" if stage.teacher else "student", stage)
        if "fine-tuning" not in self.row.taught_in:
            return self._finetuned("distilled", "student", start)
        return self._finetuned(
            "distilled", "student", start, self.adapted() if self.row.aligned else self.teacher(), view
        )

    def _pretraining(self) -> Stage:
        return pretrain(self.recipe, "student", share=self.row.share)

    def _pretrained_teacher(self) -> Path:
        return self._train("teacher", pretrain(self.recipe, "teacher"))

    def _adapted_teacher(self) -> Path:
        return self._train("adapted", adapt(self.recipe, self._pretrained_teacher()))

    def _finetuned(
        self, model: str, role: Role, start: Path, taught_by: Trained | None = None, view: View = "paired"
    ) -> Trained:
        folders: dict[Task, Path] = {}
        for task in TASKS:
            teacher = taught_by.folders[task] if taught_by else None
            folders[task] = self._train(model, finetune(self.recipe, task, role, start, view=view, teacher=teacher))
        return Trained(folders, role, "own" if view == "own" else "paired")

    def _train(self, model: str, stage: Stage) -> Path:
        return self.plan.train(model, stage, self.recipe, self.seed)
