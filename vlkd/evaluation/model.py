"""One trained model examined on one split, in a run folder, with the files that COCO's and VQA's servers take."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from vlkd.data import Corpus, View, VQASet
from vlkd.data.vqa_v2 import VQAQuestion
from vlkd.errors import VlkdError
from vlkd.evaluation.coco import write_captions
from vlkd.evaluation.evaluate import CONDITIONS, Exam, examine_answerer, examine_captioner, score_notes
from vlkd.evaluation.generation import Role
from vlkd.evaluation.java_metrics import JavaMetrics
from vlkd.evaluation.vqa_official import write_answers
from vlkd.locks import locked
from vlkd.models import VLForCaptioning, VLForVQA, load_model
from vlkd.recipes import Recipe
from vlkd.runs import Run
from vlkd.training import StageData

MODELS = {"captioning": VLForCaptioning, "vqa": VLForVQA}
CAPTIONS = "captions.json"
ANSWERS = "vqa_answers.json"


def evaluate_model(
    model: Path,
    out: Path,
    recipe: Recipe,
    data: StageData,
    task: str,
    role: Role,
    view: View,
    split: str,
    *,
    controls: bool = False,
) -> dict[str, dict[str, float]]:
    """Condition -> metric -> score; ``controls`` adds the conditions without the picture and with another's.

    ``out`` then holds ``results.json``, with every caption or answer, and ``captions.json`` (COCO's result format) or
    ``vqa_answers.json`` (VQA's, where the questions have ids). A finished folder is read, not computed again.

    Raises:
        VlkdError: no such split, texts or model, ``out`` holds another run, or another process is at work in it.
        OSError: ``out`` cannot be written.
    """
    if split not in data.corpora:
        raise VlkdError(f"There is no split '{split}': the data have {', '.join(sorted(data.corpora))}.")
    corpus = data.corpora[split].with_texts("questions" if task == "vqa" else "captions")
    settings = {
        "task": task, "role": role, "view": view, "split": split, "controls": controls, "text": recipe.text.model_dump(),
        "evaluation": recipe.evaluation.model_dump(),
    }  # fmt: skip
    fingerprint = _fingerprint(model, corpus, data)
    with locked(out):
        run = Run.begin(out, settings, fingerprint)
        if not run.finished:
            exam = Exam(recipe, corpus, data.store, data.tokenizer, data.answer_vocabulary())
            conditions = CONDITIONS if controls else CONDITIONS[:1]
            found = (_caption if task == "captioning" else _answer)(model, out, role, view, exam, conditions)
            run.finish(**{task: found})
    return {condition: dict(result["scores"]) for condition, result in run.results()[task].items()}


def evaluation_notes(out: Path, task: str) -> list[str]:
    """:func:`score_notes` of what :func:`evaluate_model` left in ``out``."""
    return score_notes(Run.open(out).results()[task]["picture"], task)


def _caption(model: Path, out: Path, role: Role, view: View, exam: Exam, conditions: Any) -> dict[str, Any]:
    captioner = load_model(VLForCaptioning, model)
    with JavaMetrics() as java:
        found = examine_captioner(captioner, role, view, exam, conditions=conditions, java=java)
    write_captions(out / CAPTIONS, found["picture"]["captions"])
    return found


def _answer(model: Path, out: Path, role: Role, view: View, exam: Exam, conditions: Any) -> dict[str, Any]:
    answerer = load_model(VLForVQA, model)
    found = examine_answerer(answerer, role, view, exam, conditions=conditions)
    dataset = VQASet(exam.corpus, exam.source, exam.tokenizer, exam.recipe.text, view, answers=exam.answers)
    answers, questions = {}, {}
    given = {key: iter(of) for key, of in found["picture"]["answers"].items()}
    for key, question in zip(dataset.keys, dataset.questions, strict=True):
        answer = next(given[key])
        if question.id is not None:
            answers[question.id] = answer
            questions[question.id] = VQAQuestion(int(key) if key.isdecimal() else 0, question.text)
    if answers:
        write_answers(out / ANSWERS, answers, questions)
    return found


def _fingerprint(model: Path, corpus: Corpus, data: StageData) -> str:
    weights = model / "model.safetensors"
    if not weights.is_file():
        raise VlkdError(
            f"There is no model in '{model}' (no model.safetensors): give the folder that a stage's run calls 'model'."
        )
    digest = hashlib.sha256(weights.read_bytes())
    digest.update(repr((corpus, data.store.fingerprint, data.fingerprint)).encode())
    return digest.hexdigest()[:16]
