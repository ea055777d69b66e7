"""VQA v2 as its official evaluation scores it: soft accuracy, results read and written.

The rules are those of GT-Vision-Lab/VQA at commit a013f00 (March 2021), oddities included: a number compares with
published ones only if the rules are the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from vlkd.data.json_rows import first_few, read_json, rows
from vlkd.data.vqa_v2 import (
    VQAAnnotation,
    VQAQuestion,
    normalized_answer,
    one_line,
    read_annotations,
    read_questions,
)
from vlkd.errors import VlkdError
from vlkd.runs import write_atomically


@dataclass(frozen=True)
class AnswerScores:
    """Accuracies in per cent, not rounded; types in the order in which they first occur."""

    overall: float
    per_answer_type: dict[str, float]
    per_question_type: dict[str, float]
    per_question: dict[int, float]

    def rounded(self, digits: int = 2) -> dict[str, Any]:
        """What the official code writes as its accuracy file: ``overall``, ``perQuestionType``, ``perAnswerType``.

        Ties go away from zero (3.125 gives 3.13), as in Python 2, in which that code is written.
        """
        return {
            "overall": _rounded(self.overall, digits),
            "perQuestionType": {name: _rounded(value, digits) for name, value in self.per_question_type.items()},
            "perAnswerType": {name: _rounded(value, digits) for name, value in self.per_answer_type.items()},
        }


def question_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Soft accuracy in [0, 1] of ``prediction`` against the ``answers`` of people (VQA has ten).

    ``acc = 1/n Σ_i min(1, |{j ≠ i : answer_j = prediction}| / 3)``, the mean over leaving one person out.

    If all answers are the same, the texts are compared as they are: ``"Yes"`` against ten times ``"yes"`` gives 0.
    Only if they differ, prediction and answers are normalised first. With fewer than four answers 1 is out of reach.

    Raises:
        ValueError: there are no answers.
    """
    if not answers:
        raise ValueError("the accuracy of an answer needs at least one person's answer, got none")
    prediction, said = one_line(prediction), [one_line(answer) for answer in answers]
    if len(set(said)) > 1:
        prediction, said = normalized_answer(prediction), [normalized_answer(answer) for answer in said]
    matches = [answer == prediction for answer in said]
    agreeing = sum(matches)
    return sum(min(1.0, (agreeing - match) / 3) for match in matches) / len(matches)


def evaluate_answers(
    results: Mapping[int, str],
    annotations: Mapping[int, VQAAnnotation],
    questions: Mapping[int, VQAQuestion],
) -> AnswerScores:
    """Accuracies of ``results`` over all annotated questions and by type; all three go by question id.

    Raises:
        VlkdError: a question is annotated and not answered, answered and not annotated, or annotated and not among
            ``questions`` or there about another picture; or nothing is annotated.
    """
    _check_ids(results, annotations, questions)
    per_question: dict[int, float] = {}
    by_answer_type: dict[str, list[float]] = {}
    by_question_type: dict[str, list[float]] = {}
    for number, annotation in annotations.items():
        accuracy = per_question[number] = question_accuracy(results[number], annotation.answers)
        by_answer_type.setdefault(annotation.answer_type, []).append(accuracy)
        by_question_type.setdefault(annotation.question_type, []).append(accuracy)
    return AnswerScores(
        overall=_per_cent(list(per_question.values())),
        per_answer_type={name: _per_cent(found) for name, found in by_answer_type.items()},
        per_question_type={name: _per_cent(found) for name, found in by_question_type.items()},
        per_question={number: 100 * accuracy for number, accuracy in per_question.items()},
    )


def evaluate_answers_file(results: Path | str, annotations: Path | str, questions: Path | str) -> AnswerScores:
    """``evaluate_answers`` of three official JSON files.

    Raises:
        VlkdError: a file is missing or is not of its format, or their ids do not fit.
    """
    return evaluate_answers(read_answers(results), read_annotations(annotations), read_questions(questions))


def read_answers(path: Path | str) -> dict[int, str]:
    """Question id -> answer, of a results file ``[{"question_id": int, "answer": str}]``.

    Raises:
        VlkdError: it is not such a file, or a question is answered twice.
    """
    found: dict[int, str] = {}
    for row in rows(read_json(path, "results"), f"'{path}'"):
        row.add_to(found, row.value("question_id", int), row.value("answer", str), "question_id")
    return found


def write_answers(path: Path | str, answers: Mapping[int, str], questions: Mapping[int, VQAQuestion]) -> None:
    """Write the results file that the test server takes, one answer to each of ``questions`` and in their order.

    Raises:
        VlkdError: a question has no answer, an answer has no question, or an answer is no text.
    """
    _check_same(answers.keys(), questions.keys(), "questions")
    content = []
    for number in questions:
        answer = answers[number]
        if not isinstance(answer, str):
            raise VlkdError(f"Expected the answer to question {number} to be text, but got {answer!r}.")
        content.append({"question_id": int(number), "answer": answer})
    write_atomically(Path(path), json.dumps(content) + "\n")


def _per_cent(accuracies: Sequence[float]) -> float:
    return 100 * sum(accuracies) / len(accuracies)  # in this order, that rounding meets the official code's ties


def _rounded(value: float, digits: int) -> float:
    return float(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def _check_ids(
    results: Mapping[int, str], annotations: Mapping[int, VQAAnnotation], questions: Mapping[int, VQAQuestion]
) -> None:
    if not annotations:
        raise VlkdError("The accuracy of answers needs at least one annotated question, but got none.")
    _check_same(results.keys(), annotations.keys(), "annotated questions")
    if unknown := annotations.keys() - questions.keys():
        raise VlkdError(
            f"Annotated and not among the questions: question_id {first_few(unknown, len(annotations))}; "
            "give the questions file of the same split."
        )
    for number, annotation in annotations.items():
        asked = questions[number].image_id
        if asked != annotation.image_id:
            raise VlkdError(
                f"Question {number} is annotated for image {annotation.image_id} and asked about image {asked}: "
                "give questions and annotations of the same split and version."
            )


def _check_same(answered: Iterable[int], expected: Iterable[int], what: str) -> None:
    given, wanted = set(answered), set(expected)
    if missing := wanted - given:
        raise VlkdError(
            f"There is no answer to question_id {first_few(missing, len(wanted))} {what}: answer every one of them."
        )
    if unknown := given - wanted:
        raise VlkdError(
            f"There are answers to question_id {first_few(unknown, len(given))} answered, which are not among the "
            f"{what}: give results of the same split and version."
        )
