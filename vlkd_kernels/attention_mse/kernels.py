"""The Triton kernels of `attention_mse`; their launches stand in triton.py, the derivation in README.md.

`head_kernel` does all of one student key head where its keys fit a tile: everything is read once, every exponential is taken
once. Longer ones take two kernels: `rows_kernel` sweeps the keys for the log-sum-exps, for the loss and δ, and for dQ, and
leaves 16 bytes a row; from those `keys_kernel` sweeps the queries for dK. Every sum has one owner and one order.

Shapes: B batch, H heads, L queries, M keys, D head width.
"""

# Triton gives a launch the signature of its kernel, which is not that of a launch.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from vlkd_kernels.triton_attention import HIDDEN, LN_2, any_row, kl_terms, online_sum, scores, visible_keys
from vlkd_kernels.triton_tiles import dot, exact, load_tile, plane, weighted_dot


@triton.jit
def head_kernel(
    q_s, k_s, q_t, k_t, mask, query_mask,
    head_loss, head_count, grad_q, grad_k,
    stride_qs_b, stride_qs_h, stride_qs_l, stride_qs_d,
    stride_ks_b, stride_ks_h, stride_ks_m, stride_ks_d,
    stride_qt_b, stride_qt_h, stride_qt_l, stride_qt_d,
    stride_kt_b, stride_kt_h, stride_kt_m, stride_kt_d,
    stride_mask_b, stride_mask_h, stride_mask_l, stride_mask_m,
    stride_query_b, stride_query_l,
    heads, group_s, group_t, queries, keys,
    scale_s, scale_t,  # of the scores, times log2(e)
    gradient_scale,
    D_S: tl.constexpr, D_T: tl.constexpr, BLOCK_DS: tl.constexpr, BLOCK_DT: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
    MASK: tl.constexpr, HAS_QUERY_MASK: tl.constexpr, IS_CAUSAL: tl.constexpr,
    KL: tl.constexpr, WITH_GRAD: tl.constexpr, RELOAD_T: tl.constexpr,
):  # fmt: skip
    """One student key head, all of its keys in a tile: its loss and count, dQ of its query heads, and its dK."""
    bk = tl.program_id(0).to(tl.int64)
    key_heads = heads // group_s
    b = bk // key_heads
    first_head = (bk % key_heads) * group_s
    k_s += b * stride_ks_b + (bk % key_heads) * stride_ks_h
    k_t += b * stride_kt_b
    dtype: tl.constexpr = q_s.dtype.element_ty  # the teacher is read in its own dtype and rounded to the student's
    column = tl.arange(0, BLOCK_M)
    width = tl.arange(0, BLOCK_DS)
    tiles = tl.cdiv(queries, BLOCK_L)
    mask += b * stride_mask_b
    query_mask += b * stride_query_b
    if WITH_GRAD and (MASK != "none" or HAS_QUERY_MASK or IS_CAUSAL):  # else all keys are seen
        seen_keys = tl.zeros([BLOCK_M], tl.int32)
        for step in range(0, group_s * tiles):
            row = (step % tiles) * BLOCK_L + tl.arange(0, BLOCK_L)
            head_mask = mask + (first_head + step // tiles) * stride_mask_h
            used, _, _ = _used(
                head_mask, query_mask, stride_mask_l, stride_mask_m, stride_query_l, row, column, queries, keys,
                MASK, HAS_QUERY_MASK, IS_CAUSAL,
            )  # fmt: skip
            seen_keys = tl.maximum(seen_keys, any_row(used).to(tl.int32))
        tile_ks = load_tile(k_s, 0, keys, stride_ks_m, 0, D_S, stride_ks_d, BLOCK_M, BLOCK_DS, seen_keys > 0)
    else:
        tile_ks = load_tile(k_s, 0, keys, stride_ks_m, 0, D_S, stride_ks_d, BLOCK_M, BLOCK_DS)
    if not RELOAD_T:
        head_kt = k_t + (first_head // group_t) * stride_kt_h
        tile_kt = load_tile(head_kt, 0, keys, stride_kt_m, 0, D_T, stride_kt_d, BLOCK_M, BLOCK_DT).to(dtype)

    loss = tl.zeros([BLOCK_L], tl.float32)
    count = tl.zeros([BLOCK_L], tl.int32)
    accumulator = tl.zeros([BLOCK_M, BLOCK_DS], tl.float32)
    for step in range(0, group_s * tiles):
        h = first_head + step // tiles
        start = (step % tiles) * BLOCK_L
        row = start + tl.arange(0, BLOCK_L)
        used, counted, seen = _used(
            mask + h * stride_mask_h, query_mask, stride_mask_l, stride_mask_m, stride_query_l, row, column, queries, keys,
            MASK, HAS_QUERY_MASK, IS_CAUSAL,
        )  # fmt: skip
        if RELOAD_T:  # the query heads that share the student's key head do not share the teacher's
            head_kt = k_t + (h // group_t) * stride_kt_h
            tile_kt = load_tile(head_kt, 0, keys, stride_kt_m, 0, D_T, stride_kt_d, BLOCK_M, BLOCK_DT).to(dtype)
        tile_qt = load_tile(
            q_t + b * stride_qt_b + h * stride_qt_h, start, queries, stride_qt_l, 0, D_T, stride_qt_d, BLOCK_L, BLOCK_DT
        ).to(dtype)
        tile_qs = load_tile(
            q_s + b * stride_qs_b + h * stride_qs_h, start, queries, stride_qs_l, 0, D_S, stride_qs_d, BLOCK_L, BLOCK_DS,
            counted,
        )  # fmt: skip
        zero = tl.zeros([BLOCK_L, BLOCK_M], tl.float32)
        t, log_t, total_t = _softmax(scale_t * exact(dot(tile_qt, tl.trans(tile_kt), zero)), used, counted)
        p, log_p, total_s = _softmax(scale_s * exact(dot(tile_qs, tl.trans(tile_ks), zero)), used, counted)
        # p - t over p's denominator: a difference of two quotients would be fused into one rounding less on one side, and
        # equal maps would differ. Equal totals have the ratio 1.
        difference = (p - t * tl.div_rn(total_s, total_t)[:, None]) * (1.0 / total_s)[:, None]
        p *= (1.0 / total_s)[:, None]
        if KL:
            gradient = difference
            loss += tl.sum(kl_terms(p, t * (1.0 / total_t)[:, None], (log_t - log_p) * LN_2), 1)
        else:
            weight = 1.0 / tl.maximum(seen, 1).to(tl.float32)
            loss += weight * tl.sum(difference * difference, 1)
            delta = tl.sum(p * difference, 1)
            gradient = (2.0 * weight)[:, None] * p * (difference - delta[:, None])
        count += counted.to(tl.int32)
        if WITH_GRAD:
            tile_dq = weighted_dot(gradient, tile_ks, tl.zeros([BLOCK_L, BLOCK_DS], tl.float32), dtype)
            tl.store(
                grad_q + ((b * heads + h) * queries + row)[:, None] * D_S + width[None, :],
                tile_dq * gradient_scale,
                mask=(row < queries)[:, None] & (width < D_S)[None, :],
            )
            accumulator = weighted_dot(tl.trans(gradient), tile_qs, accumulator, dtype)

    tl.store(head_loss + bk, tl.sum(loss, 0))
    tl.store(head_count + bk, tl.sum(count, 0).to(tl.float32))
    if WITH_GRAD:
        tl.store(
            grad_k + (bk * keys + column)[:, None] * D_S + width[None, :],
            accumulator * gradient_scale,
            mask=(column < keys)[:, None] & (width < D_S)[None, :],
        )


@triton.jit
def _used(
    mask, query_mask, stride_l, stride_m, stride_query_l, row, column, queries, keys,
    MASK: tl.constexpr, HAS_QUERY_MASK: tl.constexpr, IS_CAUSAL: tl.constexpr,
):  # fmt: skip
    """Which entries of a tile that holds whole rows count, which rows do, and how many keys each row sees."""
    visible = visible_keys(mask, stride_l, stride_m, row, column, queries, keys, MASK, IS_CAUSAL)
    seen = tl.sum(visible.to(tl.int32), 1)
    counted = seen > 0
    if HAS_QUERY_MASK:
        inside = row < queries
        counted = counted & (tl.load(query_mask + row.to(tl.int64) * stride_query_l, mask=inside, other=0) != 0)
    return visible & counted[:, None], counted, seen


@triton.jit
def _softmax(scores, used, counted):
    """Of a tile that holds whole rows of scores in base 2: powers, their rows' sums, and base-2 logarithms of their quotients.

    Powers are 0, and logarithms HIDDEN, where an entry is not used; the sum of a row that does not count is 1.
    """
    scores = tl.where(used, scores, HIDDEN)
    scores -= tl.max(scores, 1)[:, None]
    powers = tl.where(used, tl.exp2(scores), 0.0)
    total = tl.where(counted, tl.sum(powers, 1), 1.0)
    return powers, tl.where(used, scores - tl.log2(total)[:, None], HIDDEN), total


@triton.jit
def rows_kernel(
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
    MASK: tl.constexpr, HAS_QUERY_MASK: tl.constexpr, IS_CAUSAL: tl.constexpr,
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
            mask, stride_mask_l, stride_mask_m, row, first + tl.arange(0, BLOCK_M), queries, keys, MASK, IS_CAUSAL
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
    at = bh * queries + row
    inside = row < queries
    tl.store(row_loss + at, loss * weight, mask=inside)
    tl.store(row_stats + at, weight, mask=inside)
    if not WITH_GRAD:
        return
    tl.store(plane(row_stats, 1, stats_plane) + at, lse_s, mask=inside)
    tl.store(plane(row_stats, 2, stats_plane) + at, lse_t, mask=inside)
    tl.store(plane(row_stats, 3, stats_plane) + at, delta, mask=inside)

    accumulator = tl.zeros([BLOCK_L, WIDTH], tl.float32)
    for first in range(0, end, BLOCK_M):
        used = counted[:, None] & visible_keys(
            mask, stride_mask_l, stride_mask_m, row, first + tl.arange(0, BLOCK_M), queries, keys, MASK, IS_CAUSAL
        )
        used_keys = any_row(used) if MASK != "none" or HAS_QUERY_MASK or IS_CAUSAL else None
        scores_s = scale_s * scores(
            q_s, k_s, start, first, queries, keys, stride_qs_l, stride_qs_d, stride_ks_m, stride_ks_d,
            dtype, D_S, BLOCK_L, BLOCK_M, BLOCK_DS, used_k=used_keys,
        )  # fmt: skip
        scores_t = scale_t * scores(
            q_t, k_t, start, first, queries, keys, stride_qt_l, stride_qt_d, stride_kt_m, stride_kt_d,
            dtype, D_T, BLOCK_L, BLOCK_M, BLOCK_DT,
        )  # fmt: skip
        p = tl.exp2(tl.where(used, scores_s - lse_s[:, None], HIDDEN))
        gradient = p - tl.exp2(tl.where(used, scores_t - lse_t[:, None], HIDDEN))
        if not KL:
            gradient = 2.0 * p * (gradient - delta[:, None])
        tile_k = load_tile(k_s, first, keys, stride_ks_m, 0, D_S, stride_ks_d, BLOCK_M, WIDTH, used_keys)
        accumulator = weighted_dot(gradient, tile_k, accumulator, dtype)

    column = tl.arange(0, WIDTH)
    tl.store(
        grad_q + at[:, None] * D_S + column[None, :],
        accumulator * (weight * gradient_scale)[:, None],
        mask=inside[:, None] & (column < D_S)[None, :],
    )


@triton.jit
def keys_kernel(
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
    MASK: tl.constexpr, IS_CAUSAL: tl.constexpr, KL: tl.constexpr,
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
            lse_s = tl.load(plane(head_stats, 1, stats_plane) + row, mask=inside, other=0.0)
            lse_t = tl.load(plane(head_stats, 2, stats_plane) + row, mask=inside, other=0.0)
            used = (weight > 0)[:, None] & visible_keys(
                head_mask, stride_mask_l, stride_mask_m, row, column, queries, keys, MASK, IS_CAUSAL
            )
            scores_s = scale_s * scores(
                head_qs, k_s, first, start, queries, keys, stride_qs_l, stride_qs_d, stride_ks_m, stride_ks_d,
                dtype, D_S, BLOCK_L, BLOCK_M, BLOCK_DS, used_q=weight > 0,
            )  # fmt: skip
            scores_t = scale_t * scores(
                head_qt, head_kt, first, start, queries, keys, stride_qt_l, stride_qt_d, stride_kt_m, stride_kt_d,
                dtype, D_T, BLOCK_L, BLOCK_M, BLOCK_DT,
            )  # fmt: skip
            p = tl.exp2(tl.where(used, scores_s - lse_s[:, None], HIDDEN))
            gradient = p - tl.exp2(tl.where(used, scores_t - lse_t[:, None], HIDDEN))
            if not KL:
                delta = tl.load(plane(head_stats, 3, stats_plane) + row, mask=inside, other=0.0)
                gradient = 2.0 * weight[:, None] * p * (gradient - delta[:, None])
            tile_q = load_tile(head_qs, first, queries, stride_qs_l, 0, D_S, stride_qs_d, BLOCK_L, WIDTH, weight > 0)
            accumulator = weighted_dot(tl.trans(gradient), tile_q, accumulator, dtype)

    at = bk * keys + column
    width = tl.arange(0, WIDTH)
    tl.store(
        grad_k + at[:, None] * D_S + width[None, :],
        accumulator * gradient_scale,
        mask=(column < keys)[:, None] & (width < D_S)[None, :],
    )
