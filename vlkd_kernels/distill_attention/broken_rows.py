"""What is not finite, kept out of torch's attention and put into the rows of its output that it reaches.

Whoever leaves such a row out sends back a gradient of 0, which would meet a NaN in attention's backward, and all keys' gradients
would be NaN; and what nobody sees would meet a weight of 0. B batch, H heads, L queries, M keys, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Parts = tuple[Tensor, Tensor, Tensor]


def without_broken(
    q: Tensor,  # [B, H, L, D]
    k: Tensor,  # [B, H_k, M, D]
    v: Tensor,  # [B, H_k, M, D_v]
    attn_mask: Tensor | None,  # bool, four-dimensional, broadcastable to [B, H, L, M]
    is_causal: bool,
) -> tuple[Parts, Tensor | None]:
    """All three with 0 in rows that are not finite, and NaN for each row of the output that sees one of them, 0 for others.

    None for the latter, which is broadcastable to [B, H, L, 1], where there is nothing to keep out.
    """
    if all(map(_plainly_finite, (q, k, v))):
        return (q, k, v), None
    broken_q, broken_k, broken_v = ((x.detach() * 0).sum(-1, keepdim=True) for x in (q, k, v))
    reach = (broken_k + broken_v).isnan().mT.repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # [B, H, 1, M]
    visible = attn_mask
    if is_causal:
        causal = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        visible = causal if visible is None else visible & causal
    broken = broken_q.isnan() | (reach if visible is None else reach & visible).any(-1, keepdim=True)
    if visible is not None:  # a row that sees nothing is 0
        broken = broken & visible.any(-1, keepdim=True)
    parts = [_Broken.apply(x, mark, 0.0) for x, mark in ((q, broken_q), (k, broken_k), (v, broken_v))]
    return tuple(parts), torch.zeros_like(broken_q).masked_fill(broken, torch.nan)  # type: ignore[return-value]


def with_broken(out: Tensor, mark: Tensor | None) -> Tensor:
    """The output [..., L, D_v] with NaN in the marked rows."""
    return out if mark is None else _Broken.apply(out, mark, torch.nan)  # type: ignore[return-value]


def _plainly_finite(x: Tensor) -> bool:
    """Whether all is finite, by its sum; not asked where the host would wait, or where there is no value yet."""
    if not x.is_cpu or torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    return bool(x.detach().sum(dtype=torch.promote_types(x.dtype, torch.float32)).isfinite())


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
