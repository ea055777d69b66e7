"""Which teacher hidden states enter the queue, and when."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from vlkd.training.seeds import derive_seed
from vlkd_kernels import RingQueue

# B samples of a micro-batch, L rows of each (its places, or the mean of its tokens alone), E the teacher's width, A micro-batches
# a step, W ranks, S = A W B samples of a step, M most rows that a sample can have.


class QueueFeed:
    """Collects the teacher's hidden states of one optimizer step and enqueues them once, at its end.

    The queue must not change between a forward and its backward, and what enters must not depend on how the step was
    split or padded. So at most ``tokens`` of a step's valid rows, a uniform draw from (seed, step), are enqueued in the order
    of the samples, and of the rows within a sample.

    Args:
        queue: written in place.
        tokens: most rows enqueued a step.
        seed: of the draw.
        most: M, the most rows that a sample can have.
        rank, ranks: which of how many processes this is.
        gather: stacks a tensor [...] of every rank to [W, ...].
        reduce: adds a tensor up over all ranks.
    """

    def __init__(
        self,
        queue: RingQueue,
        tokens: int,
        seed: int,
        most: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        gather: Callable[[Tensor], Tensor] = lambda tensor: tensor.unsqueeze(0),
        reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        self.queue = queue
        self.tokens = tokens
        self.seed = seed
        self.most = most
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
    def enqueue(self, step: int, order: Tensor | None = None) -> None:
        """Enqueue what was collected for this step and forget it. Every rank ends with the same queue.

        Args:
            step: of the draw.
            order: int64 [S], the place of each sample in the step, from 0; samples are named as the micro-batches came, those
                of all ranks in turn. None: they came in order.
        """
        # Padded to M: the ranks exchange tensors of one shape, and the draw does not depend on the lengths of batches.
        padded = [functional.pad(valid, (0, self.most - valid.shape[1])) for valid in self._valid]
        valid = self._as_used(torch.stack(padded)).flatten(0, 2)  # [S, M]
        pictures = self._as_used(torch.stack(self._pictures)).flatten()  # [S]
        used = torch.arange(len(valid), device=valid.device)  # [S], where each sample was used
        if order is not None:
            used = order.to(valid.device).argsort()
            valid, pictures = valid[used], pictures[used]
        drawn = self._draw(valid, step)  # [k] positions in [S * M], ascending
        sample, place = drawn // self.most, drawn % self.most
        rows = self._reduce(self._own_rows(used[sample], place))  # [k, E]
        self.queue.enqueue_(rows, mask=valid.flatten()[drawn], ids=pictures[sample])
        self._hidden, self._valid, self._pictures = [], [], []

    def _as_used(self, own: Tensor) -> Tensor:
        """[A, B, ...] of every rank → [A, W, B, ...]: batches are dealt to the ranks in turn."""
        return self._gather(own).transpose(0, 1)

    def _draw(self, valid: Tensor, step: int) -> Tensor:
        """[k] ascending: a uniform draw of valid rows. Where too few are valid, others fill up, to be masked.

        A sample's n-th valid row has the same chance wherever padding stands.
        """
        generator = torch.Generator().manual_seed(derive_seed(self.seed, step))
        scores = torch.rand(valid.shape, generator=generator).to(valid.device)  # [S, M]
        number = (valid.cumsum(1) - 1).clamp(min=0)
        scores = scores.gather(1, number).masked_fill(~valid, -1.0).flatten()
        return scores.topk(min(self.tokens, scores.numel())).indices.sort().values

    def _own_rows(self, used: Tensor, place: Tensor) -> Tensor:
        """[k, E]: the drawn rows that this rank holds, zeros where another rank holds them.

        Args:
            used: [k], the rows' samples, named as they were used.
            place: [k], the rows' places in their samples.
        """
        size = len(self._pictures[0])  # B
        micro, rest = used // (size * self._ranks), used % (size * self._ranks)
        owner, row = rest // size, rest % size
        lengths = [hidden.shape[1] for hidden in self._hidden]
        starts = torch.tensor([0, *lengths[:-1]], device=used.device).cumsum(0) * size  # [A]
        length = torch.tensor(lengths, device=used.device)[micro]
        # Another rank's micro-batch may be longer than ours; what is read in its place is masked.
        own = torch.cat([hidden.flatten(0, 1) for hidden in self._hidden])
        own = own[starts[micro] + row * length + place.minimum(length - 1)]
        return own.masked_fill((owner != self._rank).unsqueeze(1), 0.0)
