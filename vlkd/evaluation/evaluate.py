"""One model examined on one task over a split: with its picture, without, and with another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlkd.data import AnswerVocabulary, CaptioningSet, Condition, Corpus, RegionSource, View, VQASet
from vlkd.evaluation.captioning import caption_scores
from vlkd.evaluation.generation import Role, answer_questions, generate_captions
from vlkd.evaluation.java_metrics import JavaMetrics
from vlkd.evaluation.vqa import soft_accuracy, vqa_scores
from vlkd.models import VLForCaptioning, VLForVQA
from vlkd.recipes.schema import Recipe
from vlkd.scenes import Question

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
    (metric -> why), ``tokenisation``, ``hints``. Java's metrics are computed with the picture only."""
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
            "hints": list(scored.hints),
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
    (by key), ``answers`` (key -> answers in the order of the picture's questions), ``unanswered``.

    Questions whose answer nobody knows are answered and not scored; ``unanswered`` is their number, and ``scores`` is empty where
    there are no others.
    """
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
        scored = [
            (key, question.kind, _accuracy(answer, question))
            for key, answer, question in zip(dataset.keys, answers, dataset.questions, strict=True)
            if question.answered
        ]
        keys, kinds, accuracies = zip(*scored, strict=True) if scored else ((), (), ())
        by_picture = _by_key(keys, accuracies)
        results[condition] = {
            "scores": vqa_scores(accuracies, kinds),
            "accuracy_per_picture": {key: sum(found) / len(found) for key, found in by_picture.items()},
            "questions_per_picture": {key: len(found) for key, found in by_picture.items()},
            "answers": _by_key(dataset.keys, answers),
            "unanswered": len(answers) - len(scored),
        }
    return results


def score_notes(result: Mapping[str, Any], task: str) -> list[str]:
    """What scores do not say by themselves: questions whose answer nobody knows, a metric that cannot see some pictures.

    ``result`` is what :func:`examine_captioner` or :func:`examine_answerer` found under one condition.
    """
    if task == "captioning":
        return list(result.get("hints", ()))
    unanswered, total = result.get("unanswered", 0), sum(map(len, result["answers"].values()))
    if not unanswered:
        return []
    if unanswered == total:
        return [f"Not scored: nobody's answer to any of the {total} questions is known."]
    return [f"Not scored: {unanswered} of the {total} questions, to which nobody's answer is known."]


def _accuracy(answer: str, question: Question) -> float:
    if question.scores:
        return dict(question.scores).get(answer, 0.0)
    return soft_accuracy(answer, [question.answer])


def _by_key(keys: Sequence[str], values: Sequence[Any]) -> dict[str, list[Any]]:
    grouped: dict[str, list[Any]] = {}
    for key, value in zip(keys, values, strict=True):
        grouped.setdefault(key, []).append(value)
    return grouped
