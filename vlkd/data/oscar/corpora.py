"""All texts of a data set, whichever files they are in, as a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from vlkd.data.corpus import AnswerVocabulary, Corpus
from vlkd.data.json_rows import read_json
from vlkd.data.merging import NewTexts, Tell, add_texts
from vlkd.data.oscar.naming import Naming
from vlkd.data.oscar.sources import Sources
from vlkd.data.oscar.texts import file_names, read_answers, read_captions, read_questions
from vlkd.data.tables import TABLES, read_question_table, unread_columns
from vlkd.data.text_files import short
from vlkd.data.vqa_v2 import asked_questions, read_annotations
from vlkd.data.vqa_v2 import read_questions as read_vqa_questions
from vlkd.errors import VlkdError
from vlkd.keys import normal_key
from vlkd.scenes import Question

if TYPE_CHECKING:
    from vlkd.data.store import RegionStore

LEAST = 9  # questions that an answer of VQA v2 must be the most frequent of

Tags = dict[str, tuple[str, ...]]
Texts = tuple[Corpus | None, AnswerVocabulary | None, Tags]


def import_texts(
    sources: Sources,
    folder: Path | str,
    store: RegionStore,
    *,
    split: str,
    least: int = LEAST,
    tell: Tell = lambda _: None,
) -> Corpus:
    """Merge texts about pictures that ``store`` has with ``folder/<split>.json``, and write ``folder/answers.json`` where files say
    which answers there are; returns all texts of the split.

    Where the store knows none of the texts' image ids, its pictures go by the file names of COCO's annotations, or by the
    number at the end of their own, as in COCO_train2014_000000391895; or the ids are file names themselves.

    Args:
        sources: the files.
        folder: of the data.
        store: of the pictures.
        split: what the texts are for.
        least: with VQA v2's annotations, how many questions' most frequent answer one of the training questions' must be.
        tell: as :func:`~vlkd.data.merging.add_texts`.

    Raises:
        VlkdError: there are none, a file is broken, a picture is not in the store, or what is there already would be undone.
    """
    corpus, answers, _ = read_texts(sources, split)
    if corpus is None:
        raise VlkdError("There are no texts: give --captions, or --questions, or both.")
    corpus = matched(corpus, store.keys, sources)
    for note in (*text_notes(sources), f"Texts of {len(corpus)} of the {len(store)} pictures that have regions."):
        tell(note)
    return add_texts(Path(folder), new_texts(corpus, answers, sources, least), tell)


def new_texts(corpus: Corpus, answers: AnswerVocabulary | None, sources: Sources, least: int = LEAST) -> NewTexts:
    """What :func:`read_texts` found, ready to be added."""
    counted = sources.annotations is not None and answers is None
    return NewTexts(corpus, answers, least if counted else None, lines=_is_table(sources.questions))


def text_notes(sources: Sources) -> list[str]:
    """What is to be known of sound files of texts, a sentence each: the columns of tables that nothing is read of."""
    unread = [
        (sources.captions, unread_columns(sources.captions, "captions") if _is_table(sources.captions) else []),
        (sources.questions, unread_columns(sources.questions, "questions") if _is_table(sources.questions) else []),
    ]
    return [
        f"'{path}': nothing is read of {' and '.join(map(short, names))}, and every row is taken whatever stands there."
        for path, names in unread
        if names
    ]


def read_texts(sources: Sources, split: str) -> Texts:
    """The corpus of captions and questions, the answers that a file lists, and the tags that stand beside Oscar's questions.

    Keys that differ in their Unicode form alone are one picture's.

    Raises:
        VlkdError: a file is broken, or Oscar's questions come without their answers.
    """
    captions = {} if sources.captions is None else read_captions(sources.captions)
    questions, answers, tags = _questions(sources)
    return (_joined(split, captions, questions) if captions or questions else None), answers, tags


def _joined(split: str, captions: dict[str, list[str]], questions: dict[str, list[Question]]) -> Corpus:
    """One corpus of both; keys that differ in their Unicode form alone are one picture's."""
    spelled: dict[str, str] = {}
    of_captions: dict[str, list[str]] = {}
    of_questions: dict[str, list[Question]] = {}
    for found, joined in ((captions, of_captions), (questions, of_questions)):
        for key, texts in found.items():
            joined.setdefault(spelled.setdefault(normal_key(key), key), []).extend(texts)  # type: ignore[arg-type]
    keys = tuple(spelled.values())
    return Corpus(
        split,
        keys,
        tuple(tuple(of_captions.get(key, ())) for key in keys),
        tuple(tuple(of_questions.get(key, ())) for key in keys),
    )


def matched(corpus: Corpus, pictures: Sequence[str], sources: Sources) -> Corpus:
    """The same texts under the keys that ``pictures`` have; the files of captions and of questions may name them differently.

    Raises:
        VlkdError: a text is about none of them, or two keys would become one.
    """
    captions, questions = _ways(corpus, pictures, sources)
    return _joined(
        corpus.split,
        captions.renamed(dict(zip(corpus.keys, map(list, corpus.captions), strict=True)), sources.captions),
        questions.renamed(dict(zip(corpus.keys, map(list, corpus.questions), strict=True)), sources.questions),
    )


def matched_tags(tags: Tags, corpus: Corpus | None, pictures: Sequence[str], sources: Sources) -> Tags:
    """The tags that stand beside the questions of ``corpus``, under the keys that ``pictures`` have; others are left out."""
    if corpus is None or not tags:
        return {}
    places = _ways(corpus, pictures, sources)[1].places
    return {place: words for key, words in tags.items() if (place := places.get(key)) is not None}


def _ways(corpus: Corpus, pictures: Sequence[str], sources: Sources) -> tuple[Naming, Naming]:
    """How captions and questions name their pictures.

    Where COCO's ``images`` name files that are pictures, an id is what they say, be it another picture's key.
    """
    captions, questions = (
        [key for key, of in zip(corpus.keys, texts, strict=True) if of] for texts in (corpus.captions, corpus.questions)
    )
    files = {} if sources.captions is None else file_names(sources.captions)
    by_file = Naming(captions, pictures, files)
    by_key = Naming(captions, pictures)
    if not files or (by_key.direct and not by_file.direct):
        return by_key, Naming(questions, pictures)
    return by_file, Naming(questions, pictures, {} if _is_table(sources.questions) else files)


def _is_table(path: Path | None) -> TypeGuard[Path]:
    return path is not None and path.suffix.lower() in (*TABLES, ".tsv")


def _questions(sources: Sources) -> tuple[dict[str, list[Question]], AnswerVocabulary | None, Tags]:
    answers = None if sources.answers is None else AnswerVocabulary(read_answers(sources.answers))
    path = sources.questions
    if path is None:
        if answers is not None or sources.annotations is not None:
            raise VlkdError("There are answers, but no questions: give --questions too.")
        return {}, None, {}
    if _is_table(path):
        if sources.annotations is not None:
            raise VlkdError(f"'{path}' has its answers beside the questions: leave --annotations out.")
        questions = read_question_table(path)
        if not questions:
            raise VlkdError(f"'{path}' holds no question, but at least one is expected.")
        return questions, answers, {}
    if isinstance(read_json(path, "questions"), dict):  # VQA v2's own; a list is Oscar's
        annotations = None if sources.annotations is None else read_annotations(sources.annotations)
        asked = read_vqa_questions(path)
        if not asked:
            raise VlkdError(f"'{path}' holds no question, but at least one is expected.")
        return asked_questions(asked, annotations), answers, {}
    if answers is None:
        raise VlkdError(
            f"'{path}' has numbers for answers: give --answers too (trainval_ans2label.pkl, or the same as JSON)."
        )
    if sources.annotations is not None:
        raise VlkdError(f"'{path}' has its answers beside the questions: leave --annotations out.")
    questions, tags = read_questions(path, list(answers.answers))
    return questions, answers, tags
