"""Every model examined on both tasks, with its picture, without, and with another's."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from typing import Any

from vlkd.data import AnswerVocabulary
from vlkd.evaluation import Exam, examine_answerer, examine_captioner
from vlkd.models import VLForCaptioning, VLForVQA, load_model
from vlkd.pipeline.method import Trained
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
    """The rows: the four trained models, and the teacher put before the student's boxes without adaptation."""
    unadapted = replace(models["teacher"], view="paired")
    return [
        Candidate("teacher", models["teacher"], "reads the regions and tags of its own, stronger detector"),
        Candidate(
            "teacher, not adapted",
            unadapted,
            "the same weights, given its own detector's features of the student's boxes, and the student's tags",
        ),
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
    """``parameters``, ``captioning`` and ``vqa`` of a model: what ``vlkd.evaluation`` found on ``split``.

    Kept in ``evaluation/<split>/<model>``. METEOR and SPICE, where Java is there, are computed on the test split only.
    """
    data = workshop.data
    settings = {"evaluation": workshop.recipe.evaluation.model_dump(), "seed": workshop.recipe.seed}
    folder = workshop.folder / "evaluation" / split / _slug(row.name)
    run = Run.begin(folder, settings, _fingerprint(row, data))
    if not run.finished:
        started = time.monotonic()
        answers = AnswerVocabulary.load(workshop.folder / "answers.json")
        exam = Exam(workshop.recipe, data.corpora[split], data.store, data.tokenizer, answers)
        captioner = load_model(VLForCaptioning, row.trained.folders["captioning"])
        answerer = load_model(VLForVQA, row.trained.folders["vqa"])
        java = workshop.java if split == "test" else None
        role, view = row.trained.role, row.trained.view
        run.finish(
            parameters=captioner.num_parameters(),
            captioning=examine_captioner(captioner, role, view, exam, java=java),
            vqa=examine_answerer(answerer, role, view, exam),
            seconds=time.monotonic() - started,
        )
    return run.results()


def _slug(name: str) -> str:
    return "-".join(name.replace(",", "").split())


def _fingerprint(row: Candidate, data: StageData) -> str:
    digest = hashlib.sha256(data.fingerprint.encode())
    for weights in row.trained.folders.values():
        digest.update((weights / "model.safetensors").read_bytes())
    return digest.hexdigest()[:16]
