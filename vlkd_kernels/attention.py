"""What the ops on queries and keys share: checks of their arguments, default scales, and scores a few rows at a time.

Shapes: B batch, H heads, L queries, M keys, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vlkd_kernels import checks
from vlkd_kernels.dtypes import accumulator, exact

_CHUNK = 1 << 21  # scores held at a time: 8 MiB in float32


def check_pair(
    op: str,
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    attn_mask: Tensor | None,
    query_mask: Tensor | None,
    distance: str,
    reduction: str,
) -> None:
    """The arguments of an op that compares a student's attention [B, H, L, M] with a teacher's."""
    checks.check_float_tensors(op, {"q_s": q_s, "k_s": k_s, "q_t": q_t, "k_t": k_t}, dims=4)
    checks.check_same_dtype(op, "k_s", k_s, "q_s", q_s)
    checks.check_same_dtype(op, "k_t", k_t, "q_t", q_t)
    batch, heads, queries, _ = q_s.shape
    keys = k_s.shape[2]
    checks.check_shape(op, "q_t", q_t, (batch, heads, queries, q_t.shape[3]), "[B, H, L, D_t]")
    check_keys(op, "k_s", k_s, q_s, keys, q_s.shape[3])
    check_keys(op, "k_t", k_t, q_t, keys, q_t.shape[3])
    check_mask(op, attn_mask, q_s, keys)
    if query_mask is not None:
        checks.check_dtype(op, "query_mask", query_mask, torch.bool)
        checks.check_device(op, "query_mask", query_mask, "q_s", q_s)
        checks.check_shape(op, "query_mask", query_mask, (batch, queries), "[B, L]")
    checks.check_choice(op, "distance", distance, ("mse", "kl"))
    checks.check_reduction(op, reduction)


def check_keys(op: str, name: str, k: Tensor, q: Tensor, keys: int, width: int) -> None:
    """The key side [B, H_k, M, D] fits its queries [B, H, L, D]; H_k divides H."""
    batch, heads = q.shape[:2]
    checks.check_shape(op, name, k, (batch, k.shape[1], keys, width), "[B, H_k, M, D]")
    if heads and (k.shape[1] == 0 or heads % k.shape[1]):
        raise ValueError(f"{op}: the heads of {name} must divide the {heads} heads of the queries, got {k.shape[1]}.")
    if width == 0:
        raise ValueError(f"{op}: the head width must be at least 1, got {name} {checks.shape_of(k)}.")


def check_mask(op: str, mask: Tensor | None, q: Tensor, keys: int) -> None:
    """A mask is bool and broadcasts to [B, H, L, M], and nobody can read it in another way.

    A mask of two dimensions is [L, M], as in torch's attention; transformers' is [B, M]. One of three is [H, L, M], and
    nn.MultiheadAttention's is [B, L, M]. Where the sizes fit both readings, the caller has to say which one is meant.
    """
    if mask is None:
        return
    checks.check_dtype(op, "attn_mask", mask, torch.bool)
    checks.check_device(op, "attn_mask", mask, "the queries", q)
    full = [*q.shape[:3], keys]
    fits = mask.ndim <= 4 and all(m in (1, n) for m, n in zip(reversed(mask.shape), reversed(full), strict=False))
    leads_batch = mask.ndim in (2, 3) and mask.shape[0] == full[0] > 1
    if mask.ndim == 2:
        ours, theirs = "[L, M], written attn_mask[None, None]", "[B, M], written attn_mask[:, None, None, :]"
    else:
        ours, theirs = "[H, L, M], written attn_mask[None]", "[B, L, M], written attn_mask[:, None]"
    if not fits:
        hint = f"; if it is {theirs.replace('written', 'pass')}" if leads_batch else ""
        raise ValueError(f"{op}: attn_mask must broadcast to [B, H, L, M] = {full}, got {checks.shape_of(mask)}{hint}.")
    if leads_batch:
        raise ValueError(
            f"{op}: attn_mask {checks.shape_of(mask)} may be {ours}, or {theirs}, since [B, H, L, M] = {full}; "
            "pass the one that is meant."
        )


def scale_of(op: str, name: str, value: float | None, q: Tensor) -> float:
    """The factor on the scores: 1/sqrt(D) if None."""
    if value is None:
        return q.shape[-1] ** -0.5 if q.shape[-1] else 1.0
    checks.check_finite(op, name, value)
    return float(value)


def seen_keys(visible: Tensor, key_heads: int) -> Tensor:
    """Which keys some query sees, of a mask broadcastable to [B, H, L, M]: broadcastable to [B, H_k, M, 1]."""
    seen = visible.any(2)
    if seen.shape[1] > 1:
        seen = seen.unflatten(1, (key_heads, -1)).any(2)
    return seen[..., None]


def four_dimensional(mask: Tensor | None) -> Tensor | None:
    """A mask with leading dimensions of size 1, not expanded."""
    return None if mask is None else mask[(None,) * (4 - mask.ndim)]


def scores(
    q: Tensor,
    k: Tensor,
    scale: float,
    attn_mask: Tensor | None,
    is_causal: bool,
    rows: Sequence[int] | Tensor | None = None,
) -> Iterator[Tensor]:
    """Scaled scores of some rows of all heads after others, -inf where a row may not see; at most 2^21 of them at a time.

    Args:
        q, k: [B, H, L, D] and [B, H_k, M, D].
        scale: factor on q kᵀ.
        attn_mask: bool, four-dimensional, broadcastable to [B, H, L, M].
        is_causal: query i sees keys 0..i.
        rows: which queries, all if None.

    Yields:
        [B, H, R, M] in float32 (float64 for float64), for successive R of the rows.
    """
    dtype = accumulator(q.dtype)
    keys = k.to(dtype).repeat_interleave(q.shape[1] // max(k.shape[1], 1), dim=1).mT
    chosen = torch.arange(q.shape[2], device=q.device) if rows is None else torch.as_tensor(rows, device=q.device)
    size = max(1, _CHUNK // max(1, q.shape[0] * q.shape[1] * k.shape[2]))
    for part in chosen.split(size):
        result = exact(q[:, :, part].to(dtype) @ keys * scale)
        if attn_mask is not None:
            mask = attn_mask if attn_mask.shape[2] == 1 else attn_mask[:, :, part]
            result = result.masked_fill(~mask, -torch.inf)
        if is_causal:
            later = torch.arange(k.shape[2], device=q.device) > part[:, None]
            result = result.masked_fill(later, -torch.inf)
        yield result


@torch.no_grad()
def log_sum_exp(q: Tensor, k: Tensor, scale: float, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
    """Of every row's visible scores, [B, H, L], some rows at a time; -inf in rows that see no key."""
    return torch.cat([part.logsumexp(-1) for part in scores(q, k, scale, attn_mask, is_causal)], dim=-1)
