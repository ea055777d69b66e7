"""`token_nce` in Triton: similarities of a chunk of tokens, their softmax in place, one product with the negatives.

The similarities of one chunk (at most 32 MB of float32) are written once and turned into softmax weights where they lie,
so the loss and its gradient need two matrix products, not three, and every row has its true maximum: any temperature is
safe. Every sum has one owner and one order, so results repeat bit for bit. The derivation is in README.md.

Shapes: N tokens, E embedding width, K negatives; C tokens of one chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlkd_kernels.triton_tiles import dot, load_tile, weighted_dot

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)
_EPS = tl.constexpr(1e-12)  # the smallest norm that a row is divided by
_HIDDEN = tl.constexpr(-1e30)  # log-odds of no negative at all
CHUNK = 8 * 1024 * 1024  # similarities held at a time
CHUNK_TOKENS = 64  # however many negatives there are
SOFTMAX_COLUMNS = 256  # that the softmax reads at a time


@triton.jit
def _norms_kernel(x, norms, rows, columns, stride_n, stride_e, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr):
    """The norm of every row of x [rows, columns]."""
    start = tl.program_id(0).to(tl.int64) * BLOCK_N
    row = start + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, columns, BLOCK_E):
        tile = load_tile(x, start, rows, stride_n, first, columns, stride_e, BLOCK_N, BLOCK_E).to(tl.float32)
        total += tl.sum(tile * tile, 1)
    tl.store(norms + row, tl.sqrt(total), mask=row < rows)


@triton.jit
def _positives_kernel(
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
        total = total / tl.maximum(tl.load(norm_s + row, mask=inside, other=1.0), _EPS)
        total = total / tl.maximum(tl.load(norm_t + row, mask=inside, other=1.0), _EPS)
    tl.store(positives + row, total, mask=inside)


@triton.jit
def _similarity_kernel(
    h_s, candidates, norm_s, norm_c, similarities, tokens, rows, width,
    stride_s_n, stride_s_e, stride_c_k, stride_c_e, stride_out, tiles,
    NORMALIZE: tl.constexpr, NORMALIZE_CANDIDATES: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """similarities [C, K] = h_s candidatesᵀ over the norms, one tile a program."""
    start_n = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N
    start_k = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_K
    accumulator = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for first in range(0, width, BLOCK_E):
        tile_s = load_tile(h_s, start_n, tokens, stride_s_n, first, width, stride_s_e, BLOCK_N, BLOCK_E)
        tile_c = load_tile(candidates, start_k, rows, stride_c_k, first, width, stride_c_e, BLOCK_K, BLOCK_E)
        accumulator = dot(tile_s, tl.trans(tile_c.to(tile_s.dtype)), accumulator)
    n = start_n + tl.arange(0, BLOCK_N)
    k = start_k + tl.arange(0, BLOCK_K)
    if NORMALIZE:
        norm = tl.load(norm_s + n, mask=n < tokens, other=1.0)
        accumulator = accumulator / tl.maximum(norm, _EPS)[:, None]
    if NORMALIZE_CANDIDATES:
        norm = tl.load(norm_c + k, mask=k < rows, other=1.0)
        accumulator = accumulator / tl.maximum(norm, _EPS)[None, :]
    tl.store(
        similarities + n[:, None] * stride_out + k[None, :],
        accumulator,
        mask=(n < tokens)[:, None] & (k < rows)[None, :],
    )


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
def _softmax_kernel(
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
    counted = inside
    if HAS_MASK:
        counted = inside & (tl.load(token_mask + token, mask=inside, other=0) != 0)
    own_id = tl.full([BLOCK_N], -1, tl.int64)
    if HAS_IDS:
        own_id = tl.load(token_ids + token, mask=inside, other=-1)
    filled = negatives
    if HAS_FILL:
        filled = tl.minimum(tl.load(fill), negatives).to(tl.int32)
    positive = tl.load(positives + token, mask=inside, other=0.0)
    tau = tl.load(temperature)
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

    # loss = log(1 + exp(x)), x the log-sum-exp of the log-odds; a token without negatives has loss 0
    x = tl.where(seen > 0, (maximum + tl.log2(tl.where(seen > 0, total, 1.0))) * _LN_2, _HIDDEN)
    small = tl.exp(-tl.abs(x))
    log1p = tl.where(small < 1e-2, small * (1 - small * (1 / 2 - small * (1 / 3 - small / 4))), tl.log(1 + small))
    loss = tl.maximum(x, 0.0) + log1p
    values = token_values + token
    tl.store(values, tl.where(counted, loss, 0.0), mask=inside)
    tl.store(values + all_tokens, tl.where(counted, positive, 0.0), mask=inside)
    mean = sum_negative / tl.maximum(seen, 1).to(tl.float32)
    tl.store(values + 2 * all_tokens, tl.where(counted, mean, 0.0), mask=inside)
    tl.store(values + 3 * all_tokens, tl.where(counted & (positive >= best), 1.0, 0.0), mask=inside)
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
        grad_tau -= tl.sum(weight * difference, 1)
        norm = tl.full([BLOCK_K], 1.0, tl.float32)
        if NORMALIZE_NEGATIVES:
            norm = tl.load(norm_c + column, mask=column < negatives, other=1.0)
        if IN_BATCH and NORMALIZE:
            in_batch = (column >= negatives) & (column < columns)
            other = (column - negatives).to(tl.int64)
            norm = tl.where(in_batch, tl.load(norm_t + other, mask=in_batch, other=1.0), norm)
        weight = weight / tl.maximum(norm, _EPS)[None, :]
        tl.store(base + column[None, :], weight, mask=inside[:, None] & (column < columns)[None, :])
    tl.store(masses + token, mass, mask=inside)
    tl.store(values + 4 * all_tokens, grad_tau / (tau * tau), mask=inside)


@triton.jit
def _gradient_kernel(
    weights, candidates, gradient, tokens, rows, width,
    stride_w, stride_c_k, stride_c_e, tiles,
    ACCUMULATE: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """gradient [C, E] (+)= weights [C, K] candidates [K, E], one tile a program."""
    start_n = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N
    start_e = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_E
    accumulator = tl.zeros([BLOCK_N, BLOCK_E], tl.float32)
    for first in range(0, rows, BLOCK_K):
        tile_w = load_tile(weights, start_n, tokens, stride_w, first, rows, 1, BLOCK_N, BLOCK_K)
        tile_c = load_tile(candidates, first, rows, stride_c_k, start_e, width, stride_c_e, BLOCK_K, BLOCK_E)
        accumulator = weighted_dot(tile_w, tile_c, accumulator, DTYPE)
    n = start_n + tl.arange(0, BLOCK_N)
    e = start_e + tl.arange(0, BLOCK_E)
    inside = (n < tokens)[:, None] & (e < width)[None, :]
    out = gradient + n[:, None] * width + e[None, :]
    if ACCUMULATE:
        accumulator += tl.load(out, mask=inside, other=0.0)
    tl.store(out, accumulator, mask=inside)


@triton.jit
def _finish_kernel(
    gradient, h_s, h_t, norm_s, norm_t, masses, temperature, tokens, width,
    stride_s_n, stride_s_e, stride_t_n, stride_t_e,
    NORMALIZE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """In place: g = (gradient - mass t̂) / τ, then through the normalisation, (g - ŝ (ŝ·g)) / ‖h‖."""
    start = tl.program_id(0).to(tl.int64) * BLOCK_N
    row = start + tl.arange(0, BLOCK_N)
    inside = row < tokens
    mass = tl.load(masses + row, mask=inside, other=0.0)
    tau = tl.load(temperature)
    norm = tl.full([BLOCK_N], 1.0, tl.float32)
    if NORMALIZE:
        norm = tl.load(norm_s + row, mask=inside, other=1.0)
        mass = mass / tl.maximum(tl.load(norm_t + row, mask=inside, other=1.0), _EPS)
    divisor = tl.maximum(norm, _EPS)
    along = tl.zeros([BLOCK_N], tl.float32)  # ŝ·g
    if NORMALIZE:
        for first in range(0, width, BLOCK_E):
            tile_s = load_tile(h_s, start, tokens, stride_s_n, first, width, stride_s_e, BLOCK_N, BLOCK_E)
            tile_t = load_tile(h_t, start, tokens, stride_t_n, first, width, stride_t_e, BLOCK_N, BLOCK_E)
            g = load_tile(gradient, start, tokens, width, first, width, 1, BLOCK_N, BLOCK_E)
            g = (g - mass[:, None] * tile_t.to(tile_s.dtype).to(tl.float32)) / tau
            along += tl.sum(g * tile_s.to(tl.float32), 1) / divisor
        along = tl.where(norm > _EPS, along, 0.0)  # at the smallest norm the divisor is a constant
    for first in range(0, width, BLOCK_E):
        tile_s = load_tile(h_s, start, tokens, stride_s_n, first, width, stride_s_e, BLOCK_N, BLOCK_E)
        tile_t = load_tile(h_t, start, tokens, stride_t_n, first, width, stride_t_e, BLOCK_N, BLOCK_E)
        g = load_tile(gradient, start, tokens, width, first, width, 1, BLOCK_N, BLOCK_E)
        g = (g - mass[:, None] * tile_t.to(tile_s.dtype).to(tl.float32)) / tau
        g = (g - tile_s.to(tl.float32) * (along / divisor)[:, None]) / divisor[:, None]
        column = first + tl.arange(0, BLOCK_E)
        tl.store(
            gradient + row[:, None] * width + column[None, :], g, mask=inside[:, None] & (column < width)[None, :]
        )


class TileConfig(NamedTuple):
    """Tiles of the two matrix products (tokens, negatives, width) and how the GPU runs them."""

    block_n: int
    block_k: int
    block_e: int
    num_warps: int
    num_stages: int


_TRITON_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
_ROWS = {"BLOCK_N": 8, "num_warps": 4}  # tile height of the kernels that go by rows


def tile_config(dtype: torch.dtype) -> TileConfig:
    """The default tile for a dtype; `benchmarks/static_table.json` has the cost."""
    if dtype == torch.bfloat16:
        return TileConfig(64, 64, 64, 4, 2)
    return TileConfig(32, 32, 32, 4, 2)


def launch(
    h_s: Tensor,
    h_t: Tensor,
    negatives: Tensor,
    fill: Tensor | None,
    negative_ids: Tensor | None,
    token_mask: Tensor | None,
    token_ids: Tensor | None,
    temperature: float | None,
    temperature_tensor: Tensor | None,
    normalize: bool,
    normalize_negatives: bool,
    in_batch: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss sum, count, gradients of the loss sum for h_s and the temperature, and the sums of the statistics."""
    tokens, width = h_s.shape
    rows = negatives.shape[0]
    float32 = {"dtype": torch.float32, "device": h_s.device}
    if temperature_tensor is None:
        tau = torch.full((), temperature, **float32)
    else:
        tau = temperature_tensor.float()
    token_values = torch.zeros(5, tokens, **float32)
    gradient = torch.empty((tokens, width) if with_grad else 0, **float32)
    masses = torch.empty(tokens, **float32)
    columns = rows + (tokens if in_batch else 0)
    chunk = min(tokens, max(CHUNK_TOKENS, CHUNK // max(columns, 1)))
    similarities = torch.empty(chunk, columns, **float32)
    mask = token_mask.view(torch.uint8) if token_mask is not None else None
    flags = {
        "HAS_FILL": fill is not None,
        "HAS_IDS": token_ids is not None,
        "HAS_NEGATIVE_IDS": negative_ids is not None and rows > 0,
        "HAS_MASK": mask is not None,
        "IN_BATCH": in_batch,
        "NORMALIZE_NEGATIVES": normalize_negatives,
        "NORMALIZE": normalize,
        "WITH_GRAD": with_grad,
    }
    with torch.cuda.device_of(h_s):
        norm_s, norm_t, norm_c, positives = _norms(h_s, h_t, negatives, normalize, normalize_negatives)
        sources = [_Source(negatives, norm_c, 0, normalize_negatives)] if rows else []
        sources += [_Source(h_t, norm_t, rows, normalize)] if in_batch else []
        for begin in range(0, tokens, chunk):
            size = min(chunk, tokens - begin)
            for source in sources:
                _similarities(h_s, norm_s, source, similarities, begin, size, normalize)
            _softmax_kernel[(triton.cdiv(size, _ROWS["BLOCK_N"]),)](
                similarities, positives, tau, _or(fill, h_s), _or(negative_ids, h_s), _or(mask, h_s),
                _or(token_ids, h_s), norm_c, norm_t, token_values, masses, begin, size, tokens, rows, columns, columns,
                **flags, BLOCK_K=SOFTMAX_COLUMNS, **_ROWS,
            )  # fmt: skip
            for index, source in enumerate(sources if with_grad else []):
                _gradients(similarities, source, gradient, begin, size, h_s.dtype, accumulate=index > 0)
        if with_grad:
            _finish_kernel[(triton.cdiv(tokens, _ROWS["BLOCK_N"]),)](
                gradient, h_s, h_t, norm_s, norm_t, masses, tau, tokens, width, *h_s.stride(), *h_t.stride(),
                NORMALIZE=normalize, BLOCK_E=128, **_ROWS,
            )  # fmt: skip
    sums = token_values.sum(1)
    count = torch.full((), tokens, **float32) if token_mask is None else token_mask.sum().float()
    grad_temperature = sums[4].clone() if with_grad else torch.empty(0, **float32)
    return sums[0].clone(), count, gradient, grad_temperature, sums[1:4].clone()


class _Source(NamedTuple):
    """Rows that serve as negatives and where their columns begin among the similarities."""

    rows: Tensor
    norms: Tensor
    first: int
    normalized: bool  # by us: the norms are set


forward = torch.library.custom_op("vlkd_triton::token_nce", launch, mutates_args=())


@forward.register_fake
def _(
    h_s, h_t, negatives, fill, negative_ids, token_mask, token_ids, temperature, temperature_tensor,
    normalize, normalize_negatives, in_batch, with_grad,
):  # fmt: skip
    scalar = h_s.new_empty((), dtype=torch.float32)
    gradient = h_s.new_empty(h_s.shape if with_grad else 0, dtype=torch.float32)
    grad_temperature = torch.empty_like(scalar) if with_grad else scalar.new_empty(0)
    return scalar, torch.empty_like(scalar), gradient, grad_temperature, scalar.new_empty(3)


def _or(x: Tensor | None, placeholder: Tensor) -> Tensor:
    """A pointer that a kernel is told not to read, where there is no tensor."""
    return placeholder if x is None else x


def _norms(
    h_s: Tensor, h_t: Tensor, negatives: Tensor, normalize: bool, normalize_negatives: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The norms of the three, where rows are normalised, and the similarity of each token with its teacher."""
    tokens, width = h_s.shape
    norms = []
    for x, wanted in ((h_s, normalize), (h_t, normalize), (negatives, normalize_negatives)):
        norm = torch.empty(x.shape[0] if wanted else 1, dtype=torch.float32, device=h_s.device)
        if wanted and x.shape[0]:
            _norms_kernel[(triton.cdiv(x.shape[0], _ROWS["BLOCK_N"]),)](
                x, norm, *x.shape, *x.stride(), BLOCK_E=128, **_ROWS
            )
        norms.append(norm)
    positives = torch.empty(tokens, dtype=torch.float32, device=h_s.device)
    _positives_kernel[(triton.cdiv(tokens, _ROWS["BLOCK_N"]),)](
        h_s, h_t, norms[0], norms[1], positives, tokens, width, *h_s.stride(), *h_t.stride(),
        NORMALIZE=normalize, BLOCK_E=128, **_ROWS,
    )  # fmt: skip
    return norms[0], norms[1], norms[2], positives


def _similarities(
    h_s: Tensor, norm_s: Tensor, source: _Source, out: Tensor, begin: int, size: int, normalize: bool
) -> None:
    """The similarities of tokens begin .. begin + size with a source's rows, into their columns."""
    config = tile_config(h_s.dtype)
    rows, width = source.rows.shape
    tiles = triton.cdiv(rows, config.block_k)
    _similarity_kernel[(triton.cdiv(size, config.block_n) * tiles,)](
        h_s[begin:], source.rows, norm_s[begin:] if normalize else norm_s, source.norms, out[:, source.first :],
        size, rows, width, *h_s.stride(), *source.rows.stride(), out.stride(0), tiles,
        NORMALIZE=normalize, NORMALIZE_CANDIDATES=source.normalized,
        BLOCK_N=config.block_n, BLOCK_K=config.block_k, BLOCK_E=config.block_e,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def _gradients(
    weights: Tensor, source: _Source, out: Tensor, begin: int, size: int, dtype: torch.dtype, *, accumulate: bool
) -> None:
    """The weights of tokens begin .. begin + size times a source's rows, into the gradient or added to it."""
    config = tile_config(dtype)
    rows, width = source.rows.shape
    tiles = triton.cdiv(width, config.block_e)
    _gradient_kernel[(triton.cdiv(size, config.block_n) * tiles,)](
        weights[:, source.first :], source.rows, out[begin:], size, rows, width,
        weights.stride(0), *source.rows.stride(), tiles,
        ACCUMULATE=accumulate, DTYPE=_TRITON_DTYPES[dtype],
        BLOCK_N=config.block_n, BLOCK_K=config.block_k, BLOCK_E=config.block_e,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
