"""VQA v2 as its official evaluation scores it: the files, the answer normalisation, the soft accuracy.

The rules are those of GT-Vision-Lab/VQA at commit a013f00 (March 2021), oddities included: a number compares with
published ones only if the rules are the same. Before that commit answers were normalised otherwise: the prediction
always, the human answers in their punctuation alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlkd.errors import VlkdError
from vlkd.evaluation.json_rows import Row, first_few, read_json, rows, rows_under
from vlkd.runs import write_atomically

ANSWERS_PER_QUESTION = 10

_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d", re.ASCII)
_FULL_STOP = re.compile(r"\.(?!\d)", re.ASCII)
_MOST_FULL_STOPS = 32  # the official code passes a flag of that value where `re.sub` takes a count

# Each is restored from every spelling that lacks one of its apostrophes: couldnt've and couldn'tve, but not couldntve.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    without_one = {
        word[:place] + word[place + 1 :]: word
        for word in _CONTRACTED.split()
        for place, letter in enumerate(word)
        if letter == "'"
    }
    return without_one | {"somebody'd": "somebodyd"}  # the official table has this one the other way round


_CONTRACTIONS = _contractions()


@dataclass(frozen=True)
class VQAQuestion:
    """One question of a questions file."""

    image_id: int
    text: str


@dataclass(frozen=True)
class VQAAnnotation:
    """What people answered to one question, and the types by which accuracies are grouped."""

    image_id: int
    question_type: str
    answer_type: str
    answers: tuple[str, ...]


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


@lru_cache(maxsize=1 << 16)
def normalized_answer(text: str) -> str:
    """``"The T-shirt isnt\\tred."`` -> ``"t shirt isn't red"``.

    In the official order: line feeds and tabs become spaces; a punctuation mark is dropped if the text has it beside a
    space anywhere, or has a comma between two digits, and else becomes a space; full stops go unless a digit follows;
    then, in lower case and word by word, number words up to ten become digits, articles go, contractions get their
    apostrophe.
    """
    text = _one_line(text)
    bare, comma_in_number = text, _COMMA_IN_NUMBER.search(text) is not None
    for mark in _PUNCTUATION:
        dropped = comma_in_number or f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if dropped else " ")
    bare = _FULL_STOP.sub("", bare, count=_MOST_FULL_STOPS)
    words = (_DIGITS.get(word, word) for word in bare.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


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
    prediction, said = _one_line(prediction), [_one_line(answer) for answer in answers]
    if len(set(said)) > 1:
        prediction, said = normalized_answer(prediction), [normalized_answer(answer) for answer in said]
    matches = [answer == prediction for answer in said]
    agreeing = sum(matches)
    return sum(min(1.0, (agreeing - match) / 3) for match in matches) / len(matches)


def soft_score(matches: int) -> float:
    """0, 0.3, 0.6, 0.9, 1 for an answer that 0, 1, 2, 3, and 4 or more of ten people gave.

    It is ``question_accuracy`` of that answer, in closed form: ``min(1, 0.3 matches)``.
    """
    return (0.0, 0.3, 0.6, 0.9, 1.0)[min(matches, 4)]


def soft_targets(answers: Iterable[str]) -> dict[str, float]:
    """Training targets of one question from its ten answers: answer -> ``soft_score`` of its count.

    Answers are counted as they stand, as bottom-up-attention-vqa counts them, and keep the order in which they first
    occur; the caller drops those that the answer vocabulary lacks.
    """
    counts: dict[str, int] = {}
    for answer in answers:
        counts[answer] = counts.get(answer, 0) + 1
    return {answer: soft_score(count) for answer, count in counts.items()}


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


def read_questions(path: Path | str) -> dict[int, VQAQuestion]:
    """Question id -> question, of a ``v2_OpenEnded_mscoco_*_questions.json``.

    Raises:
        VlkdError: it is not such a file, or an id comes twice.
    """
    found: dict[int, VQAQuestion] = {}
    for row in rows_under(read_json(path, "questions"), "questions", path):
        question = VQAQuestion(row.value("image_id", int), row.value("question", str))
        row.add_to(found, row.value("question_id", int), question, "question_id")
    return found


def read_annotations(path: Path | str) -> dict[int, VQAAnnotation]:
    """Question id -> annotation, of a ``v2_mscoco_*_annotations.json``.

    Raises:
        VlkdError: it is not such a file, an id comes twice, or a question has other than ten answers.
    """
    found: dict[int, VQAAnnotation] = {}
    for row in rows_under(read_json(path, "annotations"), "annotations", path):
        annotation = VQAAnnotation(
            row.value("image_id", int),
            row.value("question_type", str),
            row.value("answer_type", str),
            _human_answers(row),
        )
        row.add_to(found, row.value("question_id", int), annotation, "question_id")
    return found


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


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _per_cent(accuracies: Sequence[float]) -> float:
    return 100 * sum(accuracies) / len(accuracies)  # in this order, that rounding meets the official code's ties


def _rounded(value: float, digits: int) -> float:
    return float(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def _human_answers(row: Row) -> tuple[str, ...]:
    found: dict[int, str] = {}
    for answer in rows(row.value("answers", list), f"'answers' in {row.place}"):
        answer.add_to(found, answer.value("answer_id", int), answer.value("answer", str), "answer_id")
    if len(found) != ANSWERS_PER_QUESTION:
        raise VlkdError(
            f"Expected {ANSWERS_PER_QUESTION} answers in {row.place}, as VQA v2 has them, but got {len(found)}: "
            "score answers of another data set with `vlkd.evaluation.soft_accuracy`."
        )
    return tuple(found.values())


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
