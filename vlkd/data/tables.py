"""Captions and questions in CSV files of one's own, a row each, found by the names of their columns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal

from vlkd.data.csv_rows import DELIMITERS, csv_rows, header_of
from vlkd.data.text_files import checked_key, checked_text, first_line, read_text, short
from vlkd.errors import VlkdError
from vlkd.regions.picture_folder import SUFFIXES
from vlkd.scenes import Question

PICTURE = ("picture", "image", "file", "filename", "file_name", "image_name", "image_id", "key")
CAPTION = ("caption", "text", "description", "comment")
QUESTION = ("question",)
ANSWER = ("answer",)
TABLES = (".csv", ".txt")
_NUMBERED = re.compile(r"_?[0-9]+$")


def read_caption_table(path: Path) -> dict[str, list[str]]:
    """Key -> captions of a CSV with a picture and a caption a row; a picture may have several rows.

    A picture is named by its file, with or without suffix, relative to the folder of pictures. Several columns that are all
    called ``caption``, or ``caption_1``, ``caption_2`` and so on, are captions of the row's picture, and some may be empty.

    Raises:
        VlkdError: there is no such file, it is no text, a column is missing or cannot be told from another, or a row has too many
            or too few cells or an empty one.
    """
    captions: dict[str, list[str]] = {}
    for _, ((picture,), given) in _rows(path, PICTURE, CAPTION, several=CAPTION):
        captions.setdefault(picture_key(picture), []).extend(given)
    return captions


def read_question_table(path: Path) -> dict[str, list[Question]]:
    """Key -> questions of a CSV with a picture, a question and its answer a row; their ids are the rows' lines.

    Raises:
        VlkdError: as :func:`read_caption_table`.
    """
    questions: dict[str, list[Question]] = {}
    for line, ((picture,), (question,), (answer,)) in _rows(path, PICTURE, QUESTION, ANSWER):
        asked = Question("question", question, answer.lower(), id=line)
        questions.setdefault(picture_key(picture), []).append(asked)
    return questions


def is_caption_table(path: Path) -> bool:
    """Whether a file begins with the header of a table of captions."""
    return _delimiter(first_line(path), path, PICTURE, CAPTION) is not None


def unread_columns(path: Path, of: Literal["captions", "questions"]) -> list[str]:
    """The names in a table's first line of the columns that nothing is read of; none of a file that is no such table."""
    wanted = (PICTURE, CAPTION) if of == "captions" else (PICTURE, QUESTION, ANSWER)
    line = first_line(path)
    delimiter = _delimiter(line, path, *wanted)
    header = () if delimiter is None else header_of(line, delimiter, path)
    return [name for name in header if name and not any(_base(name) in names for names in wanted)]


@lru_cache(maxsize=1 << 12)  # a picture's captions stand together
def picture_key(name: str) -> str:
    """The key of a picture that a file calls ``name``: its path with forward slashes and without the suffix of a picture."""
    path = PurePosixPath(name.replace("\\", "/"))
    return str(path.with_suffix("") if path.suffix.lower() in SUFFIXES else path)


def _rows(
    path: Path, *wanted: tuple[str, ...], several: tuple[str, ...] | None = None
) -> Iterator[tuple[int, list[list[str]]]]:
    """Line numbers, and for each of ``wanted``, which lists a column's possible names, its cell.

    Of ``several`` there may be more than one column, and those that are not empty are given.
    """
    text = read_text(path)
    delimiter = _delimiter(text, path, *wanted)
    if delimiter is None:
        raise VlkdError(_no_column(text, path, wanted))
    rows = csv_rows(text, delimiter, path)
    header = header_of(text, delimiter, path)
    next(rows)
    columns = [_columns(header, names, names is several, path) for names in wanted]
    unnamed = [place for place, name in enumerate(header) if not name and place]  # the first one is pandas' index
    for line, cells in rows:
        place = f"'{path}', line {line}"
        for column in unnamed:
            if cells[column].strip():
                raise VlkdError(f"{place}: {short(cells[column])} stands in a column that the header does not name.")
        found = []
        for names, of in zip(wanted, columns, strict=True):
            given = [cells[column].strip() for column in of if cells[column].strip()]
            if not given:
                raise VlkdError(f"{place}: the cell of '{header[of[0]]}' is empty: fill it, or remove the line.")
            if names is PICTURE:
                found.append([checked_key(given[0], place)])
            else:
                found.append([checked_text(cell, names[0], place) for cell in given])
        yield line, found


def _delimiter(text: str, path: Path, *wanted: tuple[str, ...]) -> str | None:
    """The one by which the header has all that is wanted."""
    return next((mark for mark in DELIMITERS if _found(_header(text, mark, path), *wanted)), None)


def _header(text: str, delimiter: str, path: Path) -> tuple[str, ...]:
    """The header by a delimiter that may be the wrong one; none where it makes no sense."""
    try:
        return header_of(text, delimiter, path)
    except VlkdError:
        return ()


def _found(header: tuple[str, ...], *wanted: tuple[str, ...]) -> bool:
    return all(any(_base(name) in names for name in header) for names in wanted)


def _columns(header: tuple[str, ...], names: tuple[str, ...], several: bool, path: Path) -> list[int]:
    """Where the columns of one kind stand; one, unless ``several`` of one name are allowed."""
    places = [place for place, name in enumerate(header) if _base(name) in names]
    if len(places) > 1 and not (several and len({_base(header[place]) for place in places}) == 1):
        both = " and ".join(f"'{header[place]}'" for place in places)
        raise VlkdError(
            f"'{path}' has the columns {both}, each of which may be the {names[0]}: rename those that are not."
        )
    return places


def _base(name: str) -> str:
    """``caption_2`` -> ``caption``."""
    return _NUMBERED.sub("", name)


def _no_column(text: str, path: Path, wanted: tuple[tuple[str, ...], ...]) -> str:
    header = max((_header(text, mark, path) for mark in DELIMITERS), key=len) or header_of(text, ",", path)
    missing = next(names for names in wanted if not _found(header, names))
    shown = ", ".join(short(name).strip("'") for name in header[:20]) or "(none)"
    return f"'{path}' has the columns {shown}, but one called {' or '.join(missing)} is expected."
