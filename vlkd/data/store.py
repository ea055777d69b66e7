"""The feature store: region records in one memory-mapped Arrow file, read by picture key, verified on the way out.

Legend: n regions of the student's detector, m of the teacher's own, Ds and Dt the two feature widths without the six
geometry numbers. The geometry is stored in float32 even where features are float16, so that it can be verified exactly.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np

from vlkd.errors import VlkdError
from vlkd.regions.paired import GEOMETRY_DIM, PairedRegions, RegionRecord, Regions
from vlkd.runs import write_atomically

if TYPE_CHECKING:
    import pyarrow

View = Literal["paired", "own"]
FeatureType = Literal["float32", "float16"]

_TABLE = "regions.arrow"
_METADATA = "regions.json"
_FORMAT = "vlkd regions 1"
_FEATURES = ("student_features", "teacher_features", "own_features")
_BOXES = ("student_boxes", "own_boxes")
_TAGS: dict[View, str] = {"paired": "tags", "own": "own_tags"}
_RECORDS_A_WRITE = 256


class RegionSource(Protocol):
    """Where regions come from: a :class:`RegionStore`, or records in memory (:class:`RegionMemory`)."""

    student_dim: int
    teacher_dim: int
    max_regions: int

    def read(self, keys: Sequence[str], view: View) -> Sequence[Regions | PairedRegions]: ...

    def tags(self, keys: Sequence[str], view: View) -> list[tuple[str, ...]]: ...


class RegionStore:
    """A store on disk, opened with :meth:`open`, written by :func:`write_store`.

    Attributes:
        keys: the pictures, in the order in which they were written.
        student_dim, teacher_dim: feature widths, geometry included (Ds + 6, Dt + 6).
        dtype: the features' type on disk; what is read is float32.
        max_regions: the most regions that any picture has, of either detector.
        fingerprint: what :func:`write_store` was given.
    """

    def __init__(self, folder: Path, metadata: dict[str, Any]) -> None:
        from datasets import Dataset

        self.folder = folder
        self.student_dim: int = metadata["student_dim"]
        self.teacher_dim: int = metadata["teacher_dim"]
        self.dtype: FeatureType = metadata["dtype"]
        self.max_regions: int = metadata["max_regions"]
        self.fingerprint: str = metadata["fingerprint"]
        self._rows = Dataset.from_file(str(folder / _TABLE)).with_format("arrow")
        self.keys: tuple[str, ...] = tuple(self._column("key").to_pylist())
        self._row_of = {key: row for row, key in enumerate(self.keys)}

    @classmethod
    def open(cls, folder: Path | str) -> RegionStore:
        """Open a store without reading its features.

        Raises:
            VlkdError: ``folder`` holds no store, a damaged one, or one of another format.
        """
        folder = Path(folder)
        metadata = _read_metadata(folder)
        table = folder / _TABLE
        size = table.stat().st_size if table.is_file() else 0
        if size != metadata["bytes"]:
            raise VlkdError(
                f"'{table}' has {size} bytes, but {metadata['bytes']} were written: it is damaged, "
                f"so delete '{folder}' and extract the regions again."
            )
        store = cls(folder, metadata)
        if len(store) != metadata["count"]:
            raise VlkdError(
                f"'{folder}' holds {len(store)} pictures, but its {_METADATA} says {metadata['count']}: "
                "delete it and extract the regions again."
            )
        return store

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, keys: Sequence[str], view: View) -> Sequence[Regions | PairedRegions]:
        """The regions of ``keys``, in that order, in one access.

        ``paired`` gives the student's boxes with both detectors' features (:class:`PairedRegions`), ``own`` the
        teacher's own boxes (:class:`Regions`). Each is verified: count and dimension, and its boxes against the
        geometry that each side's features carry.

        Raises:
            VlkdError: a key that is not in the store, or what does not match, with its key and both values.
        """
        table = self._take(keys)
        widths, heights = table["width"].to_pylist(), table["height"].to_pylist()
        tags = [tuple(words) for words in table[_TAGS[view]].to_pylist()]
        if view == "own":
            boxes = _split(*_rows(table, "own_boxes", 4))
            features = self._features(table, "own_features", self.teacher_dim)
            return [Regions(*row) for row in zip(keys, widths, heights, boxes, features, tags, strict=True)]
        boxes = _split(*_rows(table, "student_boxes", 4))
        of_student = self._features(table, "student_features", self.student_dim)
        of_teacher = self._features(table, "teacher_features", self.teacher_dim)
        columns = (keys, widths, heights, boxes, of_student, of_teacher, tags)
        return [PairedRegions(*row) for row in zip(*columns, strict=True)]

    def tags(self, keys: Sequence[str], view: View) -> list[tuple[str, ...]]:
        """The object words of ``keys``, without touching their features."""
        words = self._column(_TAGS[view])
        return [tuple(words[row].as_py()) for row in self._rows_of(keys)]

    def _rows_of(self, keys: Sequence[str]) -> list[int]:
        try:
            return [self._row_of[key] for key in keys]
        except KeyError as error:
            raise VlkdError(
                f"The feature store '{self.folder}' has no picture {error.args[0]!r} among its {len(self)} "
                "pictures: extract its regions first."
            ) from error

    def _take(self, keys: Sequence[str]) -> pyarrow.Table:
        return cast("pyarrow.Table", self._rows[self._rows_of(keys)])

    def _column(self, name: str) -> pyarrow.ChunkedArray:
        return self._rows.data.table[name]

    def _features(self, table: pyarrow.Table, name: str, dim: int) -> list[np.ndarray]:
        """Features and their geometry side by side: one float32 [n, dim] a picture."""
        values, ends = _rows(table, name, dim - GEOMETRY_DIM)
        numbers, geometry_ends = _rows(table, _geometry_of(name), GEOMETRY_DIM)
        odd = np.flatnonzero(ends != geometry_ends)
        if len(odd):
            row = int(odd[0])
            raise VlkdError(
                f"Picture '{table['key'][row].as_py()}': {name} end at row {ends[row]} of what was read, but their "
                f"geometry at row {geometry_ends[row]}: '{self.folder}' is damaged, so extract the regions again."
            )
        features = np.empty((len(values), dim), dtype=np.float32)
        features[:, :-GEOMETRY_DIM] = values
        features[:, -GEOMETRY_DIM:] = numbers
        return _split(features, ends)


class RegionMemory:
    """Records that were never written, such as those of a single photograph, read like a store."""

    def __init__(self, records: Iterable[RegionRecord]) -> None:
        self._records = {record.key: record for record in records}
        if not self._records:
            raise VlkdError("No picture's regions were given, but at least 1 is expected.")
        first = next(iter(self._records.values()))
        self.keys: tuple[str, ...] = tuple(self._records)
        self.student_dim: int = first.student_features.shape[1]
        self.teacher_dim: int = first.teacher_features.shape[1]
        self.max_regions = max(max(len(r.student_boxes), len(r.own_boxes)) for r in self._records.values())

    def read(self, keys: Sequence[str], view: View) -> Sequence[Regions | PairedRegions]:
        """As :meth:`RegionStore.read`."""
        records = [self._records[key] for key in keys]
        return [record.paired() if view == "paired" else record.own() for record in records]

    def tags(self, keys: Sequence[str], view: View) -> list[tuple[str, ...]]:
        """As :meth:`RegionStore.tags`."""
        records = [self._records[key] for key in keys]
        return [record.tags if view == "paired" else record.own_tags for record in records]


def write_store(
    folder: Path | str,
    records: Iterable[RegionRecord],
    fingerprint: str = "",
    *,
    dtype: FeatureType = "float32",
) -> RegionStore:
    """Write ``records`` as a store and open it. It appears under ``folder`` whole or not at all.

    Args:
        folder: must not exist yet.
        records: taken one after the other; each is verified before it is written.
        fingerprint: names the data, for run folders to compare.
        dtype: of the features on disk; float16 halves the file.

    Raises:
        VlkdError: ``folder`` exists, there is no record, two have the same key or different widths, or one does not
            verify (its key and both values are named).
    """
    folder = Path(folder)
    if folder.exists():
        raise VlkdError(f"'{folder}' exists already: choose another folder for the regions, or delete it first.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        metadata = _write_table(unfinished / _TABLE, iter(records), dtype)
        metadata |= {"format": _FORMAT, "dtype": dtype, "fingerprint": fingerprint}
        write_atomically(unfinished / _METADATA, json.dumps(metadata, indent=2) + "\n")
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return RegionStore.open(folder)


def _write_table(path: Path, records: Iterator[RegionRecord], dtype: FeatureType) -> dict[str, Any]:
    import pyarrow
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    numbers = {name: List(Value(dtype)) for name in _FEATURES}
    numbers |= {name: List(Value("float32")) for name in (*_BOXES, *map(_geometry_of, _FEATURES))}
    words = {name: List(Value("string")) for name in _TAGS.values()}
    schema = Features({"key": Value("string"), "width": Value("int32"), "height": Value("int32"), **numbers, **words})
    seen: dict[str, tuple[int, int]] = {}
    max_regions = 0
    with ArrowWriter(path=str(path), features=schema) as writer:
        while batch := list(islice(records, _RECORDS_A_WRITE)):
            for record in batch:
                _verify(record, seen)
                max_regions = max(max_regions, len(record.student_boxes), len(record.own_boxes))
            writer.write_table(pyarrow.table(_columns(batch, dtype), schema=schema.arrow_schema))
        if not seen:
            raise VlkdError("No picture's regions were given to write, but a feature store needs at least 1.")
        writer.finalize()
    student_dim, teacher_dim = next(iter(seen.values()))
    return {
        "count": len(seen),
        "student_dim": student_dim,
        "teacher_dim": teacher_dim,
        "max_regions": max_regions,
        "bytes": path.stat().st_size,
    }


def _verify(record: RegionRecord, seen: dict[str, tuple[int, int]]) -> None:
    """Add ``record`` to ``seen`` (key -> feature widths) if it is sound, new, and as wide as the others."""
    for verified_by_its_type in (record.paired, record.own):
        verified_by_its_type()
    if record.key in seen:
        raise VlkdError(f"Picture '{record.key}' comes twice, but a feature store holds each picture once.")
    widths = record.student_features.shape[1], record.teacher_features.shape[1]
    expected = next(iter(seen.values()), widths)
    if widths != expected or record.own_features.shape[1] != expected[1]:
        raise VlkdError(
            f"Picture '{record.key}': features of width {widths[0]} (student), {widths[1]} (teacher) and "
            f"{record.own_features.shape[1]} (teacher's own regions) beside earlier pictures' {expected[0]} and "
            f"{expected[1]}: one store holds the features of one pair of detectors."
        )
    for name in _FEATURES:
        if not np.isfinite(getattr(record, name)).all():
            raise VlkdError(f"Picture '{record.key}': {name} has NaN or infinite numbers: extract it again.")
    seen[record.key] = widths


def _columns(batch: list[RegionRecord], dtype: FeatureType) -> dict[str, Any]:
    columns: dict[str, Any] = {name: [getattr(record, name) for record in batch] for name in ("key", "width", "height")}
    columns |= {name: [list(getattr(record, name)) for record in batch] for name in _TAGS.values()}
    for name in _BOXES:
        columns[name] = _joined([getattr(record, name) for record in batch], np.float32)
    for name in _FEATURES:
        features = [getattr(record, name) for record in batch]
        columns[name] = _joined([rows[:, :-GEOMETRY_DIM] for rows in features], np.dtype(dtype))
        columns[_geometry_of(name)] = _joined([rows[:, -GEOMETRY_DIM:] for rows in features], np.float32)
    return columns


def _joined(arrays: list[np.ndarray], dtype: Any) -> pyarrow.ListArray:
    """One list a picture, its rows end to end."""
    import pyarrow

    offsets = np.cumsum([0, *(array.size for array in arrays)], dtype=np.int32)
    values = np.concatenate([array.ravel() for array in arrays]).astype(dtype)
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(values))


def _rows(table: pyarrow.Table, name: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The reverse of :func:`_joined`: the rows of all pictures, [N, width], and where each picture's end, int [B]."""
    column = table[name].combine_chunks()
    offsets = column.offsets.to_numpy()
    sizes = np.diff(offsets)
    odd = np.flatnonzero(sizes % width)
    if len(odd):
        row = int(odd[0])
        raise VlkdError(
            f"Picture '{table['key'][row].as_py()}': {sizes[row]} numbers of {name} are no multiple of their "
            f"width {width}: the store is damaged, so extract the regions again."
        )
    values = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(-1, width), np.cumsum(sizes // width)


def _split(rows: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """One view a picture of ``rows`` [N, width]."""
    starts = [0, *ends.tolist()]
    return [rows[start:end] for start, end in pairwise(starts)]


def _geometry_of(features: str) -> str:
    return features.removesuffix("_features") + "_geometry"


def _read_metadata(folder: Path) -> dict[str, Any]:
    path = folder / _METADATA
    if not path.is_file():
        raise VlkdError(f"'{folder}' holds no feature store (no {_METADATA}): extract the regions first.")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VlkdError(f"'{path}' is no JSON: delete '{folder}' and extract the regions again.") from error
    found = metadata.get("format") if isinstance(metadata, dict) else None
    if found != _FORMAT:
        raise VlkdError(f"'{path}' has the format {found!r}, but {_FORMAT!r} is expected: extract the regions again.")
    return metadata
