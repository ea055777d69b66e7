"""One trained model examined on one split, in a run folder, with the files that COCO's and VQA's servers take."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from vlkd.data import Corpus, View, VQASet
from vlkd.data.vqa_v2 import VQAQuestion
from vlkd.errors import VlkdError
from vlkd.evaluation.coco import write_captions
from vlkd.evaluation.evaluate import CONDITIONS, Exam, examine_answerer, examine_captioner, score_notes
from vlkd.evaluation.generation import Role
from vlkd.evaluation.java_metrics import JavaMetrics
from vlkd.evaluation.vqa_official import write_answers
from vlkd.locks import locked
from vlkd.models import Layout, ModelCard, VLForCaptioning, VLForVQA, load_model, read_card
from vlkd.models.card import check_reads
from vlkd.runs import Run
from vlkd.training import StageData

FineTuned = Literal["captioning", "vqa"]
MODELS = {"captioning": VLForCaptioning, "vqa": VLForVQA}
CAPTIONS = "captions.json"
ANSWERS = "vqa_answers.json"


def evaluate_model(
    model: Path,
    out: Path,
    data: StageData,
    split: str,
    *,
    beam: int | None = None,
    max_tokens: int | None = None,
    batch: int | None = None,
    controls: bool = False,
) -> dict[str, dict[str, float]]:
    """Condition -> metric -> score of a fine-tuned model, which says itself what it reads and how.

    ``out`` then holds ``results.json``, with every caption or answer, and ``captions.json`` (COCO's result format) or
    ``vqa_answers.json`` (VQA's, where the questions have ids). A finished folder is read, not computed again.

    Args:
        model: its folder.
        out: of the results.
        data: whose texts and regions it is examined on.
        split: of the data.
        beam: width of the search for captions; None takes what the model was trained with.
        max_tokens: the longest caption, likewise.
        batch: pictures or questions at a time; it changes speed only.
        controls: add the conditions without the picture and with another's.

    Raises:
        VlkdError: no such split, texts or model; a model that is not fine-tuned, or was trained for other data; ``out`` holds
            another run, or another process is at work in it.
        OSError: ``out`` cannot be written.
    """
    card = read_card(model)
    task = fine_tuned_for(card, model)
    if task == "vqa" and (beam is not None or max_tokens is not None):
        raise VlkdError(
            f"The model in '{model}' answers questions, for which there is no beam and no length: leave them out."
        )
    recipe = card.recipe(model, beam=beam, max_tokens=max_tokens, batch=batch)
    check_reads(card, model, data.identity)
    if split not in data.corpora:
        raise VlkdError(f"There is no split '{split}': the data have {', '.join(sorted(data.corpora))}.")
    corpus = data.corpora[split].with_texts("questions" if task == "vqa" else "captions")
    settings = {
        "task": task, "role": card.role, "view": card.view, "split": split, "controls": controls,
        "text": Layout.of(recipe.text).model_dump(), "evaluation": recipe.evaluation.model_dump(exclude={"batch"}),
    }  # fmt: skip
    fingerprint = _fingerprint(model, corpus, data)
    with locked(out):
        run = Run.begin(out, settings, fingerprint)
        if not run.finished:
            exam = Exam(recipe, corpus, data.store, data.tokenizer, data.answer_vocabulary())
            conditions = CONDITIONS if controls else CONDITIONS[:1]
            found = (_caption if task == "captioning" else _answer)(model, out, card.role, card.view, exam, conditions)
            run.finish(**{task: found})
    return {condition: dict(result["scores"]) for condition, result in run.results()[task].items()}


def evaluation_notes(out: Path, task: str) -> list[str]:
    """:func:`score_notes` of what :func:`evaluate_model` left in ``out``."""
    return score_notes(Run.open(out).results()[task]["picture"], task)


def fine_tuned_for(card: ModelCard, model: Path) -> FineTuned:
    """What the model in a folder was fine-tuned for.

    Raises:
        VlkdError: for nothing.
    """
    if card.task == "pretraining":
        raise VlkdError(
            f"The model in '{model}' is pre-trained only: fine-tune it for captioning or vqa first (`vlkd finetune`)."
        )
    return card.task


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
