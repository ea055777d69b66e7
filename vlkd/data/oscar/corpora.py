"""All texts of a data set, whichever files they are in, as a corpus."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlkd.data.corpus import ANSWERS, AnswerVocabulary, Corpus
from vlkd.data.json_rows import read_json
from vlkd.data.oscar.sources import Sources
from vlkd.data.oscar.texts import file_names, read_answers, read_captions, read_questions
from vlkd.data.tables import read_question_table
from vlkd.data.vqa_v2 import asked_questions, frequent_answers, read_annotations
from vlkd.data.vqa_v2 import read_questions as read_vqa_questions
from vlkd.errors import VlkdError
from vlkd.scenes import Question

if TYPE_CHECKING:
    from vlkd.data.store import RegionStore

LEAST = 9  # questions that an answer of VQA v2 must be the most frequent of

Texts = tuple[Corpus | None, AnswerVocabulary | None, dict[str, tuple[str, ...]]]


def import_texts(sources: Sources, folder: Path | str, store: RegionStore, *, split: str, least: int = LEAST) -> Corpus:
    """Write ``folder/<split>.json``, texts about pictures that ``store`` has, and ``folder/answers.json`` if there is none yet.

    Where the store knows none of the texts' image ids, its pictures go by the file names of COCO's annotations, or by the
    number at the end of their own, as in COCO_train2014_000000391895.

    Raises:
        VlkdError: there are none, a file is broken, or a picture is not in the store.
    """
    corpus, answers, _ = read_texts(sources, split, least)
    if corpus is None:
        raise VlkdError("There are no texts: give --captions, or --questions, or both.")
    if not set(corpus.keys) & set(store.keys):
        names = (file_names(sources.captions) if sources.captions is not None else {}) or _numbers(store.keys)
        corpus = replace(corpus, keys=tuple(names.get(key, key) for key in corpus.keys))
    check_texts(corpus, store.keys, sources)
    save_texts(corpus, answers, Path(folder), split)
    return corpus


def save_texts(corpus: Corpus | None, answers: AnswerVocabulary | None, folder: Path, split: str) -> None:
    """Write what there is; answers that are there already stay."""
    if corpus is not None:
        corpus.save(folder / f"{split}.json")
    if answers is not None and not (folder / ANSWERS).exists():
        answers.save(folder / ANSWERS)


def read_texts(sources: Sources, split: str, least: int = LEAST) -> Texts:
    """The corpus of captions and questions, the answers, and the tags that stand beside Oscar's questions.

    Raises:
        VlkdError: a file is broken, or Oscar's questions come without their answers.
    """
    captions = {} if sources.captions is None else read_captions(sources.captions)
    questions, answers, tags = _questions(sources, least)
    keys = tuple(dict.fromkeys([*captions, *questions]))
    if not keys:
        return None, answers, tags
    of_captions = tuple(tuple(captions.get(key, ())) for key in keys)
    of_questions = tuple(tuple(questions.get(key, ())) for key in keys)
    return Corpus(split, keys, of_captions, of_questions), answers, tags


def check_texts(corpus: Corpus, pictures: Iterable[str], sources: Sources) -> None:
    """Whether every picture that a text is about has features.

    Raises:
        VlkdError: some have none.
    """
    there = set(pictures)
    missing = [key for key in corpus.keys if key not in there]
    if missing:
        texts = " and ".join(f"'{path}'" for path in (sources.captions, sources.questions) if path is not None)
        raise VlkdError(
            f"{texts}: no features for {len(missing)} of {len(corpus)} pictures with texts, the first '{missing[0]}': extract "
            "them, or remove these texts."
        )


def _questions(
    sources: Sources, least: int
) -> tuple[dict[str, list[Question]], AnswerVocabulary | None, dict[str, tuple[str, ...]]]:
    answers = None if sources.answers is None else AnswerVocabulary(read_answers(sources.answers))
    path = sources.questions
    if path is None:
        if answers is not None or sources.annotations is not None:
            raise VlkdError("There are answers, but no questions: give --questions too.")
        return {}, None, {}
    if path.suffix == ".csv":
        return read_question_table(path), answers, {}
    if isinstance(read_json(path, "questions"), dict):  # VQA v2's own; a list is Oscar's
        annotations = {} if sources.annotations is None else read_annotations(sources.annotations)
        questions = asked_questions(read_vqa_questions(path), annotations)
        if answers is None and annotations:
            answers = frequent_answers(annotations, least)
            if not len(answers):
                raise VlkdError(
                    f"No answer in '{sources.annotations}' is the most frequent one of {least} questions: take less with "
                    "--least-answers."
                )
        return questions, answers, {}
    if answers is None:
        raise VlkdError(
            f"'{path}' has numbers for answers: give --answers too (trainval_ans2label.pkl, or the same as JSON)."
        )
    questions, tags = read_questions(path, list(answers.answers))
    return questions, answers, tags


def _numbers(keys: Iterable[str]) -> dict[str, str]:
    """The number at the end of a key, without leading zeros -> the key, where no other key ends so."""
    found = [(str(int(match[0])), key) for key in keys if (match := re.search(r"[0-9]+$", key))]
    counts = Counter(number for number, _ in found)
    return {number: key for number, key in found if counts[number] == 1}
