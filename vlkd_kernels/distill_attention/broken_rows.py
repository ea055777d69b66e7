"""Queries that are not finite, kept out of torch's attention where `query_mask` leaves them out of the loss.

The output of such a query is NaN. Whoever leaves it out sends back a gradient of 0, which meets a NaN in attention's backward, and
all keys' gradients would be NaN. L queries, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def without_broken(q: Tensor, query_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """q [..., L, D] with 0 in rows that are not finite, and NaN for each of those, 0 for others: [..., L, 1]."""
    if query_mask is None:  # such a row counts, and the loss is NaN
        return q, None
    mark = (q.detach() * 0).sum(-1, keepdim=True)
    return _Broken.apply(q, mark, 0.0), mark  # type: ignore[return-value]


def with_broken(out: Tensor, mark: Tensor | None) -> Tensor:
    """The output [..., L, D_v] with NaN in the marked rows."""
    return out if mark is None else _Broken.apply(out, mark, torch.nan)  # type: ignore[return-value]


class _Broken(torch.autograd.Function):
    """x with another value in the marked rows; their gradient is NaN where there is one, and 0 stays 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mark: Tensor, value: float) -> Tensor:
        ctx.save_for_backward(mark)
        return x.masked_fill(mark.isnan(), value)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (mark,), (grad,) = ctx.saved_tensors, grad_outputs
        return torch.where(grad == 0, grad, grad + mark), None, None
