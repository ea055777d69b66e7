"""Lists of objects in JSON files, read with errors that name the file, the row and the key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vlkd.data.text_files import checked_key, checked_text, read_text, short
from vlkd.errors import VlkdError

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


class Row(NamedTuple):
    """One object of a list, and where it stands."""

    values: dict[str, Any]
    listing: str  # the list, as an error names it
    index: int

    @property
    def place(self) -> str:
        return f"row {self.index} (from 0) of {self.listing}"

    def value(self, key: str, *kinds: type[T]) -> T:
        """``row[key]``, which must be one of ``kinds`` exactly (True is no int).

        Raises:
            VlkdError: the key is missing, or its value is something else.
        """
        if key not in self.values:
            raise VlkdError(f"Expected the key '{key}' in {self.place}, but it has {_names(self.values)}.")
        value = self.values[key]
        if type(value) not in kinds:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise VlkdError(f"Expected '{key}' to be {wanted} in {self.place}, but got {_short(value)}.")
        return value

    def text(self, key: str) -> str:
        """``row[key]``, a text to learn from.

        Raises:
            VlkdError: as :meth:`value`, or it is empty, very long, or no Unicode text.
        """
        return checked_text(self.value(key, str), f"'{key}'", self.place)

    def picture(self, key: str) -> str:
        """``row[key]``, a picture's number or name, as text.

        Raises:
            VlkdError: as :meth:`value`, or it is empty or very long.
        """
        return checked_key(str(self.value(key, int, str)), self.place)

    def add_to(self, found: dict[K, V], key: K, value: V, name: str) -> None:
        """``found[key] = value``, once.

        Raises:
            VlkdError: an earlier row had the same ``key``, which the file calls ``name``.
        """
        if key in found:
            raise VlkdError(f"The {name} {key!r} comes a second time in {self.place}: keep one row for each {name}.")
        found[key] = value


def read_json(path: Path | str, what: str) -> Any:
    """The content of a JSON file.

    Raises:
        VlkdError: it is not there, or holds something else; ``what`` says in the error what it should be.
    """
    path = Path(path)
    if not path.exists():
        raise VlkdError(f"There is no {what} file '{path}': check the path.")
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=_each_key_once)
    except _Twice as error:
        raise VlkdError(f"'{path}' has an object with the key {error} twice: keep one of the two.") from None
    except (ValueError, RecursionError) as error:
        raise VlkdError(f"'{path}' is no {what} file: expected JSON, but {error}.") from None


class _Twice(Exception):
    """A key that an object has more than once; JSON readers keep the last without a word."""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(short(next(name for name in names if names.count(name) > 1)))
    return found


def rows(content: Any, listing: str) -> Iterator[Row]:
    """The objects of a list that JSON held.

    Raises:
        VlkdError: ``content`` is no list, or one of its rows is no object.
    """
    if not isinstance(content, list):
        raise VlkdError(f"Expected {listing} to be a JSON list of objects, but got {_short(content)}.")
    for index, values in enumerate(content):
        if not isinstance(values, dict):
            raise VlkdError(f"Expected an object in row {index} (from 0) of {listing}, but got {_short(values)}.")
        yield Row(values, listing, index)


def rows_under(content: Any, key: str, path: Path | str) -> Iterator[Row]:
    """The objects of the list ``content[key]``.

    Raises:
        VlkdError: ``content`` is no object with such a list.
    """
    if not isinstance(content, dict) or key not in content:
        has = f"an object with {_names(content)}" if isinstance(content, dict) else _short(content)
        raise VlkdError(f"Expected '{path}' to hold a JSON object with a list '{key}', but got {has}.")
    return rows(content[key], f"'{key}' in '{path}'")


def first_few(ids: set[Any], of: int) -> str:
    """``"7, 12, 15 and 9 more of 214"``: which ids of how many, for errors."""
    shown = sorted(ids, key=str)[:3]
    more = f" and {len(ids) - len(shown)} more" if len(ids) > len(shown) else ""
    return f"{', '.join(map(repr, shown))}{more} of {of}"


def _names(values: dict[str, Any]) -> str:
    """The keys of an object, few of many."""
    return f"{sorted(values)}" if len(values) <= 12 else f"{short(sorted(values)[:6])} and more"


def _short(value: Any) -> str:
    return f"{type(value).__name__} {short(value)}"
