"""What is wrong with Oscar and VinVL files: every mistake by its own sentence, with file, line and key.

Pictures are examined by the code that an import runs, so that the two agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vlkd.data.corpus import AnswerVocabulary, Corpus
from vlkd.data.json_rows import first_few
from vlkd.data.merging import check_new
from vlkd.data.oscar.corpora import LEAST, Tags, matched, matched_tags, new_texts, read_texts, text_notes
from vlkd.data.oscar.pictures import Finding, Kept, Pictures
from vlkd.data.oscar.sources import Sources
from vlkd.errors import VlkdError
from vlkd.progress import track


def validate(
    sources: Sources,
    pictures: Sequence[str] | None = None,
    *,
    folder: Path | None = None,
    split: str = "train",
    least: int = LEAST,
    dtype: Kept = "float16",
) -> Iterator[Finding]:
    """Go through all files, every row of them.

    Args:
        sources: the files; texts alone will do.
        pictures: the keys that texts without features must be about, where they are known.
        folder: with whose texts these are to be merged.
        split, least: as :func:`~vlkd.data.oscar.corpora.import_texts`.
        dtype: what an import is to keep features in.

    Raises:
        VlkdError: files that belong together are not all given.
    """
    if (sources.captions or sources.questions) and not sources.region_options():
        yield from _texts(sources, pictures, folder, split, least)
        return
    sources = sources.resolved()
    opened = Pictures(sources, dtype)
    opened.other_tags = _tags(sources, split, opened.keys)
    yield from _indices(opened)
    yield from opened.findings
    for key in track(opened.keys, "pictures") if opened.keys else ():
        yield from map(Finding, opened.examine(key)[1])
    yield from _texts(sources, opened.keys or pictures, folder, split, least)


def _tags(sources: Sources, split: str, keys: Sequence[str]) -> Tags:
    """The tags that stand beside questions; what is wrong with texts is said later."""
    try:
        corpus, _, tags = read_texts(sources, split)
        return matched_tags(tags, corpus, keys, sources)
    except VlkdError:
        return {}


def _indices(pictures: Pictures) -> Iterator[Finding]:
    for path in pictures.without_index():
        yield Finding(
            f"'{path}' has no .lineidx beside it: Oscar's own tools need one (`vlkd data index {path}` makes it), we do not.",
            fatal=False,
        )


def _texts(
    sources: Sources, keys: Sequence[str] | None, folder: Path | None, split: str, least: int
) -> Iterator[Finding]:
    """What an import of the texts says, of captions and of questions; ``keys`` are the pictures, where they are known."""
    nothing = Sources()
    parts = (
        replace(nothing, captions=sources.captions),
        replace(nothing, questions=sources.questions, answers=sources.answers, annotations=sources.annotations),
    )
    sound = True
    for part in parts:
        try:
            read_texts(part, split)
        except VlkdError as error:
            sound = False
            yield Finding(str(error))
    if not sound:
        return
    try:
        corpus, answers, _ = read_texts(sources, split)
        if corpus is not None:
            corpus = corpus if keys is None else matched(corpus, keys, sources)
            check_new(new_texts(corpus, answers, sources, least), folder)
    except VlkdError as error:
        yield Finding(str(error))
        return
    yield from (Finding(note, fatal=False) for note in text_notes(sources))
    if corpus is not None and keys is not None and len(corpus) < len(keys):
        texts = " and ".join(f"'{path}'" for path in (sources.captions, sources.questions) if path is not None)
        yield Finding(
            f"{texts}: no texts of {first_few(set(keys) - set(corpus.keys), len(keys))} pictures.", fatal=False
        )
    if corpus is not None and (count := corpus.unanswered()):
        total = sum(map(len, corpus.questions))
        yield Finding(f"'{sources.questions}': {count} of {total} questions have no answer.", fatal=False)
    if corpus is not None and answers is not None and (count := _outside(corpus, answers)):
        total = sum(map(len, corpus.questions))
        yield Finding(
            f"'{sources.questions}': {count} of {total} questions have an answer that is none of the {len(answers)} in "
            f"'{sources.answers}'.",
            fatal=False,
        )


def _outside(corpus: Corpus, answers: AnswerVocabulary) -> int:
    """How many questions have an answer of their own that is none of ``answers``."""
    return sum(
        bool(question.answer) and not answers.knows(question) for asked in corpus.questions for question in asked
    )
