"""Captions and questions in CSV files of one's own, a row each, found by the names of their columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vlkd.errors import VlkdError
from vlkd.regions.picture_folder import SUFFIXES
from vlkd.scenes import Question

PICTURE = ("picture", "image", "file", "filename", "file_name", "image_id", "key")
CAPTION = ("caption", "text", "description")
QUESTION = ("question",)
ANSWER = ("answer",)


def read_caption_table(path: Path) -> dict[str, list[str]]:
    """Key -> captions of a CSV with a picture and a caption a row; a picture may have several rows.

    A picture is named by its file, with or without suffix, relative to the folder of pictures.

    Raises:
        VlkdError: there is no such file, a column is missing, or a cell is empty.
    """
    captions: dict[str, list[str]] = {}
    for _, (picture, caption) in _rows(path, PICTURE, CAPTION):
        captions.setdefault(picture_key(picture), []).append(caption)
    return captions


def read_question_table(path: Path) -> dict[str, list[Question]]:
    """Key -> questions of a CSV with a picture, a question and its answer a row; their ids are the rows' numbers.

    Raises:
        VlkdError: as :func:`read_caption_table`.
    """
    questions: dict[str, list[Question]] = {}
    for number, (picture, question, answer) in _rows(path, PICTURE, QUESTION, ANSWER):
        asked = Question("question", question, answer.lower(), id=number)
        questions.setdefault(picture_key(picture), []).append(asked)
    return questions


def picture_key(name: str) -> str:
    """The key of a picture that a file calls ``name``: its path with forward slashes and without the suffix of a picture."""
    path = PurePosixPath(name.replace("\\", "/"))
    return str(path.with_suffix("") if path.suffix.lower() in SUFFIXES else path)


def _rows(path: Path, *wanted: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line numbers, and the cells of one column for each of ``wanted``, which lists its possible names."""
    if not path.is_file():
        raise VlkdError(f"There is no file '{path}': check its name.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            header = {name.strip().lower(): name for name in reader.fieldnames or ()}
            columns = []
            for names in wanted:
                found = [header[name] for name in names if name in header]
                if not found:
                    raise VlkdError(
                        f"'{path}' has the columns {', '.join(header) or '(none)'}, but one called {' or '.join(names)} is expected."
                    )
                columns.append(found[0])
            for row in reader:
                cells = tuple((row[column] or "").strip() for column in columns)
                if not all(cells):
                    empty = columns[cells.index("")]
                    raise VlkdError(
                        f"'{path}', line {reader.line_num}: the cell of '{empty}' is empty: fill it, or remove the line."
                    )
                yield reader.line_num, cells
        except (UnicodeDecodeError, csv.Error) as error:
            raise VlkdError(f"'{path}' is no CSV in UTF-8 ({error}).") from None
