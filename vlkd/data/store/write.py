"""Writing a feature store: part by part, so that a write can stop at any moment and go on, and in several processes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlkd.data.store import layout
from vlkd.data.store.layout import BOXES, FEATURES, TAGS, FeatureType, Role, View, geometry_of, part_name
from vlkd.data.store.read import RegionStore
from vlkd.disk import blamed_on
from vlkd.errors import VlkdError
from vlkd.keys import normal_key
from vlkd.regions.identity import DetectorIdentity
from vlkd.regions.paired import GEOMETRY_DIM, PairedRegions, RegionRecord, Regions
from vlkd.regions.soundness import half_problem
from vlkd.runs import write_atomically

if TYPE_CHECKING:
    import pyarrow

_PICTURES_A_PART = 1024
_SUMMARY = b"vlkd"  # of a part, in its schema's metadata


def write_store(
    folder: Path | str,
    records: Iterable[RegionRecord],
    fingerprint: str = "",
    *,
    dtype: FeatureType = "float32",
    detectors: Mapping[Role, DetectorIdentity] | None = None,
) -> RegionStore:
    """Write ``records`` as a store and open it. It appears under ``folder`` whole or not at all.

    Args:
        folder: must not exist yet.
        records: taken one after the other; each is verified before it is written.
        fingerprint: names the data, for run folders to compare.
        dtype: of the features on disk; float16 halves the files.
        detectors: what made the regions; a detector that is left out is not known.

    Raises:
        VlkdError: ``folder`` exists, there is no record, two have the same key, different widths or different views, or one
            does not verify (its key and both values are named).
    """
    folder = Path(folder)
    unfinished = unfinished_folder(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        remaining, number, seen = iter(records), 0, Seen()
        while batch := list(islice(remaining, 1)):
            part = _chain(batch, islice(remaining, _PICTURES_A_PART - 1))
            write_part(unfinished / part_name(number), part, dtype, seen)
            number += 1
        return finish_store(folder, fingerprint, detectors)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def unfinished_folder(folder: Path) -> Path:
    """Where the parts of the store ``folder`` are until :func:`finish_store`.

    Raises:
        VlkdError: ``folder`` exists.
    """
    if folder.exists():
        raise VlkdError(f"'{folder}' exists already: choose another folder for the regions, or delete it first.")
    return folder.with_name(f".{folder.name}.unfinished")


class Seen:
    """What the records so far have in common, and their keys."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.first: tuple[tuple[View, ...], int, int] | None = None

    def add(self, record: RegionRecord) -> None:
        """Verify ``record`` by itself and against the others.

        Raises:
            VlkdError: it is unsound, its key was there before, or its widths or views are not those of the others.
        """
        record.check()
        views = record.views
        key = normal_key(record.key)
        if key in self.keys:
            raise VlkdError(f"Picture '{record.key}' comes twice, but a feature store holds each picture once.")
        student, teacher, own = (
            getattr(record, name).shape[1] for name in ("student_features", "teacher_features", "own_features")
        )
        found = views, student if "paired" in views else 0, teacher if "paired" in views else own
        first = self.first = self.first or found
        if views != first[0]:
            raise VlkdError(
                f"Picture '{record.key}' has {_named(views)} regions, but earlier pictures have {_named(first[0])} ones: "
                "one store holds the same kinds of regions of every picture."
            )
        if found != first or ("own" in views and own != first[2]):
            raise VlkdError(
                f"Picture '{record.key}': features of width {student} (student), {teacher} (teacher) and "
                f"{own} (teacher's own regions) beside earlier pictures' {first[1]} and "
                f"{first[2]}: one store holds the features of one pair of detectors."
            )
        self.keys.add(key)


def check_half(record: RegionRecord) -> None:
    """Require features that float16 can hold.

    Raises:
        VlkdError: with key, region and number.
    """
    for name in (name for view in record.views for name in FEATURES[view]):
        problem = half_problem(getattr(record, name)[:, :-GEOMETRY_DIM])
        if problem:
            raise VlkdError(f"Picture '{record.key}': {name}: {problem}.")


def write_part(path: Path, records: Iterable[RegionRecord], dtype: FeatureType, seen: Seen | None = None) -> None:
    """Write one part; it appears whole or not at all, and may be empty.

    Raises:
        VlkdError: as :meth:`Seen.add`, or a feature is beyond ``dtype``.
    """
    import pyarrow

    seen = seen or Seen()
    remaining = iter(records)
    batch = list(islice(remaining, layout.ROWS_A_BATCH))
    schema = layout.schema(dtype).with_metadata({_SUMMARY: json.dumps(_kind(batch[0], dtype) if batch else None)})
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with (
            blamed_on(path),
            pyarrow.OSFile(str(unfinished), "wb") as sink,
            pyarrow.ipc.new_file(sink, schema) as writer,
        ):
            while batch:
                for record in batch:
                    seen.add(record)
                    if dtype == "float16":
                        check_half(record)
                writer.write_batch(pyarrow.record_batch(_columns(batch, dtype), schema=schema))
                del batch, record  # before the next ones are there
                batch = list(islice(remaining, layout.ROWS_A_BATCH))
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _kind(record: RegionRecord, dtype: FeatureType) -> dict[str, Any]:
    """What all pictures of a store have in common."""
    paired = "paired" in record.views
    return {
        "dtype": dtype,
        "views": list(record.views),
        "student_dim": record.student_features.shape[1] if paired else 0,
        "teacher_dim": (record.teacher_features if paired else record.own_features).shape[1],
    }


def finish_store(
    folder: Path, fingerprint: str = "", detectors: Mapping[Role, DetectorIdentity] | None = None
) -> RegionStore:
    """Make a store of the parts in its :func:`unfinished_folder` and open it; arguments as in :func:`write_store`.

    Raises:
        VlkdError: there is no picture, two parts hold the same one, or the parts differ in widths, views or dtype.
    """
    unfinished = unfinished_folder(folder)
    metadata = _summary(sorted(unfinished.glob("part-*.arrow")))
    metadata |= {"format": layout.FORMAT, "fingerprint": fingerprint}
    metadata["detectors"] = {role: identity.model_dump() for role, identity in (detectors or {}).items()}
    write_atomically(unfinished / layout.METADATA, json.dumps(metadata, indent=2) + "\n")
    unfinished.rename(folder)
    return RegionStore.open(folder)


def extend_store(folder: Path, parts: Path, fingerprint: str) -> RegionStore:
    """Add the parts in the folder ``parts`` to a finished store and open it. Their names must be new there.

    Readers find the pictures of before until all parts are in place, then all of them. Stopped at any moment, the same call
    goes on.

    Raises:
        VlkdError: a picture is in two parts, or the parts differ in widths, views or dtype.
    """
    for path in sorted(parts.glob("part-*.arrow")):
        path.rename(folder / path.name)
    path = folder / layout.METADATA
    metadata = json.loads(path.read_text(encoding="utf-8")) | _summary(sorted(folder.glob("part-*.arrow")))
    write_atomically(path, json.dumps(metadata | {"fingerprint": fingerprint}, indent=2) + "\n")
    return RegionStore.open(folder)


def remove_strays(folder: Path) -> int:
    """Remove the parts that an extension left in a store without finishing; the number of the next part."""
    own = {part["file"] for part in json.loads((folder / layout.METADATA).read_text(encoding="utf-8"))["parts"]}
    for path in folder.glob("part-*.arrow"):
        if path.name not in own:
            path.unlink()
    number = 0
    while any(name >= part_name(number) for name in own):
        number += 1
    return number


def read_records(path: Path) -> list[RegionRecord]:
    """What :func:`write_part` wrote, of pictures with regions of both kinds."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        kind = json.loads(pyarrow.ipc.open_file(source).schema.metadata[_SUMMARY])
    store = RegionStore(path.parent, {**kind, "max_regions": 0, "fingerprint": "", "parts": [{"file": path.name}]})
    records = []
    for one, own in zip(store.read(store.keys, "paired"), store.read(store.keys, "own"), strict=True):
        assert isinstance(one, PairedRegions) and isinstance(own, Regions)
        paired = one.boxes, one.student_features, one.teacher_features, one.tags
        records.append(RegionRecord(one.key, one.width, one.height, *paired, own.boxes, own.features, own.tags))
    return records


def _summary(paths: list[Path]) -> dict[str, Any]:
    """What ``regions.json`` says of parts."""
    import pyarrow

    parts, keys = [], dict[str, str]()
    first: dict[str, Any] = {}
    most = 0
    for path in paths:
        with pyarrow.memory_map(str(path)) as source:
            reader = pyarrow.ipc.open_file(source)
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            rows = sum(batch.num_rows for batch in batches)
            for key in (key for batch in batches for key in batch["key"].to_pylist()):
                if key in keys:
                    raise VlkdError(f"Picture '{key}' is in both '{keys[key]}' and '{path.name}', but may come once.")
                keys[key] = path.name
            if rows:
                found = json.loads(reader.schema.metadata[_SUMMARY])
                most = max(most, *(int(_sizes(batches, name).max()) // 4 for name in BOXES.values()))
                if found != (first := first or found):
                    raise VlkdError(f"'{path}' holds {found}, but the first part {first}: extract all parts anew.")
        parts.append({"file": path.name, "pictures": rows, "bytes": path.stat().st_size})
    if not keys:
        raise VlkdError("No picture's regions were given to write, but a feature store needs at least 1.")
    return {"count": len(keys), **first, "max_regions": most, "parts": parts}


def _sizes(batches: list[pyarrow.RecordBatch], name: str) -> np.ndarray:
    """How many numbers a list column has for each picture."""
    return np.concatenate([np.diff(batch[name].offsets.to_numpy()) for batch in batches])


def _columns(records: list[RegionRecord], dtype: FeatureType) -> dict[str, Any]:
    columns: dict[str, Any] = {name: [getattr(record, name) for record in records] for name in ("width", "height")}
    columns["key"] = [normal_key(record.key) for record in records]
    columns |= {name: [list(getattr(record, name)) for record in records] for name in TAGS.values()}
    for name in BOXES.values():
        columns[name] = _joined([getattr(record, name) for record in records], np.float32)
    for name in (name for names in FEATURES.values() for name in names):
        features = [getattr(record, name) for record in records]
        columns[name] = _joined([rows[:, :-GEOMETRY_DIM] for rows in features], np.dtype(dtype))
        columns[geometry_of(name)] = _joined([rows[:, -GEOMETRY_DIM:] for rows in features], np.float32)
    return columns


def _joined(arrays: list[np.ndarray], dtype: Any) -> pyarrow.ListArray:
    """One list a picture, its rows end to end."""
    import pyarrow

    offsets = np.cumsum([0, *(array.size for array in arrays)], dtype=np.int32)
    values = np.concatenate(arrays, dtype=dtype, casting="same_kind").ravel()
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(values))


def _chain(first: list[RegionRecord], rest: Iterable[RegionRecord]) -> Iterator[RegionRecord]:
    yield from first
    yield from rest


def _named(views: tuple[View, ...]) -> str:
    return " and ".join({"paired": "paired", "own": "the teacher's own"}[view] for view in views)
