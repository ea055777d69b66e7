"""Oscar and VinVL files into a feature store and a corpus: in bounded memory, in parts, so that a stopped import goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from vlkd.data.corpus import AnswerVocabulary, Corpus
from vlkd.data.oscar.sources import Pictures, Sources
from vlkd.data.oscar.texts import file_names, read_answers, read_captions, read_questions
from vlkd.data.store import FeatureType, RegionStore, finish_store, part_name, unfinished_folder, write_part
from vlkd.data.tables import read_question_table
from vlkd.errors import VlkdError
from vlkd.progress import track
from vlkd.runs import write_atomically
from vlkd.scenes import Question

PICTURES_A_PART = 512
_OF = "sources.json"


@dataclass(frozen=True)
class Imported:
    """What an import wrote.

    Attributes:
        store: the features.
        corpus: the texts, where there were any.
        answers: the answers, where there were questions.
    """

    store: RegionStore
    corpus: Corpus | None
    answers: AnswerVocabulary | None


def import_oscar(
    sources: Sources, folder: Path | str, *, split: str = "train", dtype: FeatureType = "float16", jobs: int = 1
) -> Imported:
    """Write ``folder/store``, ``folder/<split>.json`` and ``folder/answers.json``.

    Stopped at any moment, the same call goes on: finished parts of the store are kept.

    Args:
        sources: the files.
        folder: where a finished store must not be yet.
        split: the corpus's name.
        dtype: of the features in the store.
        jobs: processes that read side by side.

    Raises:
        VlkdError: a file is broken or does not belong to the others, with file, line and key; or ``folder`` holds a finished
            store, or an unfinished one of other files.
    """
    folder = Path(folder)
    sources = sources.resolved()
    corpus, answers, tags = read_texts(sources, split)
    pictures = Pictures(sources, tags)
    if corpus is not None:
        check_texts(corpus, pictures.keys, sources)
    fingerprint = _fingerprint(sources, dtype)
    parts = unfinished_folder(folder / "store")
    _begin(parts, fingerprint, folder)
    blocks = [
        range(first, min(first + PICTURES_A_PART, len(pictures.keys)))
        for first in range(0, len(pictures.keys), PICTURES_A_PART)
    ]
    missing = [(number, block) for number, block in enumerate(blocks) if not (parts / part_name(number)).exists()]
    write = partial(_write_block, sources, tags, parts, dtype)
    if jobs > 1:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            numbers, ranges = [number for number, _ in missing], [block for _, block in missing]
            for _ in track(pool.map(write, numbers, ranges), "parts of the store", len(missing)):
                pass
    else:
        rows = [row for _, block in missing for row in block]
        records = (pictures.record(pictures.keys[row]) for row in track(rows, "pictures"))
        for number, block in missing:
            write_part(parts / part_name(number), islice(records, len(block)), dtype)
    (parts / _OF).unlink()
    store = finish_store(folder / "store", fingerprint)
    _save(corpus, answers, folder, split)
    return Imported(store, corpus, answers)


def import_texts(sources: Sources, folder: Path | str, store: RegionStore, *, split: str) -> Corpus:
    """Write ``folder/<split>.json``, texts about pictures that ``store`` has.

    Where the store knows none of COCO's image ids, its file names are tried.

    Raises:
        VlkdError: there are none, a file is broken, or a picture is not in the store.
    """
    sources.check_texts()
    corpus, answers, _ = read_texts(sources, split)
    if corpus is not None and sources.captions is not None and not set(corpus.keys) & set(store.keys):
        names = file_names(sources.captions)
        corpus = replace(corpus, keys=tuple(names.get(key, key) for key in corpus.keys))
    if corpus is None:
        raise VlkdError("There are no texts: give --captions, or --questions and --answers, or both.")
    check_texts(corpus, store.keys, sources)
    _save(corpus, answers, Path(folder), split)
    return corpus


def _save(corpus: Corpus | None, answers: AnswerVocabulary | None, folder: Path, split: str) -> None:
    if corpus is not None:
        corpus.save(folder / f"{split}.json")
    if answers is not None and not (folder / "answers.json").exists():
        answers.save(folder / "answers.json")


def read_texts(
    sources: Sources, split: str
) -> tuple[Corpus | None, AnswerVocabulary | None, dict[str, tuple[str, ...]]]:
    """The corpus of captions and questions, the answers, and the tags that stand beside questions."""
    captions = {} if sources.captions is None else read_captions(sources.captions)
    questions: dict[str, list[Question]] = {}
    tags: dict[str, tuple[str, ...]] = {}
    answers = None if sources.answers is None else AnswerVocabulary(read_answers(sources.answers))
    if sources.questions is not None and answers is None:
        questions = read_question_table(sources.questions)
    elif sources.questions is not None and answers is not None:
        questions, tags = read_questions(sources.questions, list(answers.answers))
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


def _begin(parts: Path, fingerprint: str, folder: Path) -> None:
    """Create the folder of parts, or take up the one that is there."""
    mark = parts / _OF
    if not parts.exists():
        parts.mkdir(parents=True)
        write_atomically(mark, json.dumps({"fingerprint": fingerprint}) + "\n")
    found = json.loads(mark.read_text())["fingerprint"] if mark.is_file() else None
    if found not in (fingerprint, None):
        raise VlkdError(
            f"'{folder}' holds an unfinished import of other files or settings: finish that one, choose another folder, or delete "
            f"'{parts}'."
        )


def _write_block(
    sources: Sources, tags: dict[str, tuple[str, ...]], parts: Path, dtype: FeatureType, number: int, block: range
) -> None:
    pictures = Pictures(sources, tags)
    write_part(parts / part_name(number), (pictures.record(pictures.keys[row]) for row in block), dtype)


def _fingerprint(sources: Sources, dtype: FeatureType) -> str:
    """Of the files' names, sizes and times."""
    files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sources.files()]
    return hashlib.sha256(json.dumps([files, sources.stored_as, dtype]).encode()).hexdigest()[:16]
