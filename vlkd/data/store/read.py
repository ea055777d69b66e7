"""Reading a feature store: pictures by key, in any order, out of mapped memory, verified on the way."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vlkd.data.store import layout
from vlkd.data.store.batch import RegionBatch
from vlkd.data.store.layout import BOXES, FEATURES, TAGS, FeatureType, Role, View, geometry_of
from vlkd.errors import VlkdError
from vlkd.keys import normal_key
from vlkd.regions.identity import DetectorIdentity
from vlkd.regions.paired import GEOMETRY_DIM, PairedRegions, Regions

if TYPE_CHECKING:
    import pyarrow


class RegionSource(Protocol):
    """Where regions come from: a :class:`RegionStore`, or records in memory (:class:`RegionMemory`)."""

    student_dim: int
    teacher_dim: int
    max_regions: int

    def read(self, keys: Sequence[str], view: View) -> Sequence[Regions | PairedRegions]: ...

    def read_into(self, keys: Sequence[str], view: View, batch: RegionBatch) -> None: ...

    def tags(self, keys: Sequence[str], view: View) -> list[tuple[str, ...]]: ...

    def counts(self, keys: Sequence[str], view: View) -> list[int]: ...


class RegionStore:
    """A store on disk, opened with :meth:`open`, written by :func:`vlkd.data.write_store`.

    Attributes:
        keys: the pictures, in the order in which they were written, in Unicode's composed form (NFC).
        views: what it holds of every picture: ``paired``, ``own``, or both.
        student_dim, teacher_dim: feature widths, geometry included; the former is 0 without ``paired``.
        dtype: the features' type on disk; what is read is float32.
        max_regions: the most regions that any picture has, of either detector.
        fingerprint: what the writer was given.
        detectors: what made the regions, as far as that is known; nothing is of imported files.
    """

    def __init__(self, folder: Path, metadata: dict[str, Any]) -> None:
        import pyarrow

        self.folder = folder
        self.views: tuple[View, ...] = tuple(metadata["views"])
        self.student_dim: int = metadata["student_dim"]
        self.teacher_dim: int = metadata["teacher_dim"]
        self.dtype: FeatureType = metadata["dtype"]
        self.max_regions: int = metadata["max_regions"]
        self.fingerprint: str = metadata["fingerprint"]
        self.detectors: dict[Role, DetectorIdentity] = {
            role: DetectorIdentity(**facts) for role, facts in metadata.get("detectors", {}).items()
        }
        self._batches: list[pyarrow.RecordBatch] = []
        for part in metadata["parts"]:
            reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(folder / part["file"])))
            self._batches += [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self.keys: tuple[str, ...] = tuple(key for batch in self._batches for key in batch["key"].to_pylist())
        # key -> (batch, row in it)
        places = ((number, row) for number, batch in enumerate(self._batches) for row in range(batch.num_rows))
        self._place_of = dict(zip(self.keys, places, strict=True))
        self._lists: dict[tuple[str, int], tuple[list[int], Tensor]] = {}
        self._sizes: dict[int, np.ndarray] = {}

    @classmethod
    def open(cls, folder: Path | str) -> RegionStore:
        """Open a store without reading its features.

        Raises:
            VlkdError: ``folder`` holds no store, a damaged one, or one of another format.
        """
        folder = Path(folder)
        metadata = _read_metadata(folder)
        for part in metadata["parts"]:
            path = folder / part["file"]
            size = path.stat().st_size if path.is_file() else 0
            if size != part["bytes"]:
                raise VlkdError(
                    f"'{path}' has {size} bytes, but {part['bytes']} were written: it is damaged, "
                    f"so delete '{folder}' and extract the regions again."
                )
        store = cls(folder, metadata)
        if len(store) != metadata["count"]:
            raise VlkdError(
                f"'{folder}' holds {len(store)} pictures, but its {layout.METADATA} says {metadata['count']}: "
                "delete it and extract the regions again."
            )
        return store

    def __len__(self) -> int:
        return len(self.keys)

    def __reduce__(self) -> tuple[Any, ...]:
        return RegionStore.open, (self.folder,)  # another process maps the files anew

    def read(self, keys: Sequence[str], view: View) -> Sequence[Regions | PairedRegions]:
        """The regions of ``keys``, in that order.

        ``paired`` gives the student's boxes with both detectors' features (:class:`PairedRegions`), ``own`` the
        teacher's own boxes (:class:`Regions`). Each is verified: count and dimension, and its boxes against the
        geometry that each side's features carry.

        Raises:
            VlkdError: a key that is not in the store, or what does not match, with its key and both values.
        """
        return [self._read(key, view) for key in keys]

    def read_into(self, keys: Sequence[str], view: View, batch: RegionBatch) -> None:
        """The same regions in tensors that are there already, those of the first ``len(keys)`` pictures of ``batch``.

        Raises:
            VlkdError: as :meth:`read`.
        """
        batch = batch.first(len(keys))
        sizes, boxes, counts = (tensor.numpy() for tensor in (batch.sizes, batch.boxes, batch.counts))
        sides = []
        for name, tensor in zip(FEATURES[view], batch.features, strict=True):
            values = tensor.numpy()
            sides += [(name, values[..., :-GEOMETRY_DIM]), (geometry_of(name), values[..., -GEOMETRY_DIM:])]
        for number, (key, (place, row)) in enumerate(zip(keys, self._places(keys, view), strict=True)):
            sizes[number] = self._sizes_of(place)[row]
            counts[number] = count = self._copy(BOXES[view], place, row, boxes[number])
            if any(count != self._copy(name, place, row, values[number]) for name, values in sides):
                self._read(key, view)  # says what
        if not batch.is_sound():
            self.read(keys, view)
            raise AssertionError("a batch is unsound whose pictures are sound")

    def tags(self, keys: Sequence[str], view: View) -> list[tuple[str, ...]]:
        """The object words of ``keys``, without touching their features."""
        return [tuple(self._batches[place][TAGS[view]][row].as_py()) for place, row in self._places(keys, view)]

    def counts(self, keys: Sequence[str], view: View) -> list[int]:
        """How many regions each of ``keys`` has, without touching their features."""
        ends = ((self._list(BOXES[view], place)[0], row) for place, row in self._places(keys, view))
        return [(offsets[row + 1] - offsets[row]) // 4 for offsets, row in ends]

    def _read(self, key: str, view: View) -> Regions | PairedRegions:
        ((place, row),) = self._places([key], view)
        batch = self._batches[place]
        boxes = self._rows(BOXES[view], place, row, 4)
        width, height = batch["width"][row].as_py(), batch["height"][row].as_py()
        (tags,) = self.tags([key], view)
        if view == "own":
            features = self._features("own_features", place, row, self.teacher_dim)
            return Regions(key, width, height, boxes, features, tags)
        of_student = self._features("student_features", place, row, self.student_dim)
        of_teacher = self._features("teacher_features", place, row, self.teacher_dim)
        return PairedRegions(key, width, height, boxes, of_student, of_teacher, tags)

    def _places(self, keys: Sequence[str], view: View) -> list[tuple[int, int]]:
        if view not in self.views:
            missing = "both detectors' features of the same boxes" if view == "paired" else "the teacher's own regions"
            raise VlkdError(f"The feature store '{self.folder}' does not hold {missing}: write them into it first.")
        try:
            return [self._place_of[key if key in self._place_of else normal_key(key)] for key in keys]
        except KeyError as error:
            raise VlkdError(
                f"The feature store '{self.folder}' has no picture {error.args[0]!r} among its {len(self)} "
                "pictures: extract its regions first."
            ) from error

    def _list(self, name: str, place: int) -> tuple[list[int], Tensor]:
        """Where the list of each row of a batch ends, a 0 in front, and all numbers, in the mapped memory."""
        found = self._lists.get((name, place))
        if found is None:
            column = self._batches[place][name]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the tensor is not writable: nobody writes it
                values = torch.from_numpy(column.values.to_numpy())
            found = self._lists[name, place] = column.offsets.to_pylist(), values
        return found

    def _sizes_of(self, place: int) -> np.ndarray:
        """[rows, 2], width and height of the pictures of a batch."""
        if place not in self._sizes:
            self._sizes[place] = np.stack(
                [self._batches[place][name].to_numpy() for name in ("width", "height")], axis=1
            )
        return self._sizes[place]

    def _copy(self, name: str, place: int, row: int, to: np.ndarray) -> int:
        """A picture's rows into ``to`` [R, width], zeros behind them; how many, or -1 where they do not fit."""
        offsets, values = self._list(name, place)
        begin, end = offsets[row], offsets[row + 1]
        room, width = to.shape
        count, rest = divmod(end - begin, width)
        if rest or count > room:
            return -1
        rows = values[begin:end].view(count, width)
        if rows.dtype == torch.float32:
            to[:count] = rows.numpy()  # a fifth of what torch takes for few rows
        else:
            torch.from_numpy(to)[:count] = rows  # a tenth of what numpy takes for float16
        if count < room:
            to[count:] = 0
        return count

    def _rows(self, name: str, place: int, row: int, width: int) -> np.ndarray:
        """A picture's rows of a list column, float32 [n, width]."""
        offsets, values = self._list(name, place)
        begin, end = offsets[row], offsets[row + 1]
        if (end - begin) % width:
            raise VlkdError(
                f"Picture '{self._batches[place]['key'][row].as_py()}': {end - begin} numbers of {name} are no multiple of "
                f"their width {width}: the store is damaged, so extract the regions again."
            )
        return values[begin:end].view(-1, width).float().numpy().copy()

    def _features(self, name: str, place: int, row: int, dim: int) -> np.ndarray:
        """Features and their geometry side by side: float32 [n, dim]."""
        values = self._rows(name, place, row, dim - GEOMETRY_DIM)
        numbers = self._rows(geometry_of(name), place, row, GEOMETRY_DIM)
        if len(values) != len(numbers):
            raise VlkdError(
                f"Picture '{self._batches[place]['key'][row].as_py()}': {len(values)} rows of {name}, but {len(numbers)} of "
                f"their geometry: '{self.folder}' is damaged, so extract the regions again."
            )
        return np.concatenate([values, numbers], axis=1)


def _read_metadata(folder: Path) -> dict[str, Any]:
    path = folder / layout.METADATA
    if not path.is_file():
        raise VlkdError(f"'{folder}' holds no feature store (no {layout.METADATA}): extract the regions first.")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VlkdError(f"'{path}' is no JSON: delete '{folder}' and extract the regions again.") from error
    found = metadata.get("format") if isinstance(metadata, dict) else None
    if found != layout.FORMAT:
        raise VlkdError(
            f"'{path}' has the format {found!r}, but {layout.FORMAT!r} is expected: extract the regions again."
        )
    return metadata
