"""The order of the samples of a whole run, as a data set of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlkd.training.seeds import derive_seed

_WINDOWS = 1  # sets the draw of the order inside windows apart from that of the epochs


class EpochSet(Protocol):
    """A data set whose samples are drawn from (seed, epoch, index) only."""

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def length(self, index: int) -> int: ...


class SampleStream(Dataset):
    """All samples of a run in the order of use: epoch after epoch, each in an order of its own.

    Position i belongs to epoch ``i // len(dataset)``. The run is one pass over this stream, so every batch is full, and
    a resumed run jumps to its position without reading what came before.

    Samples of like length are brought together, so that little padding is computed:

    - The samples of an optimizer step are sorted by length before they are cut into micro-batches. Every term of the loss is
      divided by its count in the whole step, so its gradient does not depend on where the cuts are.
    - The samples of ``window`` steps are sorted by length before they are cut into steps, whose order is then drawn. This
      changes what a step holds.

    Args:
        dataset: the samples of one epoch.
        length: samples that the run uses: steps × batch.
        seed: of the order.
        batch: samples of an optimizer step.
        micro_batches: how many micro-batches a step is cut into, those of all processes together.
        window: steps.
    """

    def __init__(
        self, dataset: EpochSet, length: int, seed: int, *, batch: int = 1, micro_batches: int = 1, window: int = 1
    ) -> None:
        self.dataset = dataset
        self.length = length
        self.seed = seed
        self.batch = batch
        self.micro_batches = micro_batches
        self.window = window
        self._epoch = -1
        self._order: list[int] = []
        self._arranged: dict[
            int, list[int]
        ] = {}  # the two latest windows, each with its drawn positions in their order of use

    def __len__(self) -> int:
        return self.length

    @property
    def is_sorted(self) -> bool:
        """Whether samples are used in another order than they were drawn in."""
        return self.window > 1 or self.micro_batches > 1

    def __getitem__(self, position: int) -> Any:
        window, place = divmod(position, self.batch * self.window)
        return self.dataset[self._enter(self._arrange(window)[place])]

    def step_order(self, step: int) -> Tensor:
        """[batch] int64: the place that each sample of optimizer step ``step`` (from 0) would have had unsorted, from 0.

        Samples are named in the order of use: the micro-batches one after the other.
        """
        window, number = divmod(step, self.window)
        first = number * self.batch
        drawn = torch.tensor(self._arrange(window)[first : first + self.batch])
        return drawn.argsort().argsort()

    def _enter(self, drawn: int) -> int:
        """The index in the data set of what was drawn at a position; the set is then in its epoch."""
        epoch, place = divmod(drawn, len(self.dataset))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            self._order = torch.randperm(len(self.dataset), generator=generator).tolist()
            self.dataset.set_epoch(epoch)
            self._epoch = epoch
        return self._order[place]

    def _arrange(self, window: int) -> list[int]:
        """The drawn positions of a window in their order of use.

        Two are kept: a loader reads ahead while the step before it is still asked for.
        """
        if window not in self._arranged:
            size = self.batch * self.window
            positions: list[int] = list(range(window * size, min((window + 1) * size, self.length)))
            if self.is_sorted:
                lengths = {position: self.dataset.length(self._enter(position)) for position in positions}
                steps = self._steps(positions, lengths, window)
                positions = [position for step in steps for position in self._cut(step, lengths)]
            self._arranged = dict([*self._arranged.items(), (window, positions)][-2:])
        return self._arranged[window]

    def _steps(self, positions: list[int], lengths: dict[int, int], window: int) -> list[list[int]]:
        """The samples of each step."""
        if self.window > 1:
            positions = sorted(positions, key=lengths.__getitem__)
        steps = [positions[first : first + self.batch] for first in range(0, len(positions), self.batch)]
        if self.window == 1:
            return steps
        generator = torch.Generator().manual_seed(derive_seed(self.seed, window, _WINDOWS))
        return [sorted(steps[number]) for number in torch.randperm(len(steps), generator=generator).tolist()]

    def _cut(self, step: Sequence[int], lengths: dict[int, int]) -> list[int]:
        """A step's samples, the longest micro-batch first; within one they are in the order in which they were drawn."""
        if self.micro_batches == 1:
            return list(step)
        by_length = sorted(step, key=lambda position: -lengths[position])
        size = len(step) // self.micro_batches
        cuts = (by_length[first : first + size] for first in range(0, len(step), size))
        return [position for cut in cuts for position in sorted(cut)]
