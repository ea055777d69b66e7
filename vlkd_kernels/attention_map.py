"""`attention_map`: the part of an attention map that one wants to look at, computed from queries and keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlkd_kernels import checks
from vlkd_kernels.attention import check_keys, check_mask, four_dimensional, scale_of, scores

_OP = "attention_map"


def attention_map(
    q: Tensor,
    k: Tensor,
    *,
    scale: float | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    heads: str = "all",
    rows: Sequence[int] | Tensor | None = None,
) -> Tensor:
    r"""Rows of softmax(scale q kᵀ), for plots and tables: all heads or their mean, all queries or some.

    Besides the result at most 2²¹ scores are held at a time (8 MiB in float32), so that the mean over the heads of a long
    sequence, or a few of its rows, need no room for the whole map. Plain PyTorch, differentiable in every way that it knows;
    where a gradient is wanted, autograd keeps the parts for the backward, so draw under torch.no_grad().

    Args:
        q: queries [B, H, L, D], any floating-point dtype.
        k: keys [B, H_k, M, D]; H_k divides H (grouped queries).
        scale: factor on the scores, 1/sqrt(D) if None.
        attn_mask: bool, broadcastable to [B, H, L, M]; True may attend. Two dimensions are [L, M] and three [H, L, M]; where
            B = L, or B = H, they might be meant as [B, M] or [B, L, M], and are refused: pass all four.
        is_causal: query i sees keys 0..i, together with `attn_mask`.
        heads: "all", or "mean" for the average over heads.
        rows: which queries, as integers from 0 to L - 1 (a list or a 1-d integer tensor); all of them if None.

    Returns:
        float32 (float64 for float64 inputs), [B, H, R, M] or, for the mean, [B, R, M], with R = L or the number of `rows`,
        in their order. Rows add up to 1; a row that sees no key is 0.

    Raises:
        ValueError, TypeError, IndexError: an argument of the wrong shape, dtype, device or value.
    """
    checks.check_float_tensors(_OP, {"q": q, "k": k}, dims=4)
    checks.check_same_dtype(_OP, "k", k, "q", q)
    check_keys(_OP, "k", k, q, k.shape[2], q.shape[3])
    check_mask(_OP, attn_mask, q, k.shape[2])
    checks.check_choice(_OP, "heads", heads, ("all", "mean"))
    scale = scale_of(_OP, "scale", scale, q)
    if rows is not None:
        rows = torch.as_tensor(rows, dtype=None if len(rows) else torch.int64, device=q.device)
        if rows.ndim != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
            raise ValueError(f"{_OP}: rows must be a list of integers, got {checks.shape_of(rows)} of {rows.dtype}.")
    parts = []
    for part in scores(q, k, scale, four_dimensional(attn_mask), is_causal, rows):
        if attn_mask is None:
            probabilities = part.softmax(-1)
        else:  # the softmax of a row that sees no key would be NaN
            blind = part.isneginf().all(-1, keepdim=True)
            probabilities = part.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
        parts.append(probabilities.mean(1) if heads == "mean" else probabilities)
    return torch.cat(parts, dim=-2)
