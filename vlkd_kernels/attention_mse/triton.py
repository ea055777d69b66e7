"""`attention_mse` in Triton: two kernels, loss and dQ by query tiles, dK by key tiles; no map ever in memory.

The rows kernel sweeps the keys once for the log-sum-exps, once for the loss and δ, and once more for dQ. It leaves each
row's log-sum-exps, δ and weight in memory, from which the keys kernel sweeps the queries for dK. Every sum has one owner
and one order, so results repeat bit for bit. The derivation is in README.md.

Shapes: B batch, H heads, L queries, M keys, D head width.
"""

# Triton gives a launch the signature of its kernel, which is not that of a launch.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlkd_kernels.triton_attention import (
    HIDDEN,
    LN_2,
    LOG2_E,
    TileConfig,
    kl_terms,
    online_sum,
    padded,
    scores,
    strided,
    visible_keys,
)
from vlkd_kernels.triton_tiles import load_tile, weighted_dot


@triton.jit
def _rows_kernel(
    q_s, k_s, q_t, k_t, mask, query_mask,
    row_loss, row_stats, grad_q,
    stride_qs_b, stride_qs_h, stride_qs_l, stride_qs_d,
    stride_ks_b, stride_ks_h, stride_ks_m, stride_ks_d,
    stride_qt_b, stride_qt_h, stride_qt_l, stride_qt_d,
    stride_kt_b, stride_kt_h, stride_kt_m, stride_kt_d,
    stride_mask_b, stride_mask_h, stride_mask_l, stride_mask_m,
    stride_query_b, stride_query_l,
    heads, group_s, group_t, queries, keys, tiles,
    scale_s, scale_t,  # of the scores, times log2(e)
    gradient_scale,
    stats_plane,  # elements between the planes of row_stats: B H L
    D_S: tl.constexpr, D_T: tl.constexpr, WIDTH: tl.constexpr, BLOCK_DS: tl.constexpr, BLOCK_DT: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_QUERY_MASK: tl.constexpr, IS_CAUSAL: tl.constexpr,
    KL: tl.constexpr, WITH_GRAD: tl.constexpr,
):  # fmt: skip
    """One tile of query rows of one head: row_loss [B, H, L], row_stats [4, B, H, L] and dQ."""
    start = (tl.program_id(0) % tiles) * BLOCK_L
    bh = (tl.program_id(0) // tiles).to(tl.int64)
    b = bh // heads
    h = bh % heads
    row = start + tl.arange(0, BLOCK_L)
    q_s += b * stride_qs_b + h * stride_qs_h
    q_t += b * stride_qt_b + h * stride_qt_h
    k_s += b * stride_ks_b + (h // group_s) * stride_ks_h
    k_t += b * stride_kt_b + (h // group_t) * stride_kt_h
    mask += b * stride_mask_b + h * stride_mask_h
    dtype: tl.constexpr = q_s.dtype.element_ty  # the teacher is read in its own dtype and rounded to the student's
    end = tl.minimum(keys, start + BLOCK_L) if IS_CAUSAL else keys

    maximum_s = tl.full([BLOCK_L], float("-inf"), tl.float32)
    maximum_t = maximum_s
    total_s = tl.zeros([BLOCK_L], tl.float32)
    total_t = total_s
    seen = tl.zeros([BLOCK_L], tl.int32)
    for first in range(0, end, BLOCK_M):
        visible = visible_keys(
            mask, stride_mask_l, stride_mask_m, row, first + tl.arange(0, BLOCK_M), queries, keys, HAS_MASK, IS_CAUSAL
        )
        scores_s = scale_s * scores(
            q_s, k_s, start, first, queries, keys, stride_qs_l, stride_qs_d, stride_ks_m, stride_ks_d,
            dtype, D_S, BLOCK_L, BLOCK_M, BLOCK_DS,
        )  # fmt: skip
        maximum_s, total_s = online_sum(scores_s, visible, maximum_s, total_s)
        scores_t = scale_t * scores(
            q_t, k_t, start, first, queries, keys, stride_qt_l, stride_qt_d, stride_kt_m, stride_kt_d,
            dtype, D_T, BLOCK_L, BLOCK_M, BLOCK_DT,
        )  # fmt: skip
        maximum_t, total_t = online_sum(scores_t, visible, maximum_t, total_t)
        seen += tl.sum(visible.to(tl.int32), 1)

    counted = seen > 0
    if HAS_QUERY_MASK:
        offsets = b * stride_query_b + row.to(tl.int64) * stride_query_l
        counted = counted & (tl.load(query_mask + offsets, mask=row < queries, other=0) != 0)
    lse_s = tl.where(counted, maximum_s + tl.log2(tl.where(counted, total_s, 1.0)), 0.0)
    lse_t = tl.where(counted, maximum_t + tl.log2(tl.where(counted, total_t, 1.0)), 0.0)

    loss = tl.zeros([BLOCK_L], tl.float32)
    delta = tl.zeros([BLOCK_L], tl.float32)
    for first in range(0, end, BLOCK_M):
        used = counted[:, None] & visible_keys(
            mask, stride_mask_l, stride_mask_m, row, first + tl.arange(0, BLOCK_M), queries, keys, HAS_MASK, IS_CAUSAL
        )
        scores_s = scale_s * scores(
            q_s, k_s, start, first, queries, keys, stride_qs_l, stride_qs_d, stride_ks_m, stride_ks_d,
            dtype, D_S, BLOCK_L, BLOCK_M, BLOCK_DS,
        )  # fmt: skip
        scores_t = scale_t * scores(
            q_t, k_t, start, first, queries, keys, stride_qt_l, stride_qt_d, stride_kt_m, stride_kt_d,
            dtype, D_T, BLOCK_L, BLOCK_M, BLOCK_DT,
        )  # fmt: skip
        log_p = tl.where(used, scores_s - lse_s[:, None], HIDDEN)
        log_t = tl.where(used, scores_t - lse_t[:, None], HIDDEN)
        p = tl.exp2(log_p)
        t = tl.exp2(log_t)
        if KL:
            loss += tl.sum(kl_terms(p, t, (log_t - log_p) * LN_2), 1)
        else:
            loss += tl.sum((p - t) * (p - t), 1)
            delta += tl.sum(p * (p - t), 1)

    weight = tl.where(counted, 1.0, 0.0)
    if not KL:
        weight = weight / tl.maximum(seen, 1).to(tl.float32)  # 1/m
    at = bh * queries + row
    inside = row < queries
    tl.store(row_loss + at, loss * weight, mask=inside)
    tl.store(row_stats + at, weight, mask=inside)
    if not WITH_GRAD:
        return
    tl.store(row_stats + stats_plane + at, lse_s, mask=inside)
    tl.store(row_stats + 2 * stats_plane + at, lse_t, mask=inside)
    tl.store(row_stats + 3 * stats_plane + at, delta, mask=inside)

    accumulator = tl.zeros([BLOCK_L, WIDTH], tl.float32)
    for first in range(0, end, BLOCK_M):
        used = counted[:, None] & visible_keys(
            mask, stride_mask_l, stride_mask_m, row, first + tl.arange(0, BLOCK_M), queries, keys, HAS_MASK, IS_CAUSAL
        )
        scores_s = scale_s * scores(
            q_s, k_s, start, first, queries, keys, stride_qs_l, stride_qs_d, stride_ks_m, stride_ks_d,
            dtype, D_S, BLOCK_L, BLOCK_M, BLOCK_DS,
        )  # fmt: skip
        scores_t = scale_t * scores(
            q_t, k_t, start, first, queries, keys, stride_qt_l, stride_qt_d, stride_kt_m, stride_kt_d,
            dtype, D_T, BLOCK_L, BLOCK_M, BLOCK_DT,
        )  # fmt: skip
        p = tl.exp2(tl.where(used, scores_s - lse_s[:, None], HIDDEN))
        gradient = p - tl.exp2(tl.where(used, scores_t - lse_t[:, None], HIDDEN))
        if not KL:
            gradient = 2.0 * p * (gradient - delta[:, None])
        tile_k = load_tile(k_s, first, keys, stride_ks_m, 0, D_S, stride_ks_d, BLOCK_M, WIDTH)
        accumulator = weighted_dot(gradient, tile_k, accumulator, dtype)

    column = tl.arange(0, WIDTH)
    tl.store(
        grad_q + at[:, None] * D_S + column[None, :],
        accumulator * (weight * gradient_scale)[:, None],
        mask=inside[:, None] & (column < D_S)[None, :],
    )


@triton.jit
def _keys_kernel(
    q_s, k_s, q_t, k_t, mask,
    row_stats, grad_k,
    stride_qs_b, stride_qs_h, stride_qs_l, stride_qs_d,
    stride_ks_b, stride_ks_h, stride_ks_m, stride_ks_d,
    stride_qt_b, stride_qt_h, stride_qt_l, stride_qt_d,
    stride_kt_b, stride_kt_h, stride_kt_m, stride_kt_d,
    stride_mask_b, stride_mask_h, stride_mask_l, stride_mask_m,
    heads, group_s, group_t, queries, keys, tiles,
    scale_s, scale_t, gradient_scale, stats_plane,
    D_S: tl.constexpr, D_T: tl.constexpr, WIDTH: tl.constexpr, BLOCK_DS: tl.constexpr, BLOCK_DT: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
    HAS_MASK: tl.constexpr, IS_CAUSAL: tl.constexpr, KL: tl.constexpr,
):  # fmt: skip
    """One tile of keys of one student key head: dK, summed over the query heads that share it."""
    start = (tl.program_id(0) % tiles) * BLOCK_M
    key_heads = heads // group_s
    bk = (tl.program_id(0) // tiles).to(tl.int64)
    b = bk // key_heads
    k_s += b * stride_ks_b + (bk % key_heads) * stride_ks_h
    column = start + tl.arange(0, BLOCK_M)
    dtype: tl.constexpr = q_s.dtype.element_ty
    accumulator = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    begin = (start // BLOCK_L) * BLOCK_L if IS_CAUSAL else 0
    for member in range(0, group_s):
        h = (bk % key_heads) * group_s + member
        head_qs = q_s + b * stride_qs_b + h * stride_qs_h
        head_qt = q_t + b * stride_qt_b + h * stride_qt_h
        head_kt = k_t + b * stride_kt_b + (h // group_t) * stride_kt_h
        head_mask = mask + b * stride_mask_b + h * stride_mask_h
        head_stats = row_stats + (b * heads + h) * queries
        for first in range(begin, queries, BLOCK_L):
            row = first + tl.arange(0, BLOCK_L)
            inside = row < queries
            weight = tl.load(head_stats + row, mask=inside, other=0.0)  # 0: the row does not count
            lse_s = tl.load(head_stats + stats_plane + row, mask=inside, other=0.0)
            lse_t = tl.load(head_stats + 2 * stats_plane + row, mask=inside, other=0.0)
            used = (weight > 0)[:, None] & visible_keys(
                head_mask, stride_mask_l, stride_mask_m, row, column, queries, keys, HAS_MASK, IS_CAUSAL
            )
            scores_s = scale_s * scores(
                head_qs, k_s, first, start, queries, keys, stride_qs_l, stride_qs_d, stride_ks_m, stride_ks_d,
                dtype, D_S, BLOCK_L, BLOCK_M, BLOCK_DS,
            )  # fmt: skip
            scores_t = scale_t * scores(
                head_qt, head_kt, first, start, queries, keys, stride_qt_l, stride_qt_d, stride_kt_m, stride_kt_d,
                dtype, D_T, BLOCK_L, BLOCK_M, BLOCK_DT,
            )  # fmt: skip
            p = tl.exp2(tl.where(used, scores_s - lse_s[:, None], HIDDEN))
            gradient = p - tl.exp2(tl.where(used, scores_t - lse_t[:, None], HIDDEN))
            if not KL:
                delta = tl.load(head_stats + 3 * stats_plane + row, mask=inside, other=0.0)
                gradient = 2.0 * weight[:, None] * p * (gradient - delta[:, None])
            tile_q = load_tile(head_qs, first, queries, stride_qs_l, 0, D_S, stride_qs_d, BLOCK_L, WIDTH)
            accumulator = weighted_dot(tl.trans(gradient), tile_q, accumulator, dtype)

    at = bk * keys + column
    width = tl.arange(0, WIDTH)
    tl.store(
        grad_k + at[:, None] * D_S + width[None, :],
        accumulator * gradient_scale,
        mask=(column < keys)[:, None] & (width < D_S)[None, :],
    )


def tile_config(kernel: str, dtype: torch.dtype, width: int) -> TileConfig:
    """The default tile of the "rows" or the "keys" kernel for a dtype and the wider of the two head widths.

    The largest that spill nothing on sm_80, sm_90 and sm_100; `benchmarks/static_table.json` has the registers.
    """
    if dtype == torch.float32:
        return TileConfig(16, 32, 32, 4, 1) if width <= 64 else TileConfig(16, 16, 32, 4, 1)
    if width <= 64:
        return TileConfig(64, 64, 64, 8, 2)
    return TileConfig(64, 64 if kernel == "rows" or width <= 128 else 32, 64, 8, 1)


def launch(
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
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss sum, count, and the gradients of the loss sum for q_s and k_s, as `reference.forward` gives them."""
    batch, heads, queries, width_s = q_s.shape
    key_heads, keys, width_t = k_s.shape[1], k_s.shape[2], q_t.shape[3]
    float32 = {"dtype": torch.float32, "device": q_s.device}
    row_loss = torch.empty(batch, heads, queries, **float32)
    row_stats = torch.empty(4 if with_grad else 1, batch, heads, queries, **float32)
    grad_q = torch.empty(q_s.shape if with_grad else 0, **float32)
    grad_k = torch.empty(k_s.shape if with_grad else 0, **float32)
    mask = (q_s, (0,) * 4) if attn_mask is None else strided(attn_mask, (batch, heads, queries, keys))
    query = (q_s, (0,) * 2) if query_mask is None else strided(query_mask, (batch, queries))
    strides = (*q_s.stride(), *k_s.stride(), *q_t.stride(), *k_t.stride(), *mask[1])
    shape = (heads, heads // key_heads, heads // k_t.shape[1], queries, keys)
    numbers = (scale_s * LOG2_E, scale_t * LOG2_E, scale_s, row_loss.numel())
    flags = {
        "D_S": width_s,
        "D_T": width_t,
        "WIDTH": padded(width_s),
        "HAS_MASK": attn_mask is not None,
        "IS_CAUSAL": is_causal,
        "KL": distance == "kl",
    }
    options = _options("rows", q_s.dtype, width_s, width_t)
    tiles = triton.cdiv(queries, options["BLOCK_L"])
    with torch.cuda.device_of(q_s):
        _rows_kernel[(batch * heads * tiles,)](
            q_s, k_s, q_t, k_t, mask[0], query[0], row_loss, row_stats, grad_q, *strides, *query[1], *shape, tiles, *numbers,
            HAS_QUERY_MASK=query_mask is not None, WITH_GRAD=with_grad, **flags, **options,
        )  # fmt: skip
        if with_grad:
            options = _options("keys", q_s.dtype, width_s, width_t)
            tiles = triton.cdiv(keys, options["BLOCK_M"])
            _keys_kernel[(batch * key_heads * tiles,)](
                q_s, k_s, q_t, k_t, mask[0], row_stats, grad_k, *strides, *shape, tiles, *numbers, **flags, **options
            )
    return row_loss.sum(), (row_stats[0] > 0).sum().float(), grad_q, grad_k


forward = torch.library.custom_op("vlkd_triton::attention_mse", launch, mutates_args=())


@forward.register_fake
def _(q_s, k_s, q_t, k_t, scale_s, scale_t, attn_mask, query_mask, is_causal, distance, with_grad):
    scalar = q_s.new_empty((), dtype=torch.float32)
    grad_q = q_s.new_empty(q_s.shape if with_grad else 0, dtype=torch.float32)
    grad_k = k_s.new_empty(k_s.shape if with_grad else 0, dtype=torch.float32)
    return scalar, torch.empty_like(scalar), grad_q, grad_k


def _options(kernel: str, dtype: torch.dtype, width_s: int, width_t: int) -> dict[str, int]:
    """A kernel's tile as the arguments of its launch."""
    config = tile_config(kernel, dtype, max(width_s, width_t))
    return {
        "BLOCK_DS": min(padded(width_s), config.block_d),
        "BLOCK_DT": min(padded(width_t), config.block_d),
        "BLOCK_L": config.block_l,
        "BLOCK_M": config.block_m,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
