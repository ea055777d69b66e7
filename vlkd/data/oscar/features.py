"""Region features in the files of Oscar and VinVL: which of their forms a file has, and one picture's features out of it.

n regions, D numbers of the detector, followed by the six of the box's geometry: x1/W, y1/H, x2/W, y2/H, w/W, h/H.

=============================== ======================================================================================
``*.feature.tsv``               key ⇥ JSON ``{"num_boxes": n, "features": base64}``
``features.tsv``, pre-training  key ⇥ n ⇥ base64
VinVL's extractor               key ⇥ JSON ``{"objects": [{"rect", "class", "conf", "feature": base64}], "image_w", "image_h"}``,
                                D numbers each, to which the geometry is appended here
``*.pt``                        dict of key -> [n, D + 6]
=============================== ======================================================================================

base64 holds float32; ``stored_as`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import orjson
import pybase64

from vlkd.data.oscar.tsv import TsvFile
from vlkd.errors import VlkdError
from vlkd.regions.paired import GEOMETRY_DIM, geometry

StoredAs = Literal["float16", "float32", "float64"]
_SUM_TOLERANCE = 2e-3  # of x1 + w = x2, for numbers that were float16 once


@dataclass(frozen=True)
class Found:
    """One picture's regions as a file has them.

    Attributes:
        features: float32 [n, D + 6].
        width, height: in pixels; 1 and 1 where the file does not say, and boxes are then parts of the picture.
        tags: the objects' names, where the file has them.
    """

    features: np.ndarray
    width: int = 1
    height: int = 1
    tags: tuple[str, ...] | None = None


class FeatureFile(Protocol):
    """A file of features, opened by :func:`open_features`."""

    path: Path
    keys: tuple[str, ...]

    def __contains__(self, key: str) -> bool: ...

    def read(self, key: str) -> Found:
        """Raises :class:`VlkdError` that names file, line and key."""
        ...

    def place(self, key: str) -> str:
        """File, line (counted from 1) and key, for a sentence."""
        ...


def open_features(path: Path, stored_as: StoredAs = "float32") -> FeatureFile:
    """Open a file of features, of whichever form.

    Raises:
        VlkdError: there is no such file, it has no known form, or a key comes twice.
    """
    return _Tensors(path) if path.suffix == ".pt" else _Rows(path, stored_as)


class _Rows:
    """The three forms of TSV."""

    def __init__(self, path: Path, stored_as: StoredAs) -> None:
        self.path = path
        self.stored_as: StoredAs = stored_as
        self.tsv = TsvFile(path)
        self.keys = tuple(self.tsv.first_column(row) for row in range(len(self.tsv)))
        self._row_of: dict[str, int] = {}
        for row, key in enumerate(self.keys):
            if key in self._row_of:
                raise VlkdError(
                    f"'{path}', line {row + 1}: key '{key}' stands in line {self._row_of[key] + 1} already, but may come once."
                )
            self._row_of[key] = row

    def __contains__(self, key: str) -> bool:
        return key in self._row_of

    def place(self, key: str) -> str:
        return f"'{self.path}', line {self._row_of[key] + 1}, key '{key}'"

    def read(self, key: str) -> Found:
        place = self.place(key)
        columns = self.tsv.row(self._row_of[key])
        if len(columns) > 2 and columns[1].strip().isdigit():
            return Found(_decoded(columns[-1], int(columns[1]), self.stored_as, place))
        try:
            content = orjson.loads(columns[1])
        except (ValueError, IndexError):
            raise VlkdError(f"{place}: expected JSON, or a number of boxes and base64, behind the key.") from None
        if isinstance(content, dict) and "objects" in content:
            return _of_objects(content, self.stored_as, place)
        if not isinstance(content, dict) or not {"num_boxes", "features"} <= content.keys():
            raise VlkdError(f"{place}: expected JSON with 'num_boxes' and 'features', or with 'objects'.")
        return Found(_decoded(content["features"], content["num_boxes"], self.stored_as, place))


class _Tensors:
    """A dict of tensors."""

    def __init__(self, path: Path) -> None:
        import torch

        self.path = path
        if not path.is_file():
            raise VlkdError(f"There is no file '{path}': check its name.")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            reason = str(error).split("\n", 1)[0]
            raise VlkdError(f"'{path}' holds no tensors that can be loaded without running code ({reason}).") from None
        if not isinstance(content, Mapping) or not content:
            raise VlkdError(f"'{path}' holds {type(content).__name__}, but a dict of key -> [n, D + 6] is expected.")
        self._of = {str(key): value for key, value in content.items()}
        self.keys = tuple(self._of)

    def __contains__(self, key: str) -> bool:
        return key in self._of

    def place(self, key: str) -> str:
        return f"'{self.path}', key '{key}'"

    def read(self, key: str) -> Found:
        features = self._of[key].float().numpy()
        _check_geometry(features, self.place(key))
        return Found(features)


def _of_objects(content: dict[str, Any], stored_as: StoredAs, place: str) -> Found:
    """VinVL's extractor: boxes in pixels, one feature each, no geometry yet."""
    objects = content["objects"]
    width, height = content.get("image_w"), content.get("image_h")
    if not objects or not width or not height:
        raise VlkdError(
            f"{place}: expected objects and the picture's 'image_w' and 'image_h', got {len(objects)} objects and "
            f"{width} x {height}: without its size the boxes' geometry cannot be computed."
        )
    try:
        boxes = np.array([item["rect"] for item in objects], dtype=np.float32)
        tags = tuple(str(item["class"]) for item in objects)
        encoded = [item["feature"] for item in objects]
    except (KeyError, ValueError, TypeError):
        raise VlkdError(f"{place}: every object needs 'rect' (x1, y1, x2, y2), 'class' and 'feature'.") from None
    if boxes.shape != (len(objects), 4):
        raise VlkdError(f"{place}: every 'rect' has four numbers, x1, y1, x2, y2.")
    places = [f"{place}, object {number}" for number in range(len(objects))]
    rows = [_numbers(_bytes(text, 1, at), 1, stored_as, at) for text, at in zip(encoded, places, strict=True)]
    if len({row.shape[1] for row in rows}) > 1:
        raise VlkdError(f"{place}: objects with features of {sorted({row.shape[1] for row in rows})} numbers.")
    features = np.concatenate([np.concatenate(rows), geometry(boxes, width, height)], axis=1)
    return Found(features, int(width), int(height), tags)


def _decoded(text: str | bytes, count: int, stored_as: StoredAs, place: str) -> np.ndarray:
    """base64 of rows that end with geometry, float32 [count, D + 6]."""
    raw = _bytes(text, count, place)
    try:
        features = _numbers(raw, count, stored_as, place)
        _check_geometry(features, place)
    except VlkdError as error:
        for other in {"float16", "float32", "float64"} - {stored_as}:
            if len(raw) % (count * np.dtype(other).itemsize) == 0:
                again = _numbers(raw, count, other, place)
                if ends_with_geometry(again):
                    width = len(raw) / (count * np.dtype(stored_as).itemsize)
                    raise VlkdError(
                        f"{place}: {width:g} numbers a region if they were {stored_as}, but they are {again.shape[1]} of {other}: "
                        f"say so with --stored-as {other}."
                    ) from None
        raise error
    return features


def _bytes(text: str | bytes, count: int, place: str) -> bytearray:
    if not isinstance(count, int) or count < 1:
        raise VlkdError(f"{place}: {count} boxes, but at least 1 is expected.")
    try:
        return pybase64.b64decode_as_bytearray(text, validate=True)
    except (ValueError, TypeError) as error:
        raise VlkdError(f"{place}: broken base64 ({error}): it was cut off or damaged; copy the file again.") from None


def _numbers(raw: bytearray, count: int, stored_as: str, place: str) -> np.ndarray:
    """``count`` rows as float32 [count, D]."""
    if len(raw) % (count * np.dtype(stored_as).itemsize):
        raise VlkdError(
            f"{place}: {len(raw)} bytes of features are no {stored_as} rows of equal length for {count} boxes: the line was "
            "cut off, or num_boxes is another picture's."
        )
    with np.errstate(all="ignore"):
        return np.frombuffer(raw, dtype=stored_as).reshape(count, -1).astype(np.float32)


def _check_geometry(features: np.ndarray, place: str) -> None:
    """Whether rows end with the geometry of a box; if not, what they end with instead."""
    if ends_with_geometry(features):
        return
    dim = features.shape[1] if features.ndim == 2 else 0
    if dim > GEOMETRY_DIM and ends_with_geometry(features[:, [*range(dim - 2), dim - 1, dim - 2]]):
        raise VlkdError(
            f"{place}: rows end with h/H, w/W, but w/W, h/H is expected behind x1/W, y1/H, x2/W, y2/H: swap the two."
        )
    raise VlkdError(
        f"{place}: {dim} numbers a region that do not end with x1/W, y1/H, x2/W, y2/H, w/W, h/H: append these six to the "
        "detector's numbers (Oscar and VinVL: 2048 + 6 = 2054)."
    )


def ends_with_geometry(features: np.ndarray) -> bool:
    """Whether the last six columns of [n, D + 6] are numbers in [0, 1] with x1 + w = x2 and y1 + h = y2, w and h above 0."""
    if features.ndim != 2 or features.shape[1] <= GEOMETRY_DIM:
        return False
    numbers = features[:, -GEOMETRY_DIM:]
    with np.errstate(all="ignore"):
        inside = (numbers >= -_SUM_TOLERANCE) & (numbers <= 1 + _SUM_TOLERANCE)
        sums = np.abs(numbers[:, :2] + numbers[:, 4:] - numbers[:, 2:4]) <= _SUM_TOLERANCE
    return bool(inside.all() and sums.all() and numbers[:, 4:].any())
