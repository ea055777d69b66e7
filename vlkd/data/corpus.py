"""The words of one split: captions and questions of every picture, and the answers that training knows."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlkd.data.text_files import checked_key, checked_text, short
from vlkd.errors import VlkdError
from vlkd.recipes.schema import World
from vlkd.runs import write_atomically
from vlkd.scenes import Picture, Question, make_picture

ANSWERS = "answers.json"  # the vocabulary's file beside those of the splits
_SPLIT = re.compile(r"\w[\w.-]*")
_SMALL = 64  # the least that make_picture renders


@dataclass(frozen=True)
class Corpus:
    """Texts of the pictures of a split, without their pixels.

    Attributes:
        split: its name.
        keys: the pictures.
        captions: of each picture, in the order of ``keys``.
        questions: of each picture, with their answers.

    Raises:
        VlkdError: the split's name makes no file name, or that of the answer vocabulary, which it would replace.
    """

    split: str
    keys: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    questions: tuple[tuple[Question, ...], ...]

    def __post_init__(self) -> None:
        if f"{self.split}.json" == ANSWERS:
            raise VlkdError(
                f"A split cannot be called '{self.split}': {ANSWERS} holds the answers that a VQA model chooses among."
            )
        if not _SPLIT.fullmatch(self.split):
            raise VlkdError(f"A split cannot be called '{self.split}': letters, digits, '-' and '_' make a name.")

    @classmethod
    def of_pictures(cls, split: str, pictures: Iterable[Picture]) -> Corpus:
        """Keep the texts of ``pictures``; for those who render them anyway."""
        texts = [(picture.key, picture.captions, picture.questions) for picture in pictures]
        if not texts:
            raise VlkdError(f"The split '{split}' has no picture, but at least 1 is expected.")
        keys, captions, questions = zip(*texts, strict=True)
        return cls(split, keys, captions, questions)

    @classmethod
    def joined(cls, parts: Iterable[Corpus]) -> Corpus:
        """All pictures of several corpora of one split, at least one, in their order."""
        parts = list(parts)
        kept = (tuple(one for part in parts for one in getattr(part, of)) for of in ("keys", "captions", "questions"))
        return cls(parts[0].split, *kept)

    @classmethod
    def of_world(cls, world: World, seed: int, split: str) -> Corpus:
        """The texts of a split of the rendered world, drawn again from its seed.

        Texts do not depend on the size of the picture, so small ones are rendered.
        """
        pictures = (make_picture(seed, split, index, size=_SMALL) for index in range(getattr(world, split)))
        return cls.of_pictures(split, pictures)

    def __len__(self) -> int:
        return len(self.keys)

    def with_texts(self, what: Literal["captions", "questions"]) -> Corpus:
        """The pictures that have captions, or questions.

        Raises:
            VlkdError: none has.
        """
        rows = [row for row, texts in enumerate(getattr(self, what)) if texts]
        if len(rows) == len(self):
            return self
        if not rows:
            raise VlkdError(f"The split '{self.split}' has no {what}: add them with `vlkd data texts … --{what}`.")
        return self.only(rows)

    def with_answers(self) -> Corpus:
        """The questions that have an answer, and the pictures that have such questions.

        Raises:
            VlkdError: there is none.
        """
        answered = tuple(tuple(question for question in asked if question.answered) for asked in self.questions)
        if answered == self.questions:
            return self.with_texts("questions")
        if not any(answered):
            raise VlkdError(
                f"None of the {sum(map(len, self.questions))} questions of the split '{self.split}' has an answer: add them again "
                "with `vlkd data texts … --questions` and their --annotations."
            )
        return replace(self, questions=answered).with_texts("questions")

    def unanswered(self) -> int:
        """How many questions have no answer."""
        return sum(not question.answered for asked in self.questions for question in asked)

    def only(self, rows: Iterable[int]) -> Corpus:
        """The pictures at these places."""
        rows = tuple(rows)
        kept = (tuple(of[row] for row in rows) for of in (self.keys, self.captions, self.questions))
        return Corpus(self.split, *kept)  # type: ignore[arg-type]

    def share(self, share: float) -> Corpus:
        """``round(share · pictures)`` of the pictures, at least 2, in their order.

        They are the first by the SHA-256 of their keys: the same in every run, and a smaller share is a part of every
        larger one.
        """
        count = max(round(share * len(self)), 2)
        if count >= len(self):
            return self
        return self.only(sorted(self.by_hash()[:count]))

    def by_hash(self) -> list[int]:
        """The places of the pictures by the SHA-256 of their keys, which other pictures do not change."""
        return sorted(range(len(self)), key=lambda row: hashlib.sha256(self.keys[row].encode()).digest())

    def texts(self) -> Iterator[str]:
        """Every caption, every question with its answer behind it."""
        for captions in self.captions:
            yield from captions
        for questions in self.questions:
            yield from (f"{question.text} {question.answer}" for question in questions)

    def references(self) -> dict[str, list[str]]:
        """Key -> captions, as captioning metrics take them."""
        return {key: list(captions) for key, captions in zip(self.keys, self.captions, strict=True)}

    def save(self, path: Path | str) -> None:
        """Write the corpus as JSON."""
        write_atomically(Path(path), json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path | str) -> Corpus:
        """Read what :meth:`save` wrote.

        Raises:
            VlkdError: it is not there, or is something else.
        """
        content = _read_json(Path(path), "corpus")
        try:
            split, keys, captions, questions = (content[name] for name in ("split", "keys", "captions", "questions"))
            if not isinstance(split, str) or not all(isinstance(of, list) for of in (keys, captions, questions)):
                raise TypeError
            if not len(set(keys)) == len(keys) == len(captions) == len(questions):
                raise TypeError
            rows = zip(keys, captions, questions, strict=True)
            texts = [_checked_texts(*row, f"'{path}', picture {short(row[0])}") for row in rows]
        except (KeyError, TypeError) as error:
            raise VlkdError(
                f"'{path}' is no corpus: expected texts that `vlkd data texts` wrote; put a file of your own into another folder."
            ) from error
        numbers = Counter(question.id for _, asked in texts for question in asked if question.id is not None)
        if twice := [number for number, count in numbers.most_common(1) if count > 1]:
            raise VlkdError(f"'{path}' has several questions with the id {twice[0]}, but one id is one question's.")
        return cls(split, tuple(keys), tuple(of for of, _ in texts), tuple(of for _, of in texts))


class AnswerVocabulary:
    """The answers among which a VQA model chooses: those that occur in training.

    Attributes:
        answers: class number -> answer.
    """

    def __init__(self, answers: Iterable[str]) -> None:
        self.answers = tuple(answers)
        self._index = {answer: index for index, answer in enumerate(self.answers)}

    @classmethod
    def of_corpus(cls, corpus: Corpus, min_count: int = 1) -> AnswerVocabulary:
        """All answers given at least ``min_count`` times, most frequent first, ties by spelling."""
        counts = Counter(question.answer for asked in corpus.questions for question in asked)
        kept = [answer for answer, count in counts.items() if count >= min_count and answer]
        return cls(sorted(kept, key=lambda answer: (-counts[answer], answer)))

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> str:
        return self.answers[index]

    def index(self, answer: str) -> int | None:
        """The class number of ``answer``; None for one that training never gave."""
        return self._index.get(answer)

    def target(self, question: Question) -> np.ndarray:
        """Soft target, float32 [A]: the question's scores, or 1 at its answer; nothing for answers that training never gave."""
        target = np.zeros(len(self), dtype=np.float32)
        for answer, score in question.scores or ((question.answer, 1.0),):
            index = self.index(answer)
            if index is not None:
                target[index] = score
        return target

    def knows(self, question: Question) -> bool:
        """Whether an answer that is right at all is among these."""
        given = question.scores or ((question.answer, 1.0),)
        return any(score > 0 and answer in self._index for answer, score in given)

    def log_odds(self, corpus: Corpus) -> np.ndarray:
        """log(p / (1 - p)) of each answer among the questions of ``corpus``, float32 [A]; counts are smoothed by 1/2.

        A classifier whose bias starts here begins as the best guess without question and picture. From a bias of 0,
        binary cross-entropy over many answers first pushes all of them down, and saturates the pooler on its way.
        """
        given = Counter(question.answer for asked in corpus.questions for question in asked)
        counts = np.array([given[answer] for answer in self.answers]) + 0.5
        share = counts / (sum(given.values()) + 1)
        return np.log(share / (1 - share)).astype(np.float32)

    @property
    def fingerprint(self) -> str:
        """Names the answers and their order: 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.answers).encode()).hexdigest()[:16]

    def save(self, path: Path | str) -> None:
        """Write the answers as a JSON list."""
        write_atomically(Path(path), json.dumps(self.answers, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> AnswerVocabulary:
        """Read what :meth:`save` wrote.

        Raises:
            VlkdError: it is not there, or is something else.
        """
        content = _read_json(Path(path), "answer vocabulary")
        if not (isinstance(content, list) and all(isinstance(answer, str) for answer in content)):
            raise VlkdError(f"'{path}' is no answer vocabulary: expected a JSON list of words.")
        if len(set(content)) < len(content) or not all(answer.strip() for answer in content):
            raise VlkdError(f"'{path}' has an empty answer, or one twice: each may come once.")
        return cls(content)


def checked_score(value: Any, place: str) -> float:
    """How right an answer is.

    Raises:
        VlkdError: it is no number from 0 to 1.
    """
    if type(value) not in (int, float) or not (math.isfinite(value) and 0 <= value <= 1):
        raise VlkdError(f"A score of {short(value)} in {place}, but a number from 0 to 1 is expected.")
    return float(value)


def _checked_texts(key: Any, captions: Any, questions: Any, place: str) -> tuple[tuple[str, ...], tuple[Question, ...]]:
    """One picture's texts.

    Raises:
        VlkdError: one is empty, or a score is none.
        TypeError: something is not what ``Corpus.save`` writes.
    """
    if not (isinstance(key, str) and isinstance(captions, list) and isinstance(questions, list)):
        raise TypeError
    checked_key(key, place)
    of = tuple(checked_text(_only(str, caption), "caption", place) for caption in captions)
    return of, tuple(_question(content, place) for content in questions)


def _question(content: Any, place: str) -> Question:
    scores = _only(list, content.get("scores", []) if isinstance(content, dict) else None)
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in scores):
        raise TypeError
    soft = tuple((_only(str, answer), checked_score(score, place)) for answer, score in scores)
    number = content.get("id")
    return Question(
        _only(str, content["kind"]), checked_text(_only(str, content["text"]), "question", place),
        _only(str, content["answer"]), soft, None if number is None else _only(int, number),
    )  # fmt: skip


def _only(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} expected")
    return value


def _read_json(path: Path, what: str):
    if not path.is_file():
        raise VlkdError(f"There is no {what} '{path}': finish the stage that writes it first.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VlkdError(f"'{path}' is no {what}: expected JSON.") from error
