"""Text files as people save them: decoded, or refused with the line that cannot be read."""

from __future__ import annotations

import codecs
import reprlib
from pathlib import Path

from vlkd.data.containers import no_text
from vlkd.errors import VlkdError

LONGEST_TEXT = 10_000  # characters; a longer one is a quote that was not closed, or another column
LONGEST_KEY = 1_000
_SHOWN = 60

# UTF-32's mark begins with UTF-16's, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_text(path: Path | str) -> str:
    """The content of a file in UTF-8, or in what its byte order mark says; the mark is left out.

    Raises:
        VlkdError: there is no such file, or it is no such text; the first line that cannot be read is named.
    """
    path = Path(path)
    if path.is_dir():
        raise VlkdError(f"'{path}' is a folder, but a file is expected.")
    if not path.is_file():
        raise VlkdError(f"There is no file '{path}': check its name.")
    raw = path.read_bytes()
    if what := no_text(raw):
        raise VlkdError(f"'{path}' {what}.")
    mark, encoding = next((pair for pair in _MARKS if raw.startswith(pair[0])), (b"", "utf-8"))
    raw = raw[len(mark) :]
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].decode(encoding, errors="replace").count("\n") + 1
        raise VlkdError(
            f"'{path}', line {line}: byte 0x{raw[error.start]:02x} is no {encoding.upper()}; Excel and older programs write "
            "Latin-1 or Windows' own encoding: save the file as UTF-8."
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise VlkdError(
            f"'{path}', line {line} has a NUL: it is no text, or UTF-16 without its byte order mark; save the file as UTF-8."
        )
    return text


def first_line(path: Path) -> str:
    """The beginning of a file up to its first line break, as well as it can be read; at most 64 KiB of it."""
    with path.open("rb") as file:
        raw = file.read(1 << 16)
    mark, encoding = next((pair for pair in _MARKS if raw.startswith(pair[0])), (b"", "utf-8"))
    return raw[len(mark) :].decode(encoding, errors="replace").splitlines()[0] if raw[len(mark) :] else ""


def checked_text(text: str, what: str, place: str) -> str:
    """``text`` as it is, if it can be learned from.

    Raises:
        VlkdError: it is empty or of blanks alone, longer than any caption or question, or no Unicode text; ``what`` and ``place``
            say in the error what it is and where it stands.
    """
    if not any(letter.isprintable() and not letter.isspace() for letter in text):
        raise VlkdError(f"The {what} in {place} is empty: fill it in, or remove it there.")
    if len(text) > LONGEST_TEXT:
        raise VlkdError(
            f"The {what} in {place} has {len(text):,} characters ({short(text)}), but at most {LONGEST_TEXT:,} are expected: is "
            "that another column, or a quote that is never closed?"
        )
    return _encodable(text, what, place)


def checked_key(key: str, place: str) -> str:
    """A picture's key without spaces around it.

    Raises:
        VlkdError: as :func:`checked_text`.
    """
    key = key.strip()
    if not key:
        raise VlkdError(f"The picture in {place} has no name: fill it in, or remove it there.")
    if len(key) > LONGEST_KEY:
        raise VlkdError(
            f"The picture in {place} has a name of {len(key):,} characters ({short(key)}), but at most {LONGEST_KEY:,} are expected."
        )
    return _encodable(key, "picture's name", place)


def short(value: object) -> str:
    """``repr``, cut where it is long."""
    text = repr(value[: 2 * _SHOWN]) if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _encodable(text: str, what: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise VlkdError(
            f"The {what} in {place} has {text[error.start]!r}, half of a character: write the whole one."
        ) from None
    return text
