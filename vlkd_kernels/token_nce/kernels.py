"""The Triton kernels of `token_nce`, in the order in which `triton.py` launches them.

Shapes: N tokens, E embedding width, K negatives; C tokens of one chunk.
"""

# In a kernel every number that is written out is a constexpr.
# pyright: reportArgumentType=false

from __future__ import annotations

import triton
import triton.language as tl

from vlkd_kernels.triton_tiles import dot, exact, load_tile, plane, rounded, weighted_dot

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
_EPS = tl.constexpr(1e-12)  # the smallest norm that a row is divided by
_LEFT_OUT = tl.constexpr(float("-inf"))  # the similarity of what is no negative; that of one is finite or NaN
_HIDDEN = tl.constexpr(-1e30)  # log-odds of no negative at all


@triton.jit
def norms_kernel(
    x, norms, rows, columns, stride_n, stride_e, NORMALIZE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr
):
    """The norm of every row of x [rows, columns], or 1; NaN if the row, or the square of its norm, is not finite."""
    start = tl.program_id(0).to(tl.int64) * BLOCK_N
    row = start + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, columns, BLOCK_E):
        tile = load_tile(x, start, rows, stride_n, first, columns, stride_e, BLOCK_N, BLOCK_E).to(tl.float32)
        total += tl.sum(tile * tile if NORMALIZE else tile * 0.0, 1)
    norm = tl.sqrt(exact(total)) if NORMALIZE else 1.0 + total
    tl.store(norms + row, norm, mask=row < rows)


@triton.jit
def _divisor(norm):
    """What a row is divided by; a NaN stays one."""
    return tl.where(norm < _EPS, _EPS, norm)


@triton.jit
def _temperature(temperature):
    """τ, or NaN where it has no meaning."""
    tau = tl.load(temperature)
    return tl.where((tau > 0.0) & (tau < float("inf")), tau, float("nan"))


@triton.jit
def positives_kernel(
    h_s, h_t, norm_s, norm_t, positives, tokens, width, stride_s_n, stride_s_e, stride_t_n, stride_t_e,
    NORMALIZE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The similarity of each student's token with its teacher's: positives [N]."""
    start = tl.program_id(0).to(tl.int64) * BLOCK_N
    row = start + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, width, BLOCK_E):
        tile_s = load_tile(h_s, start, tokens, stride_s_n, first, width, stride_s_e, BLOCK_N, BLOCK_E)
        tile_t = load_tile(h_t, start, tokens, stride_t_n, first, width, stride_t_e, BLOCK_N, BLOCK_E)
        total += tl.sum(tile_s.to(tl.float32) * tile_t.to(tile_s.dtype).to(tl.float32), 1)
    inside = row < tokens
    if NORMALIZE:
        total = total / _divisor(tl.load(norm_s + row, mask=inside, other=1.0))
        total = total / _divisor(tl.load(norm_t + row, mask=inside, other=1.0))
    tl.store(positives + row, exact(total), mask=inside)


@triton.jit
def _product(
    h_s, candidates, start_n, start_k, tokens, rows, width, stride_s_n, stride_s_e, stride_c_k, stride_c_e,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """A tile of h_s candidatesᵀ."""
    accumulator = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for first in range(0, width, BLOCK_E):
        tile_s = load_tile(h_s, start_n, tokens, stride_s_n, first, width, stride_s_e, BLOCK_N, BLOCK_E)
        tile_c = load_tile(candidates, start_k, rows, stride_c_k, first, width, stride_c_e, BLOCK_K, BLOCK_E)
        accumulator = dot(tile_s, tl.trans(tile_c.to(tile_s.dtype)), accumulator)
    return accumulator


@triton.jit
def _over_norms(
    product, norm_s, norm_c, n, k, tokens, rows, NORMALIZE: tl.constexpr, NORMALIZE_CANDIDATES: tl.constexpr
):
    """The product of tokens n and candidates k over their norms, NaN where infinite; what candidates were divided by, [K]."""
    divisor = tl.full(k.shape, 1.0, tl.float32)
    if NORMALIZE:
        norm = tl.load(norm_s + n, mask=n < tokens, other=1.0)
        product = product / _divisor(norm)[:, None]
    if NORMALIZE_CANDIDATES:
        divisor = _divisor(tl.load(norm_c + k, mask=k < rows, other=1.0))
        product = product / divisor[None, :]
    return exact(product), divisor


@triton.jit
def similarity_kernel(
    h_s, candidates, norm_s, norm_c, similarities, tokens, rows, width,
    stride_s_n, stride_s_e, stride_c_k, stride_c_e, stride_out, tiles,
    NORMALIZE: tl.constexpr, NORMALIZE_CANDIDATES: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """similarities [C, K] = h_s candidatesᵀ over the norms, one tile a program."""
    start_n = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N
    start_k = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_K
    product = _product(
        h_s, candidates, start_n, start_k, tokens, rows, width, stride_s_n, stride_s_e, stride_c_k, stride_c_e,
        BLOCK_N, BLOCK_K, BLOCK_E,
    )  # fmt: skip
    n = start_n + tl.arange(0, BLOCK_N)
    k = start_k + tl.arange(0, BLOCK_K)
    similarity, _ = _over_norms(product, norm_s, norm_c, n, k, tokens, rows, NORMALIZE, NORMALIZE_CANDIDATES)
    inside = (n < tokens)[:, None] & (k < rows)[None, :]
    tl.store(similarities + n[:, None] * stride_out + k[None, :], similarity, mask=inside)


@triton.jit
def _tokens(
    token, inside, token_mask, token_ids, fill, negatives,
    HAS_MASK: tl.constexpr, HAS_IDS: tl.constexpr, HAS_FILL: tl.constexpr,
):  # fmt: skip
    """Which tokens of a tile count, and their ids; how many of the negatives are filled."""
    counted = inside
    if HAS_MASK:
        counted = inside & (tl.load(token_mask + token, mask=inside, other=0) != 0)
    own_id = tl.full(token.shape, -1, tl.int64)
    if HAS_IDS:
        own_id = tl.load(token_ids + token, mask=inside, other=-1)
    filled = negatives
    if HAS_FILL:
        filled = tl.minimum(tl.maximum(tl.load(fill), 0), negatives).to(tl.int32)
    return counted, own_id, filled


@triton.jit
def _valid(
    column, negatives, columns, filled, negative_ids, token, counted, own_id, token_mask, token_ids,
    HAS_IDS: tl.constexpr, HAS_NEGATIVE_IDS: tl.constexpr, HAS_MASK: tl.constexpr, IN_BATCH: tl.constexpr,
):  # fmt: skip
    """Which columns are negatives of which tokens: first the negatives, then the other tokens' teachers."""
    in_queue = column < negatives
    valid = counted[:, None] & (column < filled)[None, :]
    if IN_BATCH:
        other = (column - negatives).to(tl.int64)
        in_batch = (column >= negatives) & (column < columns)
        may_serve = in_batch
        if HAS_MASK:
            may_serve = in_batch & (tl.load(token_mask + other, mask=in_batch, other=0) != 0)
        valid = valid | (counted[:, None] & may_serve[None, :] & (other[None, :] != token[:, None]))
    if HAS_IDS:
        ids = tl.full(column.shape, -1, tl.int64)
        if HAS_NEGATIVE_IDS:
            ids = tl.load(negative_ids + column, mask=in_queue, other=-1)
        if IN_BATCH:
            ids = tl.where(in_batch, tl.load(token_ids + other, mask=in_batch, other=-1), ids)
        valid = valid & ((ids[None, :] != own_id[:, None]) | (ids == -1)[None, :])
    return valid


@triton.jit
def weights_kernel(
    h_s, candidates, norm_s, norm_c, positives, temperature, fill, negative_ids, token_mask, token_ids, weights, partial,
    first_token, tokens, rows, width, negatives, columns, first_column, first_tile, stride_partial,
    stride_s_n, stride_s_e, stride_c_k, stride_c_e, stride_out, tiles,
    NORMALIZE_CANDIDATES: tl.constexpr, HAS_FILL: tl.constexpr, HAS_IDS: tl.constexpr, HAS_NEGATIVE_IDS: tl.constexpr,
    HAS_MASK: tl.constexpr, IN_BATCH: tl.constexpr, WITH_GRAD: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Where no logit exceeds 1/τ: weights [C, K] = exp((b - 1)/τ) over the candidates' norms, one tile a program.

    partial [tiles, 5, C]: a tile's sums over its columns of w, w (b - a), b and 1, and its largest b.
    """
    tile_k = tl.program_id(0) % tiles
    start_n = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N
    start_k = tile_k.to(tl.int64) * BLOCK_K
    product = _product(
        h_s, candidates, start_n, start_k, tokens, rows, width, stride_s_n, stride_s_e, stride_c_k, stride_c_e,
        BLOCK_N, BLOCK_K, BLOCK_E,
    )  # fmt: skip
    n = start_n + tl.arange(0, BLOCK_N)
    k = start_k + tl.arange(0, BLOCK_K)
    inside = n < tokens
    token = first_token + n
    similarity, divisor = _over_norms(
        product, norm_s, norm_c, n, k, tokens, rows, tl.constexpr(True), NORMALIZE_CANDIDATES
    )
    counted, own_id, filled = _tokens(
        token, inside, token_mask, token_ids, fill, negatives, HAS_MASK, HAS_IDS, HAS_FILL
    )
    valid = (k < rows)[None, :] & _valid(
        first_column + k, negatives, columns, filled, negative_ids, token, counted, own_id, token_mask, token_ids,
        HAS_IDS, HAS_NEGATIVE_IDS, HAS_MASK, IN_BATCH,
    )  # fmt: skip
    # A number that no negative has says what is left out: a mask beside the numbers would not fit the registers.
    similarity = tl.where(valid, similarity, _LEFT_OUT)
    positive = tl.load(positives + token, mask=inside, other=0.0)
    weight = tl.exp2((similarity - 1.0) * (_LOG2_E / tl.load(temperature)))
    out = partial + (first_tile + tile_k).to(tl.int64) * 5 * stride_partial + n
    tl.store(out, tl.sum(weight, 1), mask=inside)
    differences = tl.where(similarity == _LEFT_OUT, 0.0, weight * (similarity - positive[:, None]))
    tl.store(plane(out, 1, stride_partial), tl.sum(differences, 1), mask=inside)
    tl.store(plane(out, 2, stride_partial), tl.sum(tl.where(similarity == _LEFT_OUT, 0.0, similarity), 1), mask=inside)
    tl.store(plane(out, 3, stride_partial), tl.sum(tl.where(similarity == _LEFT_OUT, 0.0, 1.0), 1), mask=inside)
    tl.store(plane(out, 4, stride_partial), tl.max(similarity, 1), mask=inside)
    if WITH_GRAD:
        weight = rounded(tl.where(similarity == _LEFT_OUT, 0.0, weight / divisor[None, :]), DTYPE)
        tl.store(weights + n[:, None] * stride_out + k[None, :], weight, mask=inside[:, None] & (k < rows)[None, :])


@triton.jit
def _halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right columns of a tile, which stay in the registers where they are."""
    return tl.split(tl.permute(tl.reshape(x, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def _store_values(
    token_values, token, all_tokens, x, positive, tau, mean, best, counted, inside,
):  # fmt: skip
    """The first four rows of token_values from x, the logarithm of the negatives' odds; returns the loss.

    NaN where x, the positive or the temperature is, also for a token without negatives.
    """
    # loss = log(1 + exp(x)); a token without negatives has loss 0
    x += 0.0 * (positive + tau)
    small = tl.exp(-tl.abs(x))
    log1p = tl.where(small < 1e-2, small * (1 - small * (1 / 2 - small * (1 / 3 - small / 4))), tl.log(1 + small))
    loss = tl.maximum(x, 0.0) + log1p
    values = token_values + token
    tl.store(values, tl.where(counted, loss, 0.0), mask=inside)
    tl.store(plane(values, 1, all_tokens), tl.where(counted, positive, 0.0), mask=inside)
    tl.store(plane(values, 2, all_tokens), tl.where(counted, mean, 0.0), mask=inside)
    hit = tl.where(positive >= best, 1.0, 0.0) + 0.0 * loss  # NaN if the loss is
    tl.store(plane(values, 3, all_tokens), tl.where(counted, hit, 0.0), mask=inside)
    return loss


@triton.jit
def totals_kernel(
    partial, positives, temperature, token_mask, token_values, masses, scales,
    first_token, tokens, all_tokens, tiles, stride_partial,
    HAS_MASK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A tile of tokens of one chunk: the sums of `weights_kernel` to loss, statistics and token_values as in `softmax_kernel`.

    masses [N] = W/Z and scales [N] = 1/Z, with Z = W + exp((a - 1)/τ).
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = first_token + row
    inside = row < tokens
    counted = inside
    if HAS_MASK:
        counted = inside & (tl.load(token_mask + token, mask=inside, other=0) != 0)
    total = tl.zeros([BLOCK_N], tl.float32)
    differences = tl.zeros([BLOCK_N], tl.float32)
    sum_negative = tl.zeros([BLOCK_N], tl.float32)
    seen = tl.zeros([BLOCK_N], tl.float32)
    best = tl.full([BLOCK_N], float("-inf"), tl.float32)
    base = partial + row
    for _ in range(0, tiles):
        total += tl.load(base, mask=inside, other=0.0)
        differences += tl.load(plane(base, 1, stride_partial), mask=inside, other=0.0)
        sum_negative += tl.load(plane(base, 2, stride_partial), mask=inside, other=0.0)
        seen += tl.load(plane(base, 3, stride_partial), mask=inside, other=0.0)
        best = tl.maximum(best, tl.load(plane(base, 4, stride_partial), mask=inside, other=float("-inf")))
        base = plane(base, 5, stride_partial)
    positive = tl.load(positives + token, mask=inside, other=0.0)
    tau = _temperature(temperature)
    own = (positive - 1.0) * (_LOG2_E / tau)  # logarithm of the positive's weight, base 2
    x = tl.where(seen > 0, (tl.log2(tl.where(seen > 0, total, 1.0)) - own) * _LN_2, _HIDDEN)
    mean = sum_negative / tl.maximum(seen, 1.0)
    _store_values(token_values, token, all_tokens, x, positive, tau, mean, best, counted, inside)
    scale = 1.0 / (total + tl.exp2(own))
    tl.store(masses + token, total * scale, mask=inside)
    tl.store(scales + token, scale, mask=inside)
    tl.store(
        plane(token_values, 4, all_tokens) + token,
        tl.where(counted, -differences * scale / (tau * tau), 0.0),
        mask=inside,
    )


@triton.jit
def softmax_kernel(
    similarities, positives, temperature, fill, negative_ids, token_mask, token_ids, norm_c, norm_t,
    token_values, masses,
    first_token, tokens, all_tokens, negatives, columns, stride,
    HAS_FILL: tl.constexpr, HAS_IDS: tl.constexpr, HAS_NEGATIVE_IDS: tl.constexpr, HAS_MASK: tl.constexpr,
    IN_BATCH: tl.constexpr, NORMALIZE_NEGATIVES: tl.constexpr, NORMALIZE: tl.constexpr, WITH_GRAD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of tokens of one chunk: loss and statistics, then similarities become softmax weights over the norms.

    token_values [5, N]: loss, positive similarity, mean negative similarity, positive at the top, and the derivative
    by the temperature; 0 for tokens that do not count.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = first_token + row
    inside = row < tokens
    counted, own_id, filled = _tokens(
        token, inside, token_mask, token_ids, fill, negatives, HAS_MASK, HAS_IDS, HAS_FILL
    )
    positive = tl.load(positives + token, mask=inside, other=0.0)
    tau = _temperature(temperature)
    scale = _LOG2_E / tau
    base = similarities + row[:, None] * stride

    maximum = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    sum_negative = tl.zeros([BLOCK_N], tl.float32)
    best = maximum
    seen = tl.zeros([BLOCK_N], tl.int32)
    for first in range(0, columns, BLOCK_K):
        column = first + tl.arange(0, BLOCK_K)
        valid = _valid(
            column, negatives, columns, filled, negative_ids, token, counted, own_id, token_mask, token_ids,
            HAS_IDS, HAS_NEGATIVE_IDS, HAS_MASK, IN_BATCH,
        )  # fmt: skip
        negative = tl.load(base + column[None, :], mask=valid, other=0.0)
        # logarithm of the odds of a negative against the positive, base 2; a step of the running log-sum-exp
        log_odds = tl.where(valid, (negative - positive[:, None]) * scale, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(log_odds, 1))
        shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        total = total * tl.exp2(maximum - shift) + tl.sum(tl.exp2(log_odds - shift[:, None]), 1)
        maximum = new_maximum
        sum_negative += tl.sum(negative, 1)
        best = tl.maximum(best, tl.max(tl.where(valid, negative, float("-inf")), 1))
        seen += tl.sum(valid.to(tl.int32), 1)

    x = tl.where(seen > 0, (maximum + tl.log2(tl.where(seen > 0, total, 1.0))) * _LN_2, _HIDDEN)
    mean = sum_negative / tl.maximum(seen, 1).to(tl.float32)
    loss = _store_values(token_values, token, all_tokens, x, positive, tau, mean, best, counted, inside)
    if not WITH_GRAD:
        return

    log_z = loss * _LOG2_E
    mass = tl.zeros([BLOCK_N], tl.float32)
    grad_tau = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, columns, BLOCK_K):
        column = first + tl.arange(0, BLOCK_K)
        valid = _valid(
            column, negatives, columns, filled, negative_ids, token, counted, own_id, token_mask, token_ids,
            HAS_IDS, HAS_NEGATIVE_IDS, HAS_MASK, IN_BATCH,
        )  # fmt: skip
        difference = tl.load(base + column[None, :], mask=valid, other=0.0) - positive[:, None]
        weight = tl.where(valid, tl.exp2(difference * scale - log_z[:, None]), 0.0)
        mass += tl.sum(weight, 1)
        grad_tau -= tl.sum(tl.where(valid, weight * difference, 0.0), 1)
        norm = tl.full([BLOCK_K], 1.0, tl.float32)
        if NORMALIZE_NEGATIVES:
            norm = tl.load(norm_c + column, mask=column < negatives, other=1.0)
        if IN_BATCH and NORMALIZE:
            in_batch = (column >= negatives) & (column < columns)
            other = (column - negatives).to(tl.int64)
            norm = tl.where(in_batch, tl.load(norm_t + other, mask=in_batch, other=1.0), norm)
        weight = tl.where(valid, weight / _divisor(norm)[None, :], 0.0)
        tl.store(base + column[None, :], weight, mask=inside[:, None] & (column < columns)[None, :])
    tl.store(masses + token, mass, mask=inside)
    tl.store(plane(token_values, 4, all_tokens) + token, tl.where(counted, grad_tau / (tau * tau), 0.0), mask=inside)


@triton.jit
def gradient_kernel(
    weights, candidates, norm_c, gradient, tokens, rows, width,
    stride_w, stride_c_k, stride_c_e, tiles,
    ACCUMULATE: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr, STRIPS: tl.constexpr,
):  # fmt: skip
    """gradient [C, E] (+)= weights [C, K] candidates [K, E], one tile a program.

    A candidate whose norm is NaN is left out: its weights are NaN where it counts and 0 where it does not.
    """
    start_n = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N
    start_e = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_E
    accumulator = tl.zeros([BLOCK_N, BLOCK_E], tl.float32)
    for first in range(0, rows, BLOCK_K):
        tile_w = load_tile(weights, start_n, tokens, stride_w, first, rows, 1, BLOCK_N, BLOCK_K)
        k = first + tl.arange(0, BLOCK_K)
        norm = tl.load(norm_c + k, mask=k < rows, other=1.0)
        tile_c = load_tile(
            candidates, first, rows, stride_c_k, start_e, width, stride_c_e, BLOCK_K, BLOCK_E, norm == norm
        )
        accumulator = weighted_dot(tile_w, tile_c, accumulator, DTYPE)
    if STRIPS == 1:
        _store_strip(accumulator, gradient, start_n, start_e, tokens, width, ACCUMULATE, BLOCK_N, BLOCK_E)
    else:  # what was there before comes into the registers strip by strip
        tl.static_assert(STRIPS == 2)
        left, right = _halves(accumulator, BLOCK_N, BLOCK_E)
        _store_strip(left, gradient, start_n, start_e, tokens, width, ACCUMULATE, BLOCK_N, BLOCK_E // 2)
        _store_strip(right, gradient, start_n, start_e + BLOCK_E // 2, tokens, width, ACCUMULATE, BLOCK_N, BLOCK_E // 2)


@triton.jit
def _store_strip(
    sums,
    gradient,
    start_n,
    start_e,
    tokens,
    width,
    ACCUMULATE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STRIP: tl.constexpr,
):
    """Some columns of a tile of :func:`gradient_kernel`."""
    n = start_n + tl.arange(0, BLOCK_N)
    e = start_e + tl.arange(0, STRIP)
    inside = (n < tokens)[:, None] & (e < width)[None, :]
    out = gradient + n[:, None] * width + e[None, :]
    if ACCUMULATE:
        sums += tl.load(out, mask=inside, other=0.0)
    tl.store(out, sums, mask=inside)


@triton.jit
def finish_kernel(
    gradient, h_s, h_t, norm_s, norm_t, masses, scales, temperature, token_mask, tokens, width,
    stride_s_n, stride_s_e, stride_t_n, stride_t_e,
    HAS_MASK: tl.constexpr, NORMALIZE: tl.constexpr, SCALED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """In place: g = (scale gradient - mass t̂) / τ, then through the normalisation, (g - ŝ (ŝ·g)) / ‖h‖; 0 if uncounted."""
    start = tl.program_id(0).to(tl.int64) * BLOCK_N
    row = start + tl.arange(0, BLOCK_N)
    inside = row < tokens
    counted = inside
    if HAS_MASK:
        counted = inside & (tl.load(token_mask + row, mask=inside, other=0) != 0)
    mass = tl.load(masses + row, mask=inside, other=0.0)
    tau = _temperature(temperature)
    scale = tl.full([BLOCK_N], 1.0, tl.float32)
    if SCALED:
        scale = tl.load(scales + row, mask=inside, other=0.0)
    norm = tl.full([BLOCK_N], 1.0, tl.float32)
    if NORMALIZE:
        norm = tl.load(norm_s + row, mask=inside, other=1.0)
        mass = mass / _divisor(tl.load(norm_t + row, mask=inside, other=1.0))
    divisor = _divisor(norm)
    along = tl.zeros([BLOCK_N], tl.float32)  # ŝ·g
    if NORMALIZE:
        for first in range(0, width, BLOCK_E):
            tile_s = load_tile(h_s, start, tokens, stride_s_n, first, width, stride_s_e, BLOCK_N, BLOCK_E)
            tile_t = load_tile(h_t, start, tokens, stride_t_n, first, width, stride_t_e, BLOCK_N, BLOCK_E)
            g = load_tile(gradient, start, tokens, width, first, width, 1, BLOCK_N, BLOCK_E)
            g = (g * scale[:, None] - mass[:, None] * tile_t.to(tile_s.dtype).to(tl.float32)) / tau
            along += tl.sum(g * tile_s.to(tl.float32), 1) / divisor
        along = tl.where(norm > _EPS, along, 0.0)  # at the smallest norm the divisor is a constant
    for first in range(0, width, BLOCK_E):
        tile_s = load_tile(h_s, start, tokens, stride_s_n, first, width, stride_s_e, BLOCK_N, BLOCK_E)
        tile_t = load_tile(h_t, start, tokens, stride_t_n, first, width, stride_t_e, BLOCK_N, BLOCK_E)
        g = load_tile(gradient, start, tokens, width, first, width, 1, BLOCK_N, BLOCK_E)
        g = (g * scale[:, None] - mass[:, None] * tile_t.to(tile_s.dtype).to(tl.float32)) / tau
        g = (g - tile_s.to(tl.float32) * (along / divisor)[:, None]) / divisor[:, None]
        g = tl.where(counted[:, None], g, 0.0)
        column = first + tl.arange(0, BLOCK_E)
        tl.store(gradient + row[:, None] * width + column[None, :], g, mask=inside[:, None] & (column < width)[None, :])
