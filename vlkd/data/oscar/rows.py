"""Features in the rows of a TSV: the five forms of :mod:`vlkd.data.oscar.features`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vlkd.data.oscar.encoded import (
    DTYPES,
    StoredAs,
    as_rows,
    brief,
    count_of,
    from_base64,
    mistaken_dtype,
    parse_json,
    share_problem,
    size_of,
    whole_number,
)
from vlkd.data.oscar.found import Found
from vlkd.data.oscar.six_numbers import check_geometry, ends_with_geometry
from vlkd.data.oscar.tags import class_of
from vlkd.data.oscar.tsv import KeyedTsv, TsvFile
from vlkd.errors import VlkdError
from vlkd.regions.paired import geometry
from vlkd.regions.soundness import file_box_problem

LXMERT = (
    "img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features",
)  # fmt: skip
BOTTOM_UP = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
_SAME_GEOMETRY = 2e-3  # of numbers that were float16 once


class RowFile:
    """A :class:`~vlkd.data.oscar.found.FeatureFile` that is a TSV.

    ``classes`` names the numbers of LXMERT's ``objects_id``; without them, pictures of that form have no tags.
    """

    def __init__(self, path: Path, stored_as: StoredAs, classes: tuple[str, ...] = ()) -> None:
        self.path = path
        self.stored_as: StoredAs = stored_as
        self.classes = classes
        tsv = TsvFile(path)
        first = [column.decode("latin-1").strip() for column in tsv.row(0)]
        header = first[0] in (LXMERT[0], BOTTOM_UP[0])
        self._header = tuple(first) if header else None
        self._rows = KeyedTsv(tsv, first=int(header))
        self.keys, self.problems = self._rows.keys, self._rows.problems
        self.indexed: bool | None = tsv.indexed
        self.numbered = "objects_id" in (self._names(len(first), first) or ())

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def place(self, key: str) -> str:
        return self._rows.place(key)

    def read(self, key: str) -> Found:
        place = self.place(key)
        columns = self._rows.row(key)
        if len(columns) > 2 and not columns[-1].strip():
            columns.pop()  # a tab at the end of the line
        names = self._names(len(columns), columns)
        if names is not None:
            return self._of_columns(dict(zip(names, columns, strict=True)), place)
        if len(columns) == 3 and whole_number(columns[1]) is not None:
            return Found(self._with_geometry(columns[-1], columns[1], place))
        if len(columns) != 2:
            raise VlkdError(
                f"{place}: {len(columns)} columns, but a key and JSON are expected, or a key, a number of boxes and base64, or the "
                f"{len(LXMERT)} columns of LXMERT, or the {len(BOTTOM_UP)} of bottom-up attention: are lines wrapped?"
            )
        content = parse_json(columns[1], place)
        if isinstance(content, dict) and "objects" in content:
            return self._of_objects(content, place)
        if not isinstance(content, dict) or not {"num_boxes", "features"} <= content.keys():
            raise VlkdError(f"{place}: expected JSON with 'num_boxes' and 'features', or with 'objects'.")
        return Found(self._with_geometry(content["features"], content["num_boxes"], place))

    def _names(self, count: int, columns: Any) -> tuple[str, ...] | None:
        """The names of a row's columns where it is LXMERT's or bottom-up attention's."""
        if self._header is not None:
            return self._header if count == len(self._header) else None
        if count == len(LXMERT):
            return LXMERT
        numbers = count == len(BOTTOM_UP) and all(whole_number(column) is not None for column in columns[1:4])
        return BOTTOM_UP if numbers else None

    def _with_geometry(self, text: Any, boxes: Any, place: str) -> np.ndarray:
        """base64 of rows that end with geometry, float32 [n, D + 6]."""
        count = count_of(boxes, place)
        raw = from_base64(text, place)
        try:
            features = as_rows(raw, count, self.stored_as, place)
            check_geometry(features, place)
        except VlkdError as error:
            for other in DTYPES:
                if other == self.stored_as or not raw or len(raw) % (count * np.dtype(other).itemsize):
                    continue
                again = np.frombuffer(raw, dtype=other).reshape(count, -1)
                if ends_with_geometry(again):
                    width = len(raw) / (count * np.dtype(self.stored_as).itemsize)
                    raise VlkdError(
                        f"{place}: {width:g} numbers a region if they were {self.stored_as}, but they are {again.shape[1]} of "
                        f"{other}: say so with --stored-as {other}."
                    ) from None
            raise error
        return features

    def _without_geometry(self, raw: bytes, count: int, place: str) -> np.ndarray:
        """Rows of the detector's numbers, [n, D]."""
        other = mistaken_dtype(raw, count, self.stored_as)
        if other is not None:
            raise VlkdError(
                f"{place}: features make no sense as {self.stored_as}, but do as {other}: say so with --stored-as {other}."
            )
        return as_rows(raw, count, self.stored_as, place)

    def _of_objects(self, content: dict[str, Any], place: str) -> Found:
        """VinVL's extractor: boxes in pixels, one feature each, no geometry yet."""
        objects = content["objects"]
        if not isinstance(objects, list) or not objects:
            raise VlkdError(f"{place}: 'objects' is {brief(objects)}, but a list of at least one object is expected.")
        size = size_of(content.get("image_w"), content.get("image_h"), place)
        boxes, tags, raws = [], [], []
        for number, item in enumerate(objects):
            at = f"{place}, object {number} (from 0)"
            tags.append(class_of(item, at))
            boxes.append(_rect(item, at))
            if "feature" not in item:
                raise VlkdError(f"{at}: no 'feature', but every object needs 'rect', 'class' and 'feature'.")
            raws.append(from_base64(item["feature"], at))
        sizes = sorted(set(map(len, raws)))
        if len(sizes) > 1:
            raise VlkdError(
                f"{place}: objects with features of {' and '.join(map(str, sizes))} bytes, but all have one width."
            )
        features = self._without_geometry(b"".join(raws), len(objects), place)
        return _placed(features, np.array(boxes, np.float64), size, place, tuple(tags))

    def _of_columns(self, row: dict[str, bytes], place: str) -> Found:
        """LXMERT's and bottom-up attention's columns."""
        missing = [name for name in ("num_boxes", "boxes", "features") if name not in row]
        if missing:
            raise VlkdError(f"{place}: the header has no column '{missing[0]}', but {', '.join(LXMERT)} are expected.")
        width, height = (row.get(f"img_{side}", row.get(f"image_{side}")) for side in "wh")
        size = size_of(width, height, place)
        count = count_of(row["num_boxes"], place)
        boxes = _array(row["boxes"], count, 4, {2: "float16", 4: "float32", 8: "float64"}, f"{place}, boxes")
        features = self._without_geometry(from_base64(row["features"], f"{place}, features"), count, place)
        tags = None
        if "objects_id" in row:
            tags = self._named(row, count, place)
        return _placed(features, boxes, size, place, tags)

    def _named(self, row: dict[str, bytes], count: int, place: str) -> tuple[str, ...] | None:
        """The names of a picture's class numbers."""
        if "objects_conf" in row:
            scores = _array(row["objects_conf"], count, 1, {4: "float32", 8: "float64"}, f"{place}, objects_conf")
            problem = next(filter(None, (share_problem(float(score)) for score in scores.ravel())), None)
            if problem:
                raise VlkdError(f"{place}: {problem}.")
        numbers = _array(row["objects_id"], count, 1, {4: "int32", 8: "int64"}, f"{place}, objects_id").ravel()
        if not self.classes:
            return None
        wrong = numbers[(numbers < 0) | (numbers >= len(self.classes))]
        if len(wrong):
            raise VlkdError(
                f"{place}: an object of class number {wrong[0]}, but the file of classes has {len(self.classes)} names, from 0: "
                "give the one of this detector."
            )
        return tuple(self.classes[number] for number in numbers)


def _placed(
    features: np.ndarray, boxes: np.ndarray, size: tuple[int, int], place: str, tags: tuple[str, ...] | None
) -> Found:
    """Features [n, D] with boxes [n, 4] in pixels; the geometry is appended unless it stands there."""
    problem = file_box_problem(boxes, *size)
    if problem:
        raise VlkdError(f"{place}: {problem}.")
    corners = boxes.astype(np.float32)
    numbers = geometry(corners, *size)
    if not ends_with_geometry(features):
        return Found(np.concatenate([features, numbers], axis=1), size, corners, tags)
    differing = np.flatnonzero((np.abs(features[:, -numbers.shape[1] :] - numbers) > _SAME_GEOMETRY).any(axis=1))
    if len(differing):
        raise VlkdError(
            f"{place}: region {differing[0]} (from 0) ends with the geometry of another box than its own, or of a picture of "
            "another size."
        )
    return Found(features, size, corners, tags)


def _rect(item: dict[str, Any], place: str) -> list[float]:
    rect = item.get("rect")
    if not isinstance(rect, list) or len(rect) != 4:
        raise VlkdError(f"{place}: 'rect' is {brief(rect)}, but four numbers, x1, y1, x2, y2, are expected.")
    wrong = [x for x in rect if isinstance(x, bool) or not isinstance(x, (int, float))]
    if wrong:
        raise VlkdError(f"{place}: 'rect' holds {brief(wrong[0])}, but four numbers, x1, y1, x2, y2, are expected.")
    return [float(x) for x in rect]


def _array(text: bytes, count: int, width: int, dtypes: dict[int, str], place: str) -> np.ndarray:
    """base64 of [count, width] numbers, whose dtype their number of bytes tells."""
    raw = from_base64(text, place)
    size, rest = divmod(len(raw), count * width)
    if rest or size not in dtypes:
        raise VlkdError(
            f"{place}: {len(raw)} bytes, but {' or '.join(dtypes.values())} of {count} x {width} is expected: was the line cut off, or "
            "is num_boxes another picture's?"
        )
    return np.frombuffer(raw, dtype=dtypes[size]).reshape(count, width)
