"""One model examined on one task over a split: with its picture, without, and with another's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlkd.data import AnswerVocabulary, CaptioningSet, Condition, Corpus, RegionSource, View, VQASet
from vlkd.evaluation.captioning import caption_scores
from vlkd.evaluation.generation import Role, answer_questions, generate_captions
from vlkd.evaluation.java_metrics import JavaMetrics
from vlkd.evaluation.vqa import soft_accuracy, vqa_scores
from vlkd.models import VLForCaptioning, VLForVQA
from vlkd.recipes.schema import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONDITIONS: tuple[Condition, ...] = ("picture", "none", "other")


@dataclass(frozen=True)
class Exam:
    """What every model of a run is examined on."""

    recipe: Recipe
    corpus: Corpus  # of the split
    source: RegionSource
    tokenizer: PreTrainedTokenizerFast
    answers: AnswerVocabulary


def examine_captioner(
    model: VLForCaptioning,
    role: Role,
    view: View,
    exam: Exam,
    *,
    conditions: Sequence[Condition] = CONDITIONS,
    java: JavaMetrics | None = None,
) -> dict[str, dict[str, Any]]:
    """Condition -> ``scores`` (metric -> value), ``cider_per_picture`` and ``captions`` (by key), ``unavailable``
    (metric -> why), ``tokenisation``. Java's metrics are computed with the picture only."""
    settings, references = exam.recipe.evaluation, exam.corpus.references()
    results: dict[str, dict[str, Any]] = {}
    for condition in conditions:
        dataset = CaptioningSet(exam.corpus, exam.source, exam.tokenizer, exam.recipe.text, view, condition=condition)
        captions = generate_captions(
            model, dataset, role, beam=settings.beam, max_tokens=settings.max_tokens, batch=settings.batch
        )
        scored = caption_scores(references, captions, java if condition == "picture" else None)
        results[condition] = {
            "scores": scored.scores,
            "cider_per_picture": scored.cider_per_picture,
            "captions": captions,
            "unavailable": scored.unavailable,
            "tokenisation": scored.tokenisation,
        }
    return results


def examine_answerer(
    model: VLForVQA,
    role: Role,
    view: View,
    exam: Exam,
    *,
    conditions: Sequence[Condition] = CONDITIONS,
) -> dict[str, dict[str, Any]]:
    """Condition -> ``scores`` ("all" and kind -> accuracy), ``accuracy_per_picture`` and ``questions_per_picture``
    (by key), ``answers`` (key -> answers in the order of the picture's questions)."""
    results: dict[str, dict[str, Any]] = {}
    for condition in conditions:
        dataset = VQASet(
            exam.corpus,
            exam.source,
            exam.tokenizer,
            exam.recipe.text,
            view,
            condition=condition,
            answers=exam.answers,
        )
        answers = answer_questions(model, dataset, role, batch=exam.recipe.evaluation.batch)
        accuracies = [
            dict(question.scores).get(answer, 0.0) if question.scores else soft_accuracy(answer, [question.answer])
            for answer, question in zip(answers, dataset.questions, strict=True)
        ]
        by_picture = _by_key(dataset.keys, accuracies)
        results[condition] = {
            "scores": vqa_scores(accuracies, [question.kind for question in dataset.questions]),
            "accuracy_per_picture": {key: sum(found) / len(found) for key, found in by_picture.items()},
            "questions_per_picture": {key: len(found) for key, found in by_picture.items()},
            "answers": _by_key(dataset.keys, answers),
        }
    return results


def _by_key(keys: Sequence[str], values: Sequence[Any]) -> dict[str, list[Any]]:
    grouped: dict[str, list[Any]] = {}
    for key, value in zip(keys, values, strict=True):
        grouped.setdefault(key, []).append(value)
    return grouped
