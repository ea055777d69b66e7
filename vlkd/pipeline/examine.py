"""Every model examined on both tasks, with its picture, without, and with another's."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlkd.data import AnswerVocabulary
from vlkd.evaluation import Exam, JavaMetrics, examine_answerer, examine_captioner
from vlkd.models import VLForCaptioning, VLForVQA, load_model
from vlkd.pipeline.method import Trained
from vlkd.progress import track
from vlkd.recipes import Recipe
from vlkd.runs import Run, write_atomically
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


def examine_all(recipe: Recipe, folder: Path, rows: list[Candidate], data: StageData) -> dict[str, Any]:
    """Split -> model -> {"parameters", "captioning", "vqa"}: what ``vlkd.evaluation`` found, and ``seconds``.

    Kept in ``folder/evaluation``; examined again only if a model or the settings changed.
    """
    settings = {"evaluation": recipe.evaluation.model_dump(), "seed": recipe.seed, "models": [row.name for row in rows]}
    run = Run.begin(folder / "evaluation", settings, _fingerprint(rows, data))
    found = run.folder / "found.json"
    if run.finished:
        return json.loads(found.read_text(encoding="utf-8"))
    started = time.monotonic()
    answers = AnswerVocabulary.of_corpus(data.corpora["train"])
    answers.save(folder / "answers.json")
    results: dict[str, Any] = {}
    with JavaMetrics() as java:
        for split, row in track([(split, row) for split in SPLITS for row in rows], "evaluation"):
            exam = Exam(recipe, data.corpora[split], data.store, data.tokenizer, answers)
            results.setdefault(split, {})[row.name] = _examine(row.trained, exam, java)
    results["seconds"] = time.monotonic() - started
    write_atomically(found, json.dumps(results))
    run.finish(seconds=results["seconds"])
    return results


def _examine(trained: Trained, exam: Exam, java: JavaMetrics) -> dict[str, Any]:
    captioner = load_model(VLForCaptioning, trained.folders["captioning"])
    answerer = load_model(VLForVQA, trained.folders["vqa"])
    return {
        "parameters": captioner.num_parameters(),
        "captioning": examine_captioner(captioner, trained.role, trained.view, exam, java=java),
        "vqa": examine_answerer(answerer, trained.role, trained.view, exam),
    }


def _fingerprint(rows: list[Candidate], data: StageData) -> str:
    digest = hashlib.sha256(data.fingerprint.encode())
    for row in rows:
        for weights in row.trained.folders.values():
            digest.update((weights / "model.safetensors").read_bytes())
    return digest.hexdigest()[:16]
