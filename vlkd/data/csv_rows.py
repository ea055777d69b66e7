"""Rows of a CSV file, read strictly: every row has the cells of the header, and every error names its line.

Python's ``csv`` knows no line of a quote that is never closed, which is the commonest mistake in such files, so quotes are
followed here. The dialect is RFC 4180's; the delimiter is a comma, a semicolon, a tab or a bar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vlkd.data.text_files import short
from vlkd.errors import VlkdError

DELIMITERS = (",", ";", "\t", "|")
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_BREAK = re.compile(r"\r\n|\r|\n")
_OPENING = re.compile(r' *"')
_QUOTED = re.compile(r'([^"]*(?:""[^"]*)*)" *')
_EXCEL = re.compile(r"sep=(.)(?:\r\n|\r|\n)")  # a first line by which Excel is told the delimiter


class CsvRow(NamedTuple):
    """The cells of one row, and the line in which it begins, counted from 1."""

    line: int
    cells: tuple[str, ...]


def csv_rows(text: str, delimiter: str, path: Path) -> Iterator[CsvRow]:
    """All rows of a file that holds ``text``; rows of empty cells are left out.

    The first is the header. A line break inside a quoted cell becomes a space.

    Raises:
        VlkdError: a row has more or fewer cells than the header, or a quote is not closed, or closes after it swallowed rows.
    """
    columns: tuple[str, ...] | None = None
    for row in _records(text, delimiter, path):
        if not any(cell.strip() for cell in row.cells):
            continue
        if columns is None:
            columns = row.cells
        elif len(row.cells) != len(columns):
            raise VlkdError(_other_count(row, columns, delimiter, path))
        yield row


def header_of(text: str, delimiter: str, path: Path) -> tuple[str, ...]:
    """The cells of the first row, in lower case and with ``_`` for spaces; none of an empty file.

    Raises:
        VlkdError: a quote in it is not closed.
    """
    first = next(csv_rows(text, delimiter, path), None)
    return () if first is None else tuple("_".join(cell.lower().split()) for cell in first.cells)


def _records(text: str, delimiter: str, path: Path) -> Iterator[CsvRow]:
    plain = re.compile(rf"[^{re.escape(delimiter)}\r\n]*")
    told = _EXCEL.match(text)
    at, line = (told.end(), 2) if told else (0, 1)
    most = 0
    while at < len(text):
        first, cells = line, []
        while True:
            opening = _OPENING.match(text, at)
            if opening:
                cell, at = _quoted(text, opening.end(), delimiter, f"'{path}', line {line}")
                if "\n" in cell or "\r" in cell:
                    pieces = _BREAK.split(cell)
                    _refuse_swallowed(pieces, delimiter, max(most, len(cells) + 1), line, path)
                    line += len(pieces) - 1
                    cell = " ".join(pieces)
                cells.append(cell)
            else:
                match = plain.match(text, at)
                assert match is not None
                cells.append(match[0])
                at = match.end()
            if not text.startswith(delimiter, at):
                break
            at += len(delimiter)
        most = most or len(cells)
        yield CsvRow(first, tuple(cells))
        end = _BREAK.match(text, at)
        at = end.end() if end else len(text)
        line += 1


def _quoted(text: str, begin: int, delimiter: str, place: str) -> tuple[str, int]:
    """The cell whose opening quote ends at ``begin``, and where its closing quote ends."""
    found = _QUOTED.match(text, begin)
    if found is None:
        raise VlkdError(
            f"{place}: the quote that opens before {_shown(text, begin)} is never closed: close it behind the cell."
        )
    end = found.end()
    if end < len(text) and text[end] not in (delimiter, "\r", "\n"):
        lines = len(_BREAK.findall(found[1]))
        where = f", {lines} line{'s' * (lines > 1)} further down," if lines else ""
        raise VlkdError(
            f"{place}: the quote that opens before {_shown(text, begin)} is closed{where} before {_shown(text, end)}, and no cell ends "
            'there: close it behind the cell, and write a quote inside of it twice ("").'
        )
    return found[1].replace('""', '"'), end


def _shown(text: str, begin: int) -> str:
    """The rest of the line, for a sentence."""
    return short(_BREAK.split(text[begin : begin + 200])[0])


def _refuse_swallowed(pieces: list[str], delimiter: str, columns: int, line: int, path: Path) -> None:
    """A cell of several lines is sound only if none of its later lines could be a row of its own."""
    for number, piece in enumerate(pieces[1:], start=line + 1):
        if columns > 1 and piece.count(delimiter) >= columns - 1:
            raise VlkdError(
                f"'{path}', line {line}: the quote that opens before {short(pieces[0])} takes in line {number}, which looks like a row "
                f"of its own ({short(piece)}): close the quote, or take the line break out of the cell."
            )


def _other_count(row: CsvRow, columns: tuple[str, ...], delimiter: str, path: Path) -> str:
    cells = ", ".join(short(cell) for cell in row.cells[:8]) + (", …" if len(row.cells) > 8 else "")
    names = ", ".join(short(name.strip()).strip("'") for name in columns)
    if len(row.cells) > len(columns):
        do = f'put a text that has a {_NAMES[delimiter]} of its own in quotes ("…").'
    else:
        do = "add what is missing, or remove the line."
    return (
        f"'{path}', line {row.line} has {len(row.cells)} cell{'s' * (len(row.cells) > 1)} ({cells}), but the header has "
        f"{len(columns)} ({names}): {do}"
    )
