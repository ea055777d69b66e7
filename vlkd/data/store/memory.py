"""Records that were never written, read like a store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from vlkd.data.store.batch import RegionBatch
from vlkd.data.store.layout import View
from vlkd.errors import VlkdError
from vlkd.regions.paired import PairedRegions, RegionRecord, Regions


class RegionMemory:
    """Records such as those of a single photograph; a :class:`~vlkd.data.RegionSource`."""

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

    def read_into(self, keys: Sequence[str], view: View, batch: RegionBatch) -> None:
        """As :meth:`RegionStore.read_into`."""
        for number, item in enumerate(self.read(keys, view)):
            sides = (item.features,) if isinstance(item, Regions) else (item.student_features, item.teacher_features)
            batch.sizes[number] = torch.tensor([item.width, item.height])
            batch.counts[number] = count = len(item.boxes)
            for tensor, rows in zip((batch.boxes, *batch.features), (item.boxes, *sides), strict=True):
                tensor[number, :count] = torch.from_numpy(rows)
                tensor[number, count:] = 0

    def tags(self, keys: Sequence[str], view: View) -> list[tuple[str, ...]]:
        """As :meth:`RegionStore.tags`."""
        records = [self._records[key] for key in keys]
        return [record.tags if view == "paired" else record.own_tags for record in records]

    def counts(self, keys: Sequence[str], view: View) -> list[int]:
        """As :meth:`RegionStore.counts`."""
        return [len(item.boxes) for item in self.read(keys, view)]
