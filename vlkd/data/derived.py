"""What a data folder holds that was made of its training texts, and whether the texts are still those.

``derived.yaml`` says of the tokenizer and of ``answers.json`` what they were made of. What it does not know, or knows
otherwise, somebody put there: it is kept and never made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vlkd.data.corpus import ANSWERS, AnswerVocabulary, Corpus
from vlkd.data.tokenizer import load_tokenizer, save_tokenizer, tokenizer_fingerprint, train_tokenizer
from vlkd.errors import VlkdError
from vlkd.runs import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RECORD = "derived.yaml"
TOKENIZER = "tokenizer"
TRAIN = "train"
_LEAST = "least answers"
_TEXTS = "training texts"


class Derived:
    """``derived.yaml`` of a folder: name -> what it was made of, and its own fingerprint."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RECORD
        self._known: dict[str, Any] = {}
        if self._path.is_file():
            try:
                self._known = yaml.safe_load(self._path.read_text(encoding="utf-8")) or {}
                assert isinstance(self._known, dict)
            except (yaml.YAMLError, UnicodeDecodeError, AssertionError):
                raise VlkdError(
                    f"'{self._path}' is damaged: delete it; what lies beside it then counts as yours."
                ) from None

    def made_of(self, name: str, fingerprint: str) -> Mapping[str, Any] | None:
        """What ``name``, as it is now, was made of here; None if it was not made here."""
        known = self._known.get(name)
        return known["of"] if isinstance(known, dict) and known.get("is") == fingerprint else None

    def record(self, name: str, of: Mapping[str, Any], fingerprint: str) -> None:
        """Note, before it is written, what ``name`` is made of."""
        self._write({**self._known, name: {"of": dict(of), "is": fingerprint}})

    @property
    def held_out(self) -> tuple[str, ...]:
        """The splits whose pictures were taken out of the training texts."""
        names = self._known.get("held out", ())
        return tuple(name for name in names if (self._path.parent / f"{name}.json").is_file())

    def hold_out(self, split: str) -> None:
        """Note, before it is written, that ``split`` is one of them."""
        self._write({**self._known, "held out": sorted({*self.held_out, split})})

    def forget_deleted(self) -> None:
        """Splits that were held out and deleted since are held out no more, whatever gets their name."""
        if len(self.held_out) < len(self._known.get("held out", ())):
            self._write({**self._known, "held out": list(self.held_out)})

    def _write(self, known: dict[str, Any]) -> None:
        self._known = known
        write_atomically(self._path, yaml.safe_dump(known, sort_keys=True))


def folder_tokenizer(folder: Path, corpus: Corpus, vocabulary: int) -> PreTrainedTokenizerFast:
    """``folder/tokenizer``, or one made of the training texts ``corpus`` and kept there.

    A tokenizer that somebody put there, BERT's for example, is taken as it is if it has at most ``vocabulary`` WordPieces.

    Raises:
        VlkdError: it was made of other texts or for another ``text.vocabulary``, is larger than that, or something else is there.
    """
    place, derived = folder / TOKENIZER, Derived(folder)
    of = {_TEXTS: _fingerprint(corpus.texts()), "text.vocabulary": vocabulary}
    if not (place / "tokenizer.json").is_file():
        if place.is_dir() and any(place.iterdir()):
            raise VlkdError(
                f"'{place}' holds no tokenizer.json: transformers' `AutoTokenizer.from_pretrained(…).save_pretrained('{place}')` writes one "
                "of a vocabulary; or delete that folder, and one is made of the training texts."
            )
        made = train_tokenizer(corpus.texts(), vocabulary)
        derived.record(TOKENIZER, of, tokenizer_fingerprint(made))
        save_tokenizer(made, place)
        return load_tokenizer(place)
    tokenizer = load_tokenizer(place)
    found = derived.made_of(TOKENIZER, tokenizer_fingerprint(tokenizer))
    if found is None:
        if len(tokenizer) > vocabulary:
            raise VlkdError(
                f"'{place}', which was not made here, has {len(tokenizer):,} WordPieces, but the recipe says text.vocabulary = "
                f"{vocabulary:,}: set text.vocabulary={len(tokenizer)}, or delete that folder and one is made of the training texts."
            )
        return tokenizer
    anew = "delete that folder to have one made of them; models that were trained with it must then be trained anew."
    if found.get(_TEXTS) != of[_TEXTS]:
        raise VlkdError(f"'{place}' was made of other training texts than '{folder / 'train.json'}' has now: {anew}")
    if found.get("text.vocabulary") != vocabulary:
        raise VlkdError(
            f"'{place}' was made with text.vocabulary = {found.get('text.vocabulary')}, but the recipe says {vocabulary}: set it to "
            f"the former, or {anew}"
        )
    return tokenizer


def folder_answers(folder: Path, corpus: Corpus) -> AnswerVocabulary | None:
    """``folder/answers.json``, where it is.

    Raises:
        VlkdError: it was made of other training questions than ``corpus`` has.
    """
    place = folder / ANSWERS
    if not place.is_file():
        return None
    answers = AnswerVocabulary.load(place)
    found = Derived(folder).made_of(ANSWERS, answers.fingerprint)
    if found is not None and found.get(_TEXTS) != _fingerprint(_given(corpus)):
        raise VlkdError(
            f"'{place}' was made of other training questions than '{folder / 'train.json'}' has now: add these again with `vlkd data "
            f"texts … --split {TRAIN} --questions`, or delete that file to have all their answers."
        )
    return answers


def least_of(folder: Path) -> int | None:
    """How many questions' best answer each of ``folder/answers.json`` is, where it was made here by such a count."""
    place = folder / ANSWERS
    if not place.is_file():
        return None
    found = Derived(folder).made_of(ANSWERS, AnswerVocabulary.load(place).fingerprint)
    return None if found is None else found.get(_LEAST)


def frequent_answers(corpus: Corpus, least: int) -> AnswerVocabulary:
    """The answers that are the best of at least ``least`` questions, the most frequent first.

    Raises:
        VlkdError: there is none.
    """
    answers = AnswerVocabulary.of_corpus(corpus, least)
    if not len(answers):
        raise VlkdError(
            f"No answer is the most frequent one of {least} questions: take less with --least-answers (of `vlkd data import` and `vlkd "
            f"data texts`), of the {sum(map(len, corpus.questions))} questions of the split '{corpus.split}'."
        )
    return answers


def save_frequent_answers(folder: Path, corpus: Corpus, answers: AnswerVocabulary, least: int) -> None:
    """Write ``folder/answers.json``, made of the training texts ``corpus`` by :func:`frequent_answers`."""
    Derived(folder).record(ANSWERS, {_TEXTS: _fingerprint(_given(corpus)), _LEAST: least}, answers.fingerprint)
    answers.save(folder / ANSWERS)


def _given(corpus: Corpus) -> Iterable[str]:
    return (question.answer for asked in corpus.questions for question in asked)


def _fingerprint(texts: Iterable[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]
