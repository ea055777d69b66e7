"""The order of the samples of a whole run, as a data set of its own."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from vlkd.training.seeds import derive_seed


class EpochSet(Protocol):
    """A data set whose samples are drawn from (seed, epoch, index) only."""

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class SampleStream(Dataset):
    """All samples of a run in the order of use: epoch after epoch, each in an order of its own.

    Position i belongs to epoch ``i // len(dataset)``. The run is one pass over this stream, so every batch is full, and
    a resumed run jumps to its position without reading what came before.

    Args:
        dataset: the samples of one epoch.
        length: samples that the run uses: steps × batch.
        seed: of the order.
    """

    def __init__(self, dataset: EpochSet, length: int, seed: int) -> None:
        self.dataset = dataset
        self.length = length
        self.seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Any:
        epoch, place = divmod(position, len(self.dataset))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            self._order = torch.randperm(len(self.dataset), generator=generator).tolist()
            self.dataset.set_epoch(epoch)
            self._epoch = epoch
        return self.dataset[self._order[place]]
