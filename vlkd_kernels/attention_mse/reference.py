"""The distance between two attention maps in plain PyTorch.

Shapes: B batch, H heads, L queries, M keys, D head width. The key side may have fewer heads than the query side.

`loss` is the formula, differentiated by autograd; it computes in the dtype of its inputs, so in float64 it is the truth
that every backend is held to, and in bfloat16 it is what a user would have written by hand. `forward` is what
`backend="reference"` runs: the same numbers in the form that does not cancel, with the gradient written out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlkd_kernels.attention import seen_keys
from vlkd_kernels.dtypes import accumulator, exact, finite
from vlkd_kernels.fused_loss import reduced


def loss(
    q_s: Tensor,  # [B, H, L, D_s]
    k_s: Tensor,  # [B, H_k, M, D_s]
    q_t: Tensor,  # [B, H, L, D_t]
    k_t: Tensor,  # [B, H_k', M, D_t]
    *,
    scale_s: float,
    scale_t: float,
    attn_mask: Tensor | None = None,  # bool, broadcastable to [B, H, L, M]; True may attend
    query_mask: Tensor | None = None,  # bool [B, L]; True counts
    is_causal: bool = False,
    distance: str = "mse",
) -> tuple[Tensor, Tensor]:
    """The sum of the row values over the counted rows, and how many rows count."""
    visible = _visible(q_s, k_s, attn_mask, is_causal)  # [B, H, L, M]
    counted = _counted(visible, query_mask)  # [B, H, L]
    used = visible & counted[..., None]
    logits_s = _logits(*_used(q_s, k_s, used), scale_s)
    logits_t = _logits(*_used(q_t.detach(), k_t.detach(), used), scale_t)
    # A row without a visible key has no softmax: such rows attend everywhere and are left out of the sum.
    visible_or_unused = visible | ~counted[..., None]
    logits_s = logits_s.masked_fill(~visible_or_unused, -torch.inf)
    logits_t = logits_t.masked_fill(~visible_or_unused, -torch.inf)
    p, t = logits_s.softmax(-1), logits_t.softmax(-1)
    if distance == "mse":
        row_values = (p - t.to(p.dtype)).square().sum(-1) / visible.sum(-1).clamp(min=1)
    else:
        difference = logits_t.log_softmax(-1).to(p.dtype) - logits_s.log_softmax(-1)
        row_values = (t.to(p.dtype) * difference.masked_fill(~visible, 0)).sum(-1)
    return row_values.masked_fill(~counted, 0).sum(), counted.sum().to(row_values.dtype)


def forward(
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    scale_s: float,
    scale_t: float,
    attn_mask: Tensor | None,
    query_mask: Tensor | None,
    is_causal: bool,
    distance: str,
    mean: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, count, scale and gradients, in float32 (float64 for float64).

    The loss is the mean over the counted rows or their sum. Its gradients for q_s and k_s are the last two times the scale:
    a kernel that knows the count only at its end leaves the division to the multiplication by the incoming gradient.
    """
    dtype = accumulator(q_s.dtype)
    q_s, k_s, q_t, k_t = (x.to(dtype) for x in (q_s, k_s, q_t, k_t))
    logits_s, logits_t = _logits(q_s, k_s, scale_s), _logits(q_t, k_t, scale_t)
    visible = _visible(q_s, k_s, attn_mask, is_causal)  # [B, H, L, M]
    counted = _counted(visible, query_mask)  # [B, H, L]
    used = visible & counted[..., None]
    log_p, log_t = _log_softmax(logits_s, used), _log_softmax(logits_t, used)
    p, t = log_p.exp().masked_fill(~used, 0), log_t.exp().masked_fill(~used, 0)
    difference = p - t
    if distance == "mse":
        weight = counted / visible.sum(-1).clamp(min=1).to(dtype)  # 1/m of a counted row, else 0
        row_values = weight * difference.square().sum(-1)  # 0 in rows that do not count, whose p and t are 0
        delta = (p * difference).sum(-1, keepdim=True)
        gradient = 2 * weight[..., None] * p * (difference - delta)  # of the logits, [B, H, L, M]
    else:
        row_values = _kl_terms(p, t, (log_t - log_p).masked_fill(~used, 0)).sum(-1)
        gradient = difference
    count = counted.sum().to(dtype)
    values = reduced(row_values.sum(), count, mean)
    if not with_grad:
        empty = q_s.new_empty(0)
        return *values, empty, empty.clone()
    groups = q_s.shape[1] // max(k_s.shape[1], 1)
    grad_q = scale_s * gradient @ finite(k_s).repeat_interleave(groups, dim=1)
    grad_k = scale_s * gradient.mT @ finite(q_s)  # one per query head, [B, H, M, D_s]
    return *values, grad_q, grad_k.unflatten(1, (k_s.shape[1], groups)).sum(2)


def _logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """[B, H, L, D] and [B, H_k, M, D] to scaled scores [B, H, L, M], NaN where they are infinite."""
    if k.shape[1] != q.shape[1]:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return exact(q @ k.mT * scale)


def _used(q: Tensor, k: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys, 0 where they do not count: a NaN there would meet a weight of 0 in the gradient, and be one."""
    return q.masked_fill(~used.any(-1, keepdim=True), 0), k.masked_fill(~seen_keys(used, k.shape[1]), 0)


def _visible(q: Tensor, k: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
    visible = torch.ones(*q.shape[:3], k.shape[2], dtype=torch.bool, device=q.device)
    if attn_mask is not None:
        visible = visible & attn_mask
    return visible.tril() if is_causal else visible


def _counted(visible: Tensor, query_mask: Tensor | None) -> Tensor:
    counted = visible.any(-1)
    return counted if query_mask is None else counted & query_mask[:, None, :]


def _log_softmax(logits: Tensor, used: Tensor) -> Tensor:
    """Log-softmax over the used keys; entries that are not used are 0."""
    shifted = logits.masked_fill(~used, -torch.inf)
    log_sum = shifted.logsumexp(-1, keepdim=True)
    return (logits - log_sum).masked_fill(~used, 0)


def _kl_terms(p: Tensor, t: Tensor, difference: Tensor) -> Tensor:
    """t (Δ + expm1(-Δ)) with Δ = log t - log p: every term is >= 0, so that small ones survive the sum.

    Where Δ is large the same number is t Δ + p - t, which cannot overflow.
    """
    small = difference.abs() < 1
    safe = torch.where(small, difference, 0)
    return torch.where(small, t * (safe + torch.expm1(-safe)), t * difference + p - t)
