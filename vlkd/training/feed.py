"""Which teacher hidden states enter the queue, and when."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlkd.training.seeds import derive_seed
from vlkd_kernels import RingQueue

# B samples of a micro-batch, L rows of each (its tokens, or their mean alone), E the teacher's width, A micro-batches a step,
# W ranks.


class QueueFeed:
    """Collects the teacher's hidden states of one optimizer step and enqueues them once, at its end.

    The queue must not change between a forward and its backward, and what enters must not depend on how the step was
    split. So the rows of all micro-batches (and ranks) are laid out in the order of the samples, and at most ``tokens``
    of the valid ones, a uniform draw from (seed, step), are enqueued in that order.

    Args:
        queue: written in place.
        tokens: most rows enqueued a step.
        seed: of the draw.
        rank, ranks: which of how many processes this is.
        gather: stacks a tensor [...] of every rank to [W, ...].
        reduce: adds a tensor up over all ranks.
    """

    def __init__(
        self,
        queue: RingQueue,
        tokens: int,
        seed: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        gather: Callable[[Tensor], Tensor] = lambda tensor: tensor.unsqueeze(0),
        reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        self.queue = queue
        self.tokens = tokens
        self.seed = seed
        self._rank, self._ranks = rank, ranks
        self._gather, self._reduce = gather, reduce
        self._hidden: list[Tensor] = []
        self._valid: list[Tensor] = []
        self._pictures: list[Tensor] = []

    def collect(self, hidden: Tensor, valid: Tensor, picture_ids: Tensor) -> None:
        """Keep a micro-batch's teacher states.

        Args:
            hidden: [B, L, E].
            valid: [B, L] bool, the rows that may enter.
            picture_ids: [B] int64, their id in the queue.
        """
        self._hidden.append(hidden.detach())
        self._valid.append(valid)
        self._pictures.append(picture_ids)

    @torch.no_grad()
    def enqueue(self, step: int) -> None:
        """Enqueue what was collected for this step and forget it. Every rank ends with the same queue."""
        valid = self._in_sample_order(torch.stack(self._valid)).flatten(0, 2)  # [samples, L]
        pictures = self._in_sample_order(torch.stack(self._pictures)).flatten()  # [samples]
        rows = self._draw(valid, step)  # [k] positions in [samples * L]
        new_rows = self._reduce(self._own_rows(rows, valid.shape[1]))  # [k, E]
        self.queue.enqueue_(new_rows, mask=valid.flatten()[rows], ids=pictures[rows // valid.shape[1]])
        self._hidden, self._valid, self._pictures = [], [], []

    def _in_sample_order(self, own: Tensor) -> Tensor:
        """[A, B, ...] of every rank → [A, W, B, ...]: batches are dealt to the ranks in turn."""
        return self._gather(own).transpose(0, 1)

    def _draw(self, valid: Tensor, step: int) -> Tensor:
        """[k] ascending: a uniform draw of valid rows. Where too few are valid, others fill up, to be masked."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, step))
        scores = torch.rand(valid.numel(), generator=generator).to(valid.device)
        scores = scores.masked_fill(~valid.flatten(), -1.0)
        return scores.topk(min(self.tokens, scores.numel())).indices.sort().values

    def _own_rows(self, rows: Tensor, length: int) -> Tensor:
        """[k, E]: the drawn rows that this rank holds, zeros where another rank holds them."""
        hidden = torch.stack(self._hidden)  # [A, B, L, E]
        block = hidden.shape[1] * length  # rows of one micro-batch of one rank
        micro, rest = rows // (block * self._ranks), rows % (block * self._ranks)
        owner, place = rest // block, rest % block
        own = hidden.flatten(0, 2)[micro * block + place]
        return own.masked_fill((owner != self._rank).unsqueeze(1), 0.0)
