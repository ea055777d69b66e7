"""The Triton kernels of `distill_attention`; `triton.py` launches them, README.md has the derivation.

The forward kernel owns a tile of query rows: one sweep over the keys for the output and both log-sum-exps, one more for the
loss and δ. The backward has two kernels, one owns query rows (dQ), one owns keys (dK and dV); the loss costs them the
teacher's scores and one exponential an entry. Every sum has one owner and one order.

Shapes: B batch, H heads, L queries, M keys, D head width.
"""

# In a kernel every number that is written out is a constexpr.
# pyright: reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl

from vlkd_kernels.triton_attention import HIDDEN, LN_2, any_row, kl_terms, online_sum, scores, visible_keys
from vlkd_kernels.triton_tiles import exact, load_tile, plane, rounded, weighted_dot


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
def forward_kernel(
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
    MASK: tl.constexpr, HAS_QUERY_MASK: tl.constexpr, HAS_LSE: tl.constexpr, HAS_DROPOUT: tl.constexpr,
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
        visible = visible_keys(mask, stride_mask_l, stride_mask_m, row, column, queries, keys, MASK, IS_CAUSAL)
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
        seen_keys = any_row(visible) if MASK != "none" or IS_CAUSAL else None
        tile_v = load_tile(v_s, first, keys, stride_vs_m, 0, D_V, stride_vs_d, BLOCK_M, WIDTH_V, seen_keys)
        if MASK == "full" or IS_CAUSAL:  # a value that is no number reaches the rows that see it, not all of the tile
            nothing = tile_v.to(tl.float32) * 0.0
            p += tl.where(visible, tl.sum(nothing, 1)[None, :], 0.0)
            tile_v = tl.where(nothing == 0.0, tile_v, 0.0)
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
        lse_t = exact(tl.load(teacher_lse + offsets, mask=inside & sees, other=0.0).to(tl.float32)) / LN_2
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
            mask, stride_mask_l, stride_mask_m, row, first + tl.arange(0, BLOCK_M), queries, keys, MASK, IS_CAUSAL
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
    tl.store(plane(row_stats, 1, stats_plane) + at, lse_s, mask=inside)
    tl.store(plane(row_stats, 2, stats_plane) + at, lse_t, mask=inside)
    tl.store(plane(row_stats, 3, stats_plane) + at, delta, mask=inside)


@triton.jit
def _score_gradient(
    q_s, k_s, v_s, q_t, k_t, grad_out, seed, bh, row_first, column_first, used, lse_s, lse_t, coefficient, total, taken,
    stride_qs_l, stride_qs_d, stride_ks_m, stride_ks_d, stride_vs_m, stride_vs_d,
    stride_qt_l, stride_qt_d, stride_kt_m, stride_kt_d, stride_go_l, stride_go_d,
    queries, keys, scale_s, scale_t, dropout_p,
    dtype: tl.constexpr, D_S: tl.constexpr, D_T: tl.constexpr, D_V: tl.constexpr,
    BLOCK_DS: tl.constexpr, BLOCK_DT: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, KL: tl.constexpr,
    used_q=None, used_k=None,
):  # fmt: skip
    """The gradient of a tile of the student's scores, and that tile of its map after dropout; 0 where not `used`."""
    scores_s = scale_s * scores(
        q_s, k_s, row_first, column_first, queries, keys, stride_qs_l, stride_qs_d, stride_ks_m, stride_ks_d,
        dtype, D_S, BLOCK_L, BLOCK_M, BLOCK_DS, used_q, used_k,
    )  # fmt: skip
    scores_t = scale_t * scores(
        q_t, k_t, row_first, column_first, queries, keys, stride_qt_l, stride_qt_d, stride_kt_m, stride_kt_d,
        dtype, D_T, BLOCK_L, BLOCK_M, BLOCK_DT,
    )  # fmt: skip
    counted = (coefficient != 0.0)[:, None]  # what the teacher has for the others may be no number
    p = tl.exp2(tl.where(used, scores_s - lse_s[:, None], HIDDEN))
    t = tl.exp2(tl.where(used & counted, scores_t - lse_t[:, None], HIDDEN))
    along_v = scores(
        grad_out, v_s, row_first, column_first, queries, keys, stride_go_l, stride_go_d, stride_vs_m, stride_vs_d,
        dtype, D_V, BLOCK_L, BLOCK_M, BLOCK_DV,
    )  # fmt: skip
    along_v = tl.where(taken[:, None], along_v, 0.0)  # of an output that nobody takes, which may be no number
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
    return tl.where(used, gradient, 0.0), kept


@triton.jit
def queries_kernel(
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
    MASK: tl.constexpr, HAS_DROPOUT: tl.constexpr, IS_CAUSAL: tl.constexpr, KL: tl.constexpr,
):  # fmt: skip
    """One tile of query rows of one head: dQ.

    row_terms holds c, D + c δ (KL: D), and 2 where the output is taken, else 1 where the loss is, else 0.
    """
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
    lse_s = tl.load(plane(row_stats, 1, stats_plane) + at, mask=inside, other=0.0)
    lse_t = tl.load(plane(row_stats, 2, stats_plane) + at, mask=inside, other=0.0)
    coefficient = tl.load(row_terms + at, mask=inside, other=0.0)
    total = tl.load(plane(row_terms, 1, stats_plane) + at, mask=inside, other=0.0)
    use = tl.load(plane(row_terms, 2, stats_plane) + at, mask=inside, other=0.0)
    has_gradient = use > 0.0
    accumulator = tl.zeros([BLOCK_L, WIDTH], tl.float32)
    for first in range(0, end, BLOCK_M):
        used = has_gradient[:, None] & visible_keys(
            mask, stride_mask_l, stride_mask_m, row, first + tl.arange(0, BLOCK_M), queries, keys, MASK, IS_CAUSAL
        )
        used_keys = any_row(used)
        gradient, _ = _score_gradient(
            q_s, k_s, v_s, q_t, k_t, grad_out, seed, bh, start, first, used, lse_s, lse_t, coefficient, total, use > 1.0,
            stride_qs_l, stride_qs_d, stride_ks_m, stride_ks_d, stride_vs_m, stride_vs_d,
            stride_qt_l, stride_qt_d, stride_kt_m, stride_kt_d, stride_go_l, stride_go_d,
            queries, keys, scale_s, scale_t, dropout_p,
            dtype, D_S, D_T, D_V, BLOCK_DS, BLOCK_DT, BLOCK_DV, BLOCK_L, BLOCK_M, HAS_DROPOUT, KL, used_k=used_keys,
        )  # fmt: skip
        tile_k = load_tile(k_s, first, keys, stride_ks_m, 0, D_S, stride_ks_d, BLOCK_M, WIDTH, used_keys)
        accumulator = weighted_dot(gradient, tile_k, accumulator, dtype)
    column = tl.arange(0, WIDTH)
    tl.store(
        grad_q + at[:, None] * D_S + column[None, :],
        rounded(accumulator * gradient_scale, dtype),
        mask=inside[:, None] & (column < D_S)[None, :],
    )


@triton.jit
def keys_kernel(
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
    MASK: tl.constexpr, HAS_DROPOUT: tl.constexpr, IS_CAUSAL: tl.constexpr, KL: tl.constexpr,
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
            use = tl.load(plane(row_terms, 2, stats_plane) + at, mask=inside, other=0.0)
            has_gradient = use > 0.0
            used = has_gradient[:, None] & visible_keys(
                head_mask, stride_mask_l, stride_mask_m, row, column, queries, keys, MASK, IS_CAUSAL
            )
            lse_s = tl.load(plane(row_stats, 1, stats_plane) + at, mask=inside, other=0.0)
            lse_t = tl.load(plane(row_stats, 2, stats_plane) + at, mask=inside, other=0.0)
            coefficient = tl.load(row_terms + at, mask=inside, other=0.0)
            total = tl.load(plane(row_terms, 1, stats_plane) + at, mask=inside, other=0.0)
            gradient, kept = _score_gradient(
                head_qs, k_s, v_s, head_qt, head_kt, head_go, seed, bh, first, start, used, lse_s, lse_t, coefficient,
                total, use > 1.0, stride_qs_l, stride_qs_d, stride_ks_m, stride_ks_d, stride_vs_m, stride_vs_d,
                stride_qt_l, stride_qt_d, stride_kt_m, stride_kt_d, stride_go_l, stride_go_d,
                queries, keys, scale_s, scale_t, dropout_p,
                dtype, D_S, D_T, D_V, BLOCK_DS, BLOCK_DT, BLOCK_DV, BLOCK_L, BLOCK_M, HAS_DROPOUT, KL, used_q=has_gradient,
            )  # fmt: skip
            tile_q = load_tile(head_qs, first, queries, stride_qs_l, 0, D_S, stride_qs_d, BLOCK_L, WIDTH, has_gradient)
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
