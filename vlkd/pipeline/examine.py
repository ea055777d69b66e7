"""Every model examined on both tasks, with its picture, without, and with another's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlkd.evaluation import CONDITIONS, Exam, examine_answerer, examine_captioner
from vlkd.models import VLForCaptioning, VLForVQA, load_model
from vlkd.pipeline.method import TASKS, TEXTS, Task, Trained
from vlkd.pipeline.workshop import Workshop
from vlkd.runs import Run
from vlkd.training import StageData

SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Candidate:
    """One row of the table."""

    name: str
    trained: Trained
    note: str


def candidates(models: dict[str, Trained]) -> list[Candidate]:
    """The rows: the trained models, and the teacher put before the student's boxes without adaptation."""
    unadapted = []
    if "teacher" in models:
        unadapted = [
            Candidate("teacher", models["teacher"], "reads the regions and tags of its own, stronger detector"),
            Candidate(
                "teacher, not adapted",
                replace(models["teacher"], view="paired"),
                "the same weights, given its own detector's features of the student's boxes, and the student's tags",
            ),
        ]
    return [
        *unadapted,
        Candidate(
            "adapted teacher",
            models["adapted"],
            "pre-trained further on the student's boxes, then fine-tuned; it teaches the student",
        ),
        Candidate("student", models["student"], "trained without a teacher, on the same data for the same steps"),
        Candidate(
            "distilled student", models["distilled"], "taught by the adapted teacher in pre-training and in fine-tuning"
        ),
    ]


def examine(workshop: Workshop, row: Candidate, split: str) -> dict[str, Any]:
    """``parameters``, and of each task what ``vlkd.evaluation`` found on ``split``.

    Kept in ``evaluation/<split>/<model>``. Without the picture, with another's, and by METEOR and SPICE, where Java is there, a
    model is examined on the test split only.
    """
    data = workshop.data
    settings = {"evaluation": workshop.recipe.evaluation.model_dump(), "seed": workshop.recipe.seed}
    run = Run.begin(exam_folder(workshop.folder, split, row.name), settings, _fingerprint(row, data, split))
    if not run.finished:
        row.trained.check(workshop.recipe, data)
        found = {}
        for task in TASKS:
            if task in row.trained.folders:
                run.note_time(at_once=True)
                found[task] = _examine(workshop, row, split, task)
        (parameters, *_), results = zip(*found.values(), strict=True)
        run.finish(parameters=parameters, **dict(zip(found, results, strict=True)))
    return run.results()


def _examine(workshop: Workshop, row: Candidate, split: str, task: Task) -> tuple[int, dict[str, Any]]:
    """The model's parameters and what was found."""
    data = workshop.data
    role, view, weights = row.trained.role, row.trained.view, row.trained.folders[task]
    corpus = data.corpora[split].with_texts(TEXTS[task])
    exam = Exam(workshop.recipe, corpus, data.store, data.tokenizer, data.answer_vocabulary())
    conditions = CONDITIONS if split == "test" else CONDITIONS[:1]
    if task == "vqa":
        answerer = load_model(VLForVQA, weights)
        return answerer.num_parameters(), examine_answerer(answerer, role, view, exam, conditions=conditions)
    captioner = load_model(VLForCaptioning, weights)
    java = workshop.java if split == "test" else None
    found = examine_captioner(captioner, role, view, exam, conditions=conditions, java=java)
    return captioner.num_parameters(), found


def exam_folder(folder: Path, split: str, row: str) -> Path:
    """Where :func:`examine` keeps what it found of a row in the run ``folder``."""
    return folder / "evaluation" / split / "-".join(row.replace(",", "").split())


def _fingerprint(row: Candidate, data: StageData, split: str) -> str:
    digest = hashlib.sha256(repr((data.fingerprint, data.corpora[split])).encode())
    for weights in row.trained.folders.values():
        digest.update((weights / "model.safetensors").read_bytes())
    return digest.hexdigest()[:16]
