"""Numbers that stand in text: base64 of arrays, counts and sizes, JSON; each with a sentence for what it is instead.

n regions, D numbers of a feature.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import orjson
import pybase64

from vlkd.errors import VlkdError
from vlkd.regions.soundness import number_problem, size_problem

StoredAs = Literal["float16", "float32", "float64"]
DTYPES: tuple[StoredAs, ...] = ("float16", "float32", "float64")
_SHOWN = 40  # characters of a value in a sentence
_USUAL = (1e-10, 1e6)  # between which a detector's numbers lie; bytes of another dtype do not
_ODD = 0.01  # of the numbers may lie elsewhere


def parse_json(text: bytes, place: str) -> Any:
    """What a column of JSON holds; NaN, which is no JSON but which Python writes, becomes a NaN.

    Raises:
        VlkdError: it is no JSON, or an entry stands in it twice, of which JSON would keep the last in silence.
    """
    try:
        content = orjson.loads(text)
    except ValueError:
        content = _python_json(text, place)
    quotes = np.count_nonzero(np.frombuffer(text, np.uint8) == ord('"'))
    if quotes != 2 * _strings(content):  # an entry too many, or a quote in a text
        _python_json(text, place, _each_once(place))
    return content


def _python_json(text: bytes, place: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    try:
        return json.loads(text.decode(), object_pairs_hook=pairs)
    except UnicodeDecodeError as error:
        raise VlkdError(f"{place}: the line is not in UTF-8 ({error.reason}): save the file in UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise VlkdError(f"{place}: expected JSON behind the key, but {error}: was the line cut off?") from None


def _strings(content: Any) -> int:
    """How many texts there are in JSON, names of entries among them."""
    if isinstance(content, dict):
        return len(content) + sum(map(_strings, content.values()))
    return sum(map(_strings, content)) if isinstance(content, list) else int(isinstance(content, str))


def _each_once(place: str) -> Callable[[list[tuple[str, Any]]], Any]:
    def check(pairs: list[tuple[str, Any]]) -> Any:
        names = [name for name, _ in pairs]
        twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
        if twice is not None:
            raise VlkdError(f"{place}: {brief(twice)} stands in one object twice: are two lines joined?")
        return dict(pairs)

    return check


def count_of(value: object, place: str) -> int:
    """A number of boxes, which may stand as 3, 3.0 or "3".

    Raises:
        VlkdError: it is no whole number above 0.
    """
    count = whole_number(value)
    if count is None or count < 1:
        raise VlkdError(f"{place}: {brief(value)} boxes, but a whole number of at least 1 is expected.")
    return count


def whole_number(value: object) -> int | None:
    """3, 3.0, "3" and "3.0" as 3; None for all else."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if isinstance(value, str):
        return int(value.split(".")[0]) if re.fullmatch(r"[0-9]{1,15}(\.0*)?", value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if abs(value) < 1e15 and value == int(value) else None


def size_of(width: object, height: object, place: str) -> tuple[int, int]:
    """A picture's size, which may stand as numbers or as text.

    Raises:
        VlkdError: it is no two whole numbers of pixels.
    """
    found = whole_number(width), whole_number(height)
    if found[0] is None or found[1] is None or size_problem(*found):
        given = " and ".join(
            brief(side.decode("latin-1") if isinstance(side, bytes) else side) for side in (width, height)
        )
        raise VlkdError(
            f"{place}: the picture's width and height are {given}, but whole numbers of pixels are expected: without its size "
            "the boxes' geometry cannot be computed."
        )
    return found[0], found[1]


def share_problem(value: object) -> str | None:
    """Whether a score is a number from 0 to 1."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and -1e-3 <= value <= 1 + 1e-3:
        return None
    return f"the score {brief(value)}, but a number from 0 to 1 is expected"


def from_base64(text: object, place: str) -> bytes:
    """The bytes of base64, which may be wrapped or of the kind for addresses (- and _).

    Raises:
        VlkdError: it is something else, or was cut off.
    """
    if not isinstance(text, (str, bytes)):
        raise VlkdError(f"{place}: features must be base64, but are {brief(text)}.")
    try:
        return pybase64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        pass
    raw = b"".join((text.encode() if isinstance(text, str) else text).split())
    if raw[:2] in (b"b'", b'b"'):
        raise VlkdError(f"{place}: base64 with Python's b'…' around it: write it with .decode().")
    for_addresses = (b"-" in raw or b"_" in raw) and not (b"+" in raw or b"/" in raw)
    try:
        return pybase64.b64decode(raw, altchars=b"-_" if for_addresses else None, validate=True)
    except (ValueError, TypeError) as error:
        raise VlkdError(f"{place}: broken base64 ({error}): it was cut off or damaged; copy the file again.") from None


def as_rows(raw: bytes, count: int, stored_as: StoredAs, place: str) -> np.ndarray:
    """``count`` rows of finite numbers as float32 [count, D].

    Raises:
        VlkdError: they are no whole rows, or a number is not finite, or beyond float32.
    """
    if not raw or len(raw) % (count * np.dtype(stored_as).itemsize):
        raise VlkdError(
            f"{place}: {len(raw)} bytes of features are no {stored_as} rows of equal length for {count} boxes: the line was "
            "cut off, or num_boxes is another picture's."
        )
    return to_float32(np.frombuffer(raw, dtype=stored_as).reshape(count, -1), place)


def to_float32(values: np.ndarray, place: str) -> np.ndarray:
    """[n, D] of any floating type as float32, if that can hold them.

    Raises:
        VlkdError: a number is not finite, or beyond float32.
    """
    problem = number_problem(values)
    if problem:
        raise VlkdError(f"{place}: {problem}.")
    if values.dtype == np.float32:
        return values
    with np.errstate(all="ignore"):
        rows = values.astype(np.float32)
    if not np.isfinite(rows).all():
        region, number = np.argwhere(~np.isfinite(rows))[0]
        raise VlkdError(
            f"{place}: number {number} of region {region} (both from 0) is {values[region, number]:.6g}, beyond float32: "
            "standardise the features."
        )
    return rows


def mistaken_dtype(raw: bytes, count: int, stored_as: StoredAs) -> StoredAs | None:
    """What the bytes of features without geometry are made of, where ``stored_as`` makes no sense of them and another does."""
    if _usual(raw, count, stored_as):
        return None
    return next((other for other in DTYPES if other != stored_as and _usual(raw, count, other)), None)


def _usual(raw: bytes, count: int, dtype: StoredAs) -> bool:
    """Whether nearly all numbers have a size that features have."""
    if len(raw) % (count * np.dtype(dtype).itemsize):
        return False
    with np.errstate(all="ignore"):  # bytes of another dtype
        values = np.abs(np.frombuffer(raw, dtype=dtype))
        odd = np.count_nonzero(~(values < _USUAL[1])) + np.count_nonzero((values <= _USUAL[0]) & (values > 0))
    return bool(odd <= _ODD * values.size)


def brief(value: object) -> str:
    """A value in a sentence, cut where it is long."""
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with {len(value)} entries"
    text = "true" if value is True else "false" if value is False else "null" if value is None else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
