"""Oscar and VinVL files into a feature store and a corpus: in bounded memory, in parts, so that a stopped import goes on."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from vlkd.data.corpus import AnswerVocabulary, Corpus
from vlkd.data.merging import Tell, add_texts
from vlkd.data.oscar.corpora import LEAST, matched, new_texts, read_texts
from vlkd.data.oscar.sources import Pictures, Sources
from vlkd.data.store import FeatureType, RegionStore, finish_store, part_name, unfinished_folder, write_part
from vlkd.errors import VlkdError
from vlkd.progress import track
from vlkd.runs import write_atomically

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
    sources: Sources,
    folder: Path | str,
    *,
    split: str = "train",
    dtype: FeatureType = "float16",
    jobs: int = 1,
    least: int = LEAST,
    tell: Tell = lambda _: None,
) -> Imported:
    """Write ``folder/store``, ``folder/<split>.json`` and ``folder/answers.json``.

    Stopped at any moment, the same call goes on: finished parts of the store are kept.

    Args:
        sources: the files.
        folder: where a finished store must not be yet.
        split: the corpus's name.
        dtype: of the features in the store.
        jobs: processes that read side by side.
        least, tell: as :func:`~vlkd.data.oscar.corpora.import_texts`.

    Raises:
        VlkdError: a file is broken or does not belong to the others, with file, line and key; or ``folder`` holds a finished
            store, or an unfinished one of other files.
    """
    folder = Path(folder)
    sources = sources.resolved()
    corpus, answers, tags = read_texts(sources, split)
    pictures = Pictures(sources, tags)
    if corpus is not None:
        corpus = matched(corpus, pictures.keys, sources)
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
    if corpus is not None:  # before the store, whose being there says that nothing is left to do
        tell(f"Texts of {len(corpus)} of the {len(pictures.keys)} pictures that have regions.")
        corpus = add_texts(folder, new_texts(corpus, answers, sources, least), tell)
    (parts / _OF).unlink()
    store = finish_store(folder / "store", fingerprint)
    return Imported(store, corpus, answers)


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
