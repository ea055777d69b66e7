"""VQA v2's own files, and its answers as its official evaluation and everybody's training targets take them.

Normalisation follows GT-Vision-Lab/VQA at commit a013f00 (March 2021), oddities included. Before that commit answers were
normalised otherwise: the prediction always, the human answers in their punctuation alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vlkd.data.json_rows import Row, first_few, read_json, rows, rows_under
from vlkd.errors import VlkdError
from vlkd.scenes import Question

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


@lru_cache(maxsize=1 << 16)
def normalized_answer(text: str) -> str:
    """``"The T-shirt isnt\\tred."`` -> ``"t shirt isn't red"``.

    In the official order: line feeds and tabs become spaces; a punctuation mark is dropped if the text has it beside a
    space anywhere, or has a comma between two digits, and else becomes a space; full stops go unless a digit follows;
    then, in lower case and word by word, number words up to ten become digits, articles go, contractions get their
    apostrophe.
    """
    text = one_line(text)
    bare, comma_in_number = text, _COMMA_IN_NUMBER.search(text) is not None
    for mark in _PUNCTUATION:
        dropped = comma_in_number or f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if dropped else " ")
    bare = _FULL_STOP.sub("", bare, count=_MOST_FULL_STOPS)
    words = (_DIGITS.get(word, word) for word in bare.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


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


def read_questions(path: Path | str) -> dict[int, VQAQuestion]:
    """Question id -> question, of a ``v2_OpenEnded_mscoco_*_questions.json``.

    Raises:
        VlkdError: it is not such a file, or an id comes twice.
    """
    found: dict[int, VQAQuestion] = {}
    for row in rows_under(read_json(path, "questions"), "questions", path):
        question = VQAQuestion(row.value("image_id", int), row.text("question"))
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


def asked_questions(
    questions: Mapping[int, VQAQuestion], annotations: Mapping[int, VQAAnnotation] | None
) -> dict[str, list[Question]]:
    """Image id -> questions with soft scores of their normalised answers; without answers where there are no annotations.

    ``answer`` is the most frequent one. A vocabulary of those that are it of at least 9 questions of the train and validation splits
    together has the 3,129 answers of bottom-up-attention-vqa.

    Raises:
        VlkdError: a question has no annotation, or one about another picture.
    """
    if annotations is not None:
        _check_annotated(questions, annotations)
    asked: dict[str, list[Question]] = {}
    for number, question in questions.items():
        kind, answer, scores = "question", "", ()
        if annotations is not None:
            annotation = annotations[number]
            kind = annotation.answer_type
            answer = normalized_answer(Counter(annotation.answers).most_common(1)[0][0])
            scores = tuple(soft_targets(map(normalized_answer, annotation.answers)).items())
        asked.setdefault(str(question.image_id), []).append(Question(kind, question.text, answer, scores, number))
    return asked


def _check_annotated(questions: Mapping[int, VQAQuestion], annotations: Mapping[int, VQAAnnotation]) -> None:
    if missing := questions.keys() - annotations.keys():
        unasked = annotations.keys() - questions.keys()
        others = f"; annotated and not asked: {first_few(unasked, len(annotations))}" if unasked else ""
        raise VlkdError(
            f"No annotation of question_id {first_few(missing, len(questions))} questions{others}: give questions and annotations of "
            "the same split."
        )
    for number, question in questions.items():
        about = annotations[number].image_id
        if about != question.image_id:
            raise VlkdError(
                f"Question {number} is asked about image {question.image_id} and annotated for image {about}: give questions and "
                "annotations of the same split and version."
            )


def one_line(text: str) -> str:
    """Line feeds and tabs as spaces, none at the ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


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
