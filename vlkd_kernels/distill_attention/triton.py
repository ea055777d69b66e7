"""`distill_attention` in Triton: flash attention whose backward also carries the loss of the maps; no map ever in memory.

The forward kernel owns a tile of query rows: one sweep over the keys for the output and both log-sum-exps, one more for the
loss and δ. The backward has two kernels, one owns query rows (dQ), one owns keys (dK and dV); the loss costs them the
teacher's scores and one exponential an entry. Every sum has one owner and one order. The derivation is in README.md.

Shapes: B batch, H heads, L queries, M keys, D head width.
"""

# Triton gives a launch the signature of its kernel, which is not that of a launch.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

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
from vlkd_kernels.triton_tiles import load_tile, rounded, weighted_dot


@triton.jit
def _kept(seed, bh, row, column, dropout_p, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr):
    """1 / (1 - p) where the output keeps an entry of the map, else 0: Philox of its place, so that it can be made again."""
    zero = tl.zeros([BLOCK_L, BLOCK_M], tl.uint32)
    key = tl.load(seed).to(tl.uint64)
    i = row.to(tl.uint32)[:, None] + zero
    j = column.to(tl.uint32)[None, :] + zero
    random = tl.philox(key, j, i, zero + bh.to(tl.uint32), zero)[0]
    return tl.where(tl.uint_to_uniform_float(random) >= dropout_p, 1.0 / (1.0 - dropout_p), 0.0)


@triton.jit
def _forward_kernel(
    q_s, k_s, v_s, q_t, k_t, mask, query_mask, teacher_lse, seed,
    out, row_loss, row_stats,
    stride_qs_b, stride_qs_h, stride_qs_l, stride_qs_d,
    stride_ks_b, stride_ks_h, stride_ks_m, stride_ks_d,
    stride_vs_b, stride_vs_h, stride_vs_m, stride_vs_d,
    stride_qt_b, stride_qt_h, stride_qt_l, stride_qt_d,
    stride_kt_b, stride_kt_h, stride_kt_m, stride_kt_d,
    stride_mask_b, stride_mask_h, stride_mask_l, stride_mask_m,
    stride_lse_b, stride_lse_h, stride_lse_l,
    stride_query_b, stride_query_l,
    heads, group_s, group_t, queries, keys, tiles,
    scale_s, scale_t,  # of the scores, times log2(e)
    dropout_p,
    stats_plane,  # elements between the planes of row_stats: B H L
    D_S: tl.constexpr, D_T: tl.constexpr, D_V: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_DS: tl.constexpr, BLOCK_DT: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_QUERY_MASK: tl.constexpr, HAS_LSE: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    IS_CAUSAL: tl.constexpr, KL: tl.constexpr,
):  # fmt: skip
    """One tile of query rows of one head: out, row_loss and row_stats (1/m or 0, both log-sum-exps in base 2, δ)."""
    start = (tl.program_id(0) % tiles) * BLOCK_L
    bh = (tl.program_id(0) // tiles).to(tl.int64)
    b = bh // heads
    h = bh % heads
    row = start + tl.arange(0, BLOCK_L)
    inside = row < queries
    at = bh * queries + row
    q_s += b * stride_qs_b + h * stride_qs_h
    q_t += b * stride_qt_b + h * stride_qt_h
    k_s += b * stride_ks_b + (h // group_s) * stride_ks_h
    v_s += b * stride_vs_b + (h // group_s) * stride_vs_h
    k_t += b * stride_kt_b + (h // group_t) * stride_kt_h
    mask += b * stride_mask_b + h * stride_mask_h
    dtype: tl.constexpr = q_s.dtype.element_ty
    end = tl.minimum(keys, start + BLOCK_L) if IS_CAUSAL else keys

    maximum_s = tl.full([BLOCK_L], float("-inf"), tl.float32)
    maximum_t = maximum_s
    total_s = tl.zeros([BLOCK_L], tl.float32)
    total_t = total_s
    seen = tl.zeros([BLOCK_L], tl.int32)
    accumulator = tl.zeros([BLOCK_L, WIDTH_V], tl.float32)
    for first in range(0, end, BLOCK_M):
        column = first + tl.arange(0, BLOCK_M)
        visible = visible_keys(mask, stride_mask_l, stride_mask_m, row, column, queries, keys, HAS_MASK, IS_CAUSAL)
        scores_s = scale_s * scores(
            q_s, k_s, start, first, queries, keys, stride_qs_l, stride_qs_d, stride_ks_m, stride_ks_d,
            dtype, D_S, BLOCK_L, BLOCK_M, BLOCK_DS,
        )  # fmt: skip
        before = maximum_s
        maximum_s, total_s = online_sum(scores_s, visible, maximum_s, total_s)
        shift = tl.where(maximum_s == float("-inf"), 0.0, maximum_s)
        p = tl.exp2(tl.where(visible, scores_s, float("-inf")) - shift[:, None])
        if HAS_DROPOUT:
            p = p * _kept(seed, bh, row, column, dropout_p, BLOCK_L, BLOCK_M)
        tile_v = load_tile(v_s, first, keys, stride_vs_m, 0, D_V, stride_vs_d, BLOCK_M, WIDTH_V)
        accumulator = weighted_dot(p, tile_v, accumulator * tl.exp2(before - shift)[:, None], dtype)
        if not HAS_LSE:
            scores_t = scale_t * scores(
                q_t, k_t, start, first, queries, keys, stride_qt_l, stride_qt_d, stride_kt_m, stride_kt_d,
                dtype, D_T, BLOCK_L, BLOCK_M, BLOCK_DT,
            )  # fmt: skip
            maximum_t, total_t = online_sum(scores_t, visible, maximum_t, total_t)
        seen += tl.sum(visible.to(tl.int32), 1)

    sees = seen > 0
    lse_s = tl.where(sees, maximum_s + tl.log2(tl.where(sees, total_s, 1.0)), float("-inf"))
    if HAS_LSE:
        offsets = b * stride_lse_b + h * stride_lse_h + row.to(tl.int64) * stride_lse_l
        lse_t = tl.load(teacher_lse + offsets, mask=inside & sees, other=0.0).to(tl.float32) / LN_2
    else:
        lse_t = tl.where(sees, maximum_t + tl.log2(tl.where(sees, total_t, 1.0)), 0.0)
    column = tl.arange(0, WIDTH_V)
    tl.store(
        out + at[:, None] * D_V + column[None, :],
        rounded(accumulator / tl.where(sees, total_s, 1.0)[:, None], dtype),
        mask=inside[:, None] & (column < D_V)[None, :],
    )

    counted = sees
    if HAS_QUERY_MASK:
        offsets = b * stride_query_b + row.to(tl.int64) * stride_query_l
        counted = counted & (tl.load(query_mask + offsets, mask=inside, other=0) != 0)
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
    tl.store(row_loss + at, loss * weight, mask=inside)
    tl.store(row_stats + at, weight, mask=inside)
    tl.store(row_stats + stats_plane + at, lse_s, mask=inside)
    tl.store(row_stats + 2 * stats_plane + at, lse_t, mask=inside)
    tl.store(row_stats + 3 * stats_plane + at, delta, mask=inside)


@triton.jit
def _score_gradient(
    q_s, k_s, v_s, q_t, k_t, grad_out, seed, bh, row_first, column_first, visible, lse_s, lse_t, coefficient, total,
    stride_qs_l, stride_qs_d, stride_ks_m, stride_ks_d, stride_vs_m, stride_vs_d,
    stride_qt_l, stride_qt_d, stride_kt_m, stride_kt_d, stride_go_l, stride_go_d,
    queries, keys, scale_s, scale_t, dropout_p,
    dtype: tl.constexpr, D_S: tl.constexpr, D_T: tl.constexpr, D_V: tl.constexpr,
    BLOCK_DS: tl.constexpr, BLOCK_DT: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, KL: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of the student's scores, and that tile of its map after dropout."""
    scores_s = scale_s * scores(
        q_s, k_s, row_first, column_first, queries, keys, stride_qs_l, stride_qs_d, stride_ks_m, stride_ks_d,
        dtype, D_S, BLOCK_L, BLOCK_M, BLOCK_DS,
    )  # fmt: skip
    scores_t = scale_t * scores(
        q_t, k_t, row_first, column_first, queries, keys, stride_qt_l, stride_qt_d, stride_kt_m, stride_kt_d,
        dtype, D_T, BLOCK_L, BLOCK_M, BLOCK_DT,
    )  # fmt: skip
    p = tl.exp2(tl.where(visible, scores_s - lse_s[:, None], HIDDEN))
    t = tl.exp2(tl.where(visible, scores_t - lse_t[:, None], HIDDEN))
    along_v = scores(
        grad_out, v_s, row_first, column_first, queries, keys, stride_go_l, stride_go_d, stride_vs_m, stride_vs_d,
        dtype, D_V, BLOCK_L, BLOCK_M, BLOCK_DV,
    )  # fmt: skip
    kept = p
    if HAS_DROPOUT:
        factor = _kept(
            seed,
            bh,
            row_first + tl.arange(0, BLOCK_L),
            column_first + tl.arange(0, BLOCK_M),
            dropout_p,
            BLOCK_L,
            BLOCK_M,
        )
        kept = p * factor
        along_v = along_v * factor
    if KL:
        gradient = p * (along_v - total[:, None]) + coefficient[:, None] * (p - t)
    else:
        gradient = p * (along_v - total[:, None] + coefficient[:, None] * (p - t))
    return gradient, kept


@triton.jit
def _queries_kernel(
    q_s, k_s, v_s, q_t, k_t, mask, grad_out, seed, row_stats, row_terms, grad_q,
    stride_qs_b, stride_qs_h, stride_qs_l, stride_qs_d,
    stride_ks_b, stride_ks_h, stride_ks_m, stride_ks_d,
    stride_vs_b, stride_vs_h, stride_vs_m, stride_vs_d,
    stride_qt_b, stride_qt_h, stride_qt_l, stride_qt_d,
    stride_kt_b, stride_kt_h, stride_kt_m, stride_kt_d,
    stride_mask_b, stride_mask_h, stride_mask_l, stride_mask_m,
    stride_go_b, stride_go_h, stride_go_l, stride_go_d,
    heads, group_s, group_t, queries, keys, tiles,
    scale_s, scale_t, gradient_scale, dropout_p, stats_plane,
    D_S: tl.constexpr, D_T: tl.constexpr, D_V: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_DS: tl.constexpr, BLOCK_DT: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_DROPOUT: tl.constexpr, IS_CAUSAL: tl.constexpr, KL: tl.constexpr,
):  # fmt: skip
    """One tile of query rows of one head: dQ. row_terms holds c, and D + c δ (KL: D)."""
    start = (tl.program_id(0) % tiles) * BLOCK_L
    bh = (tl.program_id(0) // tiles).to(tl.int64)
    b = bh // heads
    h = bh % heads
    row = start + tl.arange(0, BLOCK_L)
    inside = row < queries
    at = bh * queries + row
    q_s += b * stride_qs_b + h * stride_qs_h
    q_t += b * stride_qt_b + h * stride_qt_h
    k_s += b * stride_ks_b + (h // group_s) * stride_ks_h
    v_s += b * stride_vs_b + (h // group_s) * stride_vs_h
    k_t += b * stride_kt_b + (h // group_t) * stride_kt_h
    mask += b * stride_mask_b + h * stride_mask_h
    grad_out += b * stride_go_b + h * stride_go_h
    dtype: tl.constexpr = q_s.dtype.element_ty
    end = tl.minimum(keys, start + BLOCK_L) if IS_CAUSAL else keys
    lse_s = tl.load(row_stats + stats_plane + at, mask=inside, other=0.0)
    lse_t = tl.load(row_stats + 2 * stats_plane + at, mask=inside, other=0.0)
    coefficient = tl.load(row_terms + at, mask=inside, other=0.0)
    total = tl.load(row_terms + stats_plane + at, mask=inside, other=0.0)
    accumulator = tl.zeros([BLOCK_L, WIDTH], tl.float32)
    for first in range(0, end, BLOCK_M):
        visible = visible_keys(
            mask, stride_mask_l, stride_mask_m, row, first + tl.arange(0, BLOCK_M), queries, keys, HAS_MASK, IS_CAUSAL
        )
        gradient, _ = _score_gradient(
            q_s, k_s, v_s, q_t, k_t, grad_out, seed, bh, start, first, visible, lse_s, lse_t, coefficient, total,
            stride_qs_l, stride_qs_d, stride_ks_m, stride_ks_d, stride_vs_m, stride_vs_d,
            stride_qt_l, stride_qt_d, stride_kt_m, stride_kt_d, stride_go_l, stride_go_d,
            queries, keys, scale_s, scale_t, dropout_p,
            dtype, D_S, D_T, D_V, BLOCK_DS, BLOCK_DT, BLOCK_DV, BLOCK_L, BLOCK_M, HAS_DROPOUT, KL,
        )  # fmt: skip
        tile_k = load_tile(k_s, first, keys, stride_ks_m, 0, D_S, stride_ks_d, BLOCK_M, WIDTH)
        accumulator = weighted_dot(gradient, tile_k, accumulator, dtype)
    column = tl.arange(0, WIDTH)
    tl.store(
        grad_q + at[:, None] * D_S + column[None, :],
        rounded(accumulator * gradient_scale, dtype),
        mask=inside[:, None] & (column < D_S)[None, :],
    )


@triton.jit
def _keys_kernel(
    q_s, k_s, v_s, q_t, k_t, mask, grad_out, seed, row_stats, row_terms, grad_k, grad_v,
    stride_qs_b, stride_qs_h, stride_qs_l, stride_qs_d,
    stride_ks_b, stride_ks_h, stride_ks_m, stride_ks_d,
    stride_vs_b, stride_vs_h, stride_vs_m, stride_vs_d,
    stride_qt_b, stride_qt_h, stride_qt_l, stride_qt_d,
    stride_kt_b, stride_kt_h, stride_kt_m, stride_kt_d,
    stride_mask_b, stride_mask_h, stride_mask_l, stride_mask_m,
    stride_go_b, stride_go_h, stride_go_l, stride_go_d,
    heads, group_s, group_t, queries, keys, tiles,
    scale_s, scale_t, gradient_scale, dropout_p, stats_plane,
    D_S: tl.constexpr, D_T: tl.constexpr, D_V: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_DS: tl.constexpr, BLOCK_DT: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_DROPOUT: tl.constexpr, IS_CAUSAL: tl.constexpr, KL: tl.constexpr,
):  # fmt: skip
    """One tile of keys of one student key head: dK and dV, summed over the query heads that share it."""
    start = (tl.program_id(0) % tiles) * BLOCK_M
    key_heads = heads // group_s
    bk = (tl.program_id(0) // tiles).to(tl.int64)
    b = bk // key_heads
    k_s += b * stride_ks_b + (bk % key_heads) * stride_ks_h
    v_s += b * stride_vs_b + (bk % key_heads) * stride_vs_h
    column = start + tl.arange(0, BLOCK_M)
    dtype: tl.constexpr = q_s.dtype.element_ty
    sum_k = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    sum_v = tl.zeros([BLOCK_M, WIDTH_V], tl.float32)
    begin = (start // BLOCK_L) * BLOCK_L if IS_CAUSAL else 0
    for member in range(0, group_s):
        h = (bk % key_heads) * group_s + member
        bh = b * heads + h
        head_qs = q_s + b * stride_qs_b + h * stride_qs_h
        head_qt = q_t + b * stride_qt_b + h * stride_qt_h
        head_kt = k_t + b * stride_kt_b + (h // group_t) * stride_kt_h
        head_mask = mask + b * stride_mask_b + h * stride_mask_h
        head_go = grad_out + b * stride_go_b + h * stride_go_h
        for first in range(begin, queries, BLOCK_L):
            row = first + tl.arange(0, BLOCK_L)
            inside = row < queries
            at = bh * queries + row
            visible = visible_keys(
                head_mask, stride_mask_l, stride_mask_m, row, column, queries, keys, HAS_MASK, IS_CAUSAL
            )
            lse_s = tl.load(row_stats + stats_plane + at, mask=inside, other=0.0)
            lse_t = tl.load(row_stats + 2 * stats_plane + at, mask=inside, other=0.0)
            coefficient = tl.load(row_terms + at, mask=inside, other=0.0)
            total = tl.load(row_terms + stats_plane + at, mask=inside, other=0.0)
            gradient, kept = _score_gradient(
                head_qs, k_s, v_s, head_qt, head_kt, head_go, seed, bh, first, start, visible, lse_s, lse_t, coefficient,
                total, stride_qs_l, stride_qs_d, stride_ks_m, stride_ks_d, stride_vs_m, stride_vs_d,
                stride_qt_l, stride_qt_d, stride_kt_m, stride_kt_d, stride_go_l, stride_go_d,
                queries, keys, scale_s, scale_t, dropout_p,
                dtype, D_S, D_T, D_V, BLOCK_DS, BLOCK_DT, BLOCK_DV, BLOCK_L, BLOCK_M, HAS_DROPOUT, KL,
            )  # fmt: skip
            tile_q = load_tile(head_qs, first, queries, stride_qs_l, 0, D_S, stride_qs_d, BLOCK_L, WIDTH)
            tile_go = load_tile(head_go, first, queries, stride_go_l, 0, D_V, stride_go_d, BLOCK_L, WIDTH_V)
            sum_k = weighted_dot(tl.trans(gradient), tile_q, sum_k, dtype)
            sum_v = weighted_dot(tl.trans(kept), tile_go, sum_v, dtype)

    at_key = bk * keys + column
    width = tl.arange(0, WIDTH)
    tl.store(
        grad_k + at_key[:, None] * D_S + width[None, :],
        rounded(sum_k * gradient_scale, dtype),
        mask=(column < keys)[:, None] & (width < D_S)[None, :],
    )
    width_v = tl.arange(0, WIDTH_V)
    tl.store(
        grad_v + at_key[:, None] * D_V + width_v[None, :],
        rounded(sum_v, dtype),
        mask=(column < keys)[:, None] & (width_v < D_V)[None, :],
    )


def tile_config(kernel: str, dtype: torch.dtype, width: int) -> TileConfig:
    """The default tile of the "forward", "queries" or "keys" kernel for a dtype and the widest of the head widths.

    The largest that spill nothing on sm_80, sm_90 and sm_100; `benchmarks/static_table.json` has the registers.
    """
    if dtype == torch.float32:
        if kernel == "queries" and width <= 64:
            return TileConfig(32, 16, 32, 4, 1)
        return TileConfig(16, 16, 32, 8 if kernel == "forward" and width > 128 else 4, 1)
    return TileConfig(64, 32, 64, 8, 1) if width <= 128 else TileConfig(64, 16, 32, 8, 1)


def launch(
    q_s: Tensor,
    k_s: Tensor,
    v_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    lse_t: Tensor | None,
    attn_mask: Tensor | None,
    query_mask: Tensor | None,
    seed: Tensor | None,
    scale_s: float,
    scale_t: float,
    dropout_p: float,
    is_causal: bool,
    distance: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, loss sum, count and the four numbers of every row that the backward needs, [4, B, H, L]."""
    out = q_s.new_empty(*q_s.shape[:3], v_s.shape[3])
    row_loss = torch.empty(q_s.shape[:3], dtype=torch.float32, device=q_s.device)
    row_stats = torch.empty(4, *q_s.shape[:3], dtype=torch.float32, device=q_s.device)
    tensors, strides, shape, flags = _common(q_s, k_s, v_s, q_t, k_t, attn_mask, seed, is_causal, distance)
    batch, heads, queries = q_s.shape[:3]
    query = (q_s, (0,) * 2) if query_mask is None else strided(query_mask, (batch, queries))
    lse = (row_loss, (0,) * 3) if lse_t is None else (lse_t, lse_t.stride())
    options = _options("forward", q_s, v_s, q_t)
    del options["BLOCK_DV"], flags["WIDTH"]
    tiles = triton.cdiv(queries, options["BLOCK_L"])
    with torch.cuda.device_of(q_s):
        _forward_kernel[(batch * heads * tiles,)](
            *tensors[:6], query[0], lse[0], tensors[6], out, row_loss, row_stats,
            *strides, *lse[1], *query[1], *shape, tiles, scale_s * LOG2_E, scale_t * LOG2_E, dropout_p, row_loss.numel(),
            HAS_QUERY_MASK=query_mask is not None, HAS_LSE=lse_t is not None, **flags, **options,
        )  # fmt: skip
    return out, row_loss.sum(), (row_stats[0] > 0).sum().float(), row_stats


def launch_backward(
    grad_out: Tensor,
    grad_loss: Tensor,
    out: Tensor,
    row_stats: Tensor,
    q_s: Tensor,
    k_s: Tensor,
    v_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    attn_mask: Tensor | None,
    seed: Tensor | None,
    scale_s: float,
    scale_t: float,
    dropout_p: float,
    is_causal: bool,
    distance: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q_s, k_s and v_s, in their dtype."""
    grad_out = grad_out.to(q_s.dtype)
    weight, delta = row_stats[0], row_stats[3]
    along_out = (grad_out.float() * out.float()).sum(-1)
    if distance == "kl":
        row_terms = torch.stack([weight * grad_loss, along_out])
    else:
        coefficient = 2 * weight * grad_loss
        row_terms = torch.stack([coefficient, along_out + coefficient * delta])
    grads = _empty_gradients(q_s, k_s, v_s)
    tensors, strides, shape, flags = _common(q_s, k_s, v_s, q_t, k_t, attn_mask, seed, is_causal, distance)
    batch, heads, queries = q_s.shape[:3]
    arguments = (*tensors[:6], grad_out, tensors[6], row_stats, row_terms)
    numbers = (scale_s * LOG2_E, scale_t * LOG2_E, scale_s, dropout_p, weight.numel())
    with torch.cuda.device_of(q_s):
        options = _options("queries", q_s, v_s, q_t)
        tiles = triton.cdiv(queries, options["BLOCK_L"])
        rows_flags = {name: value for name, value in flags.items() if name != "WIDTH_V"}
        _queries_kernel[(batch * heads * tiles,)](
            *arguments, grads[0], *strides, *grad_out.stride(), *shape, tiles, *numbers, **rows_flags, **options
        )
        options = _options("keys", q_s, v_s, q_t)
        tiles = triton.cdiv(k_s.shape[2], options["BLOCK_M"])
        _keys_kernel[(batch * k_s.shape[1] * tiles,)](
            *arguments, grads[1], grads[2], *strides, *grad_out.stride(), *shape, tiles, *numbers, **flags, **options
        )
    return grads


def _empty_gradients(q_s: Tensor, k_s: Tensor, v_s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_s, k_s, v_s))
    return grad_q, grad_k, grad_v


def _common(
    q_s: Tensor, k_s: Tensor, v_s: Tensor, q_t: Tensor, k_t: Tensor, attn_mask: Tensor | None, seed: Tensor | None,
    is_causal: bool, distance: str,
) -> tuple[tuple[Tensor, ...], tuple[int, ...], tuple[int, ...], dict[str, Any]]:  # fmt: skip
    """What all three kernels take: tensors (queries, keys, values, mask, seed), strides, shape and flags."""
    batch, heads, queries, width_s = q_s.shape
    keys = k_s.shape[2]
    mask = (q_s, (0,) * 4) if attn_mask is None else strided(attn_mask, (batch, heads, queries, keys))
    tensors = (q_s, k_s, v_s, q_t, k_t, mask[0], q_s if seed is None else seed)
    strides = tuple(stride for x in tensors[:5] for stride in x.stride()) + tuple(mask[1])
    flags = {
        "D_S": width_s,
        "D_T": q_t.shape[3],
        "D_V": v_s.shape[3],
        "WIDTH": padded(width_s),
        "WIDTH_V": padded(v_s.shape[3]),
        "HAS_MASK": attn_mask is not None,
        "HAS_DROPOUT": seed is not None,
        "IS_CAUSAL": is_causal,
        "KL": distance == "kl",
    }
    return tensors, strides, (heads, heads // k_s.shape[1], heads // k_t.shape[1], queries, keys), flags


def _options(kernel: str, q_s: Tensor, v_s: Tensor, q_t: Tensor) -> dict[str, int]:
    """A kernel's tile as the arguments of its launch."""
    widths = {"BLOCK_DS": q_s.shape[3], "BLOCK_DT": q_t.shape[3], "BLOCK_DV": v_s.shape[3]}
    config = tile_config(kernel, q_s.dtype, max(widths.values()))
    return {name: min(padded(width), config.block_d) for name, width in widths.items()} | {
        "BLOCK_L": config.block_l,
        "BLOCK_M": config.block_m,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }


_forward = torch.library.custom_op("vlkd_triton::distill_attention", launch, mutates_args=())
_backward = torch.library.custom_op("vlkd_triton::distill_attention_backward", launch_backward, mutates_args=())


@_forward.register_fake
def _(q_s, k_s, v_s, q_t, k_t, lse_t, attn_mask, query_mask, seed, scale_s, scale_t, dropout_p, is_causal, distance):
    scalar = q_s.new_empty((), dtype=torch.float32)
    row_stats = q_s.new_empty(4, *q_s.shape[:3], dtype=torch.float32)
    return q_s.new_empty(*q_s.shape[:3], v_s.shape[3]), scalar, torch.empty_like(scalar), row_stats


@_backward.register_fake
def _(grad_out, grad_loss, out, row_stats, q_s, k_s, v_s, *_rest):
    return _empty_gradients(q_s, k_s, v_s)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q_s, k_s, v_s, q_t, k_t, _, attn_mask, _, seed, *numbers = inputs
    out, _, _, row_stats = output
    ctx.save_for_backward(out, row_stats, q_s, k_s, v_s, q_t, k_t, attn_mask, seed)
    ctx.numbers = numbers


def _differentiate(ctx: Any, grad_out: Tensor, grad_loss: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
    out, row_stats, *tensors = ctx.saved_tensors
    grads = _backward(grad_out, grad_loss, out, row_stats, *tensors, *ctx.numbers)
    return (*grads, *(None for _ in range(11)))


_forward.register_autograd(_differentiate, setup_context=_keep_for_backward)


def forward(
    q_s: Tensor,
    k_s: Tensor,
    v_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    dropout_p: float,
    scale_s: float,
    scale_t: float,
    attn_mask: Tensor | None,
    query_mask: Tensor | None,
    is_causal: bool,
    distance: str,
    lse_t: Tensor | None,
    return_lse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Output, loss sum, count, and the student's log-sum-exp if it is wanted."""
    # The seed stays on the device and comes from its generator, so that a CUDA graph draws anew at every replay.
    seed = torch.randint(2**62, (1,), device=q_s.device) if dropout_p > 0 else None
    out, loss, count, row_stats = _forward(
        q_s, k_s, v_s, q_t, k_t, lse_t, attn_mask, query_mask, seed, scale_s, scale_t, dropout_p, is_causal, distance
    )
    lse = row_stats[1].detach() * (1 / LOG2_E) if return_lse else None
    return out, loss, count.detach(), lse
