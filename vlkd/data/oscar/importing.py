"""Oscar and VinVL files into a feature store and a corpus: in bounded memory, in parts, so that a stopped import goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from vlkd.data.corpus import AnswerVocabulary, Corpus
from vlkd.data.merging import Tell, add_texts, check_new
from vlkd.data.oscar.corpora import LEAST, matched, matched_tags, new_texts, read_texts, text_notes
from vlkd.data.oscar.pictures import Pictures
from vlkd.data.oscar.sources import Sources
from vlkd.data.store import FeatureType, RegionStore, finish_store, part_name, unfinished_folder, write_part
from vlkd.errors import VlkdError
from vlkd.progress import track
from vlkd.runs import write_atomically

PICTURES_A_PART = 512
_OF = "sources.json"
_NOTES = 3  # that are told before an import begins


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

    Stopped at any moment, the same call goes on: finished parts of the store are kept, unless a file has changed since.
    Where a file is wrong nothing is left, so that the call can be given again for the mended one.

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
    pictures = _open(sources, dtype, tell)
    pictures.other_tags = matched_tags(tags, corpus, pictures.keys, sources)
    if corpus is not None:
        corpus = matched(corpus, pictures.keys, sources)
        check_new(new_texts(corpus, answers, sources, least), folder)
    parts = unfinished_folder(folder / "store")
    _begin(parts, _settings(sources.region_files(), sources, dtype), folder)
    try:
        _write_parts(pictures, parts, dtype, jobs)
    except VlkdError:  # a file is wrong: what was made of it is of no use to the mended one
        shutil.rmtree(parts, ignore_errors=True)
        raise
    if corpus is not None:  # before the store, whose being there says that nothing is left to do
        for note in (
            *text_notes(sources),
            f"Texts of {len(corpus)} of the {len(pictures.keys)} pictures that have regions.",
        ):
            tell(note)
        corpus = add_texts(folder, new_texts(corpus, answers, sources, least), tell)
    fingerprint = hashlib.sha256(json.dumps(_settings(sources.files(), sources, dtype)).encode()).hexdigest()[:16]
    store = finish_store(folder / "store", fingerprint)
    (folder / "store" / _OF).unlink()
    return Imported(store, corpus, answers)


def _open(sources: Sources, dtype: FeatureType, tell: Tell) -> Pictures:
    pictures = Pictures(sources, dtype)
    for finding in pictures.findings:
        if finding.fatal:
            raise VlkdError(finding.problem)
    for finding in pictures.findings[:_NOTES]:
        tell(f"note: {finding.problem}")
    if len(pictures.findings) > _NOTES:
        tell(f"{len(pictures.findings) - _NOTES} more notes: `vlkd data validate` lists them.")
    return pictures


def _write_parts(pictures: Pictures, parts: Path, dtype: FeatureType, jobs: int) -> None:
    """The parts that are not there yet."""
    blocks = [pictures.keys[first : first + PICTURES_A_PART] for first in range(0, len(pictures.keys), PICTURES_A_PART)]
    missing = [(number, block) for number, block in enumerate(blocks) if not (parts / part_name(number)).exists()]
    if jobs > 1:
        paths = [parts / part_name(number) for number, _ in missing]
        keys = [block for _, block in missing]
        with ProcessPoolExecutor(
            jobs,
            mp_context=get_context("spawn"),
            initializer=_begin_process,
            initargs=(pictures.sources, pictures.other_tags, dtype),
        ) as pool:
            for _ in track(pool.map(_write_block, paths, keys), "parts of the store", len(missing)):
                pass
        return
    keys = [key for _, block in missing for key in block]
    with closing(track(keys, "pictures")) as shown:  # a mistake ends the bar before its sentence is printed
        records = map(pictures.record, shown)
        for number, block in missing:
            write_part(parts / part_name(number), islice(records, len(block)), dtype)


_process: list[tuple[Pictures, FeatureType]] = []  # what a process of `jobs` has opened, once for all of its parts


def _begin_process(sources: Sources, tags: Mapping[str, tuple[str, ...]], dtype: FeatureType) -> None:
    pictures = Pictures(sources, dtype)
    pictures.other_tags = tags
    _process[:] = [(pictures, dtype)]


def _write_block(path: Path, keys: Sequence[str]) -> None:
    ((pictures, dtype),) = _process
    write_part(path, (pictures.record(key) for key in keys), dtype)


def _settings(paths: list[Path], sources: Sources, dtype: FeatureType) -> dict[str, Any]:
    """Which files, and how they are: their names and settings, and their sizes and times."""
    return {
        "files": [[str(path.resolve()) for path in paths], sources.stored_as, dtype],
        "stats": [[path.stat().st_size, path.stat().st_mtime_ns] for path in paths],
    }


def _begin(parts: Path, settings: dict[str, Any], folder: Path) -> None:
    """Create the folder of parts, or take up the one that is there; parts of files that were changed since are made anew.

    Raises:
        VlkdError: it has parts of other files or settings.
    """
    mark = parts / _OF
    found = _read_mark(mark)
    if found is not None and found["files"] != settings["files"]:
        raise VlkdError(
            f"'{folder}' holds an unfinished import of other files or settings: finish that one, choose another folder, or delete "
            f"'{parts}'."
        )
    if parts.exists() and found != settings:
        shutil.rmtree(parts)
    parts.mkdir(parents=True, exist_ok=True)
    if found != settings:
        write_atomically(mark, json.dumps(settings) + "\n")


def _read_mark(path: Path) -> dict[str, Any] | None:
    """What an unfinished import was of; None where there is none, or one of another version of this program."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"files", "stats"} <= found.keys() else None
