"""What is wrong with Oscar and VinVL files: every mistake by its own sentence, with file, line and key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlkd.data.json_rows import first_few
from vlkd.data.merging import check_new
from vlkd.data.oscar.corpora import LEAST, matched, new_texts, read_texts
from vlkd.data.oscar.features import FeatureFile, open_features
from vlkd.data.oscar.sources import Sources, differing_box, lacking
from vlkd.data.oscar.tags import TagFile
from vlkd.data.oscar.tsv import TsvFile
from vlkd.errors import VlkdError
from vlkd.progress import track


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        problem: a sentence that names file, line and key, and says what to do.
        fatal: whether an import refuses it.
    """

    problem: str
    fatal: bool = True


def validate(
    sources: Sources, pictures: Sequence[str] | None = None, *, split: str = "train", least: int = LEAST
) -> Iterator[Finding]:
    """Go through all files, every row of them.

    Args:
        sources: the files; texts alone will do.
        pictures: the keys that texts without features must be about, where they are known.
        split, least: as :func:`~vlkd.data.oscar.corpora.import_texts`.

    Raises:
        VlkdError: files that belong together are not all given.
    """
    if any((sources.student, sources.teacher, sources.own)) or not (sources.captions or sources.questions):
        sources = sources.resolved()
    yield from _indices(sources)
    files: dict[str, FeatureFile] = {}
    for name in ("student", "teacher", "own"):
        path = getattr(sources, name)
        if path is None:
            continue
        try:
            files[name] = open_features(path, sources.stored_as)
        except VlkdError as error:
            yield Finding(str(error))
    if not files:
        yield from _texts(sources, pictures, split, least)
        return
    yield from _keys(list(files.values()))
    for path, side in ((sources.tags, "student"), (sources.own_tags, "own")):
        if path is not None and side in files:
            yield from _tags(path, files[side])
    yield from _rows(files)
    yield from _texts(sources, next(iter(files.values())).keys, split, least)


def _indices(sources: Sources) -> Iterator[Finding]:
    for path in sources.files():
        if path.suffix != ".tsv" or not path.is_file():
            continue
        try:
            if not TsvFile(path).indexed:
                yield Finding(
                    f"'{path}' has no .lineidx beside it: Oscar's own tools need one (`vlkd data index {path}` makes it), we do not.",
                    fatal=False,
                )
        except VlkdError:
            pass  # said when it is opened for its content


def _keys(files: Sequence[FeatureFile]) -> Iterator[Finding]:
    for file in files[1:]:
        for one, other in ((files[0], file), (file, files[0])):
            missing = lacking(one, other)
            if missing:
                yield Finding(missing, fatal=one is files[0])
        yield from _order(files[0].path, files[0].keys, file.path, file.keys)


def _order(path: Path, keys: Sequence[str], other: Path, others: Sequence[str]) -> Iterator[Finding]:
    if set(keys) != set(others):
        return
    for row, (one, two) in enumerate(zip(keys, others, strict=True)):
        if one != two:
            yield Finding(
                f"'{other}', line {row + 1}: key '{two}', where '{path}' has '{one}': Oscar matches the two by order and would mix up "
                "pictures; an import here matches them by key.",
                fatal=False,
            )
            return


def _tags(path: Path, features: FeatureFile) -> Iterator[Finding]:
    try:
        tags = TagFile(path)
    except VlkdError as error:
        yield Finding(str(error))
        return
    for key in tags.keys:
        if key not in features:
            yield Finding(
                f"'{path}', line {tags.line(key)}, key '{key}': tags, but no features in '{features.path}': extract that "
                "picture too, or remove the line.",
                fatal=False,
            )
    for key in features.keys:
        try:
            tags.read(key)
        except VlkdError as error:
            yield Finding(str(error))
    yield from _order(features.path, features.keys, path, tags.keys)


def _rows(files: dict[str, FeatureFile]) -> Iterator[Finding]:
    dims: dict[str, tuple[int, str]] = {}
    first = next(iter(files.values()))
    for key in track(first.keys, "pictures"):
        found = {}
        for name, file in files.items():
            if key not in file:
                continue
            try:
                found[name] = file.read(key).features
            except VlkdError as error:
                yield Finding(str(error))
                continue
            dim = found[name].shape[1]
            expected, of_key = dims.setdefault(name, (dim, key))
            if dim != expected:
                yield Finding(
                    f"{file.place(key)}: {dim} numbers a region, but {expected} of '{of_key}': one "
                    "file holds the features of one detector."
                )
        if "student" in found and "teacher" in found:
            difference = differing_box(found["student"], found["teacher"])
            if difference:
                yield Finding(f"{files['teacher'].place(key)}: {difference}.")


def _texts(sources: Sources, keys: Sequence[str] | None, split: str, least: int) -> Iterator[Finding]:
    """What an import of the texts says, of captions and of questions; ``keys`` are the pictures, where they are known."""
    nothing = Sources()
    parts = (
        replace(nothing, captions=sources.captions),
        replace(nothing, questions=sources.questions, answers=sources.answers, annotations=sources.annotations),
    )
    sound = True
    for part in parts:
        try:
            corpus, answers, _ = read_texts(part, split)
            if corpus is not None:
                check_new(new_texts(corpus, answers, part, least))
        except VlkdError as error:
            sound = False
            yield Finding(str(error))
    if not sound or keys is None:
        return
    try:
        corpus, _, _ = read_texts(sources, split)
        corpus = None if corpus is None else matched(corpus, keys, sources)
    except VlkdError as error:
        yield Finding(str(error))
        return
    if corpus is not None and len(corpus) < len(keys):
        texts = " and ".join(f"'{path}'" for path in (sources.captions, sources.questions) if path is not None)
        yield Finding(
            f"{texts}: no texts of {first_few(set(keys) - set(corpus.keys), len(keys))} pictures.", fatal=False
        )
    if corpus is not None and (count := corpus.unanswered()):
        total = sum(map(len, corpus.questions))
        yield Finding(f"'{sources.questions}': {count} of {total} questions have no answer.", fatal=False)
