"""`token_nce` in Triton: weights of some tokens for some negatives (at most 9 M of them), and a product with these negatives.

Unit rows bound every logit by 1/τ. Where exp(−2/τ) is still a normal float32, and the temperature is known here, the first
product's epilogue makes the weights and their sums. Else it writes similarities, which a second kernel turns into softmax
weights where they lie, with every row's true maximum: any temperature is safe. Either way the loss and its gradient need two
matrix products, not three. Every sum has one owner and one order, so results repeat bit for bit. The derivation is in README.md.

Shapes: N tokens, E embedding width, K negatives; C tokens of one chunk.
"""

# Triton gives a launch the signature of its kernel, which is not that of a launch.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlkd_kernels.token_nce.kernels import (
    finish_kernel,
    gradient_kernel,
    norms_kernel,
    positives_kernel,
    similarity_kernel,
    softmax_kernel,
    totals_kernel,
    weights_kernel,
)
from vlkd_kernels.triton_attention import Gpu, gpu

CHUNK = 9 * 1024 * 1024  # weights held at a time, and at most as many sums of tiles: 18 MiB of bfloat16
LEAST_TOKENS = 64  # where a row's maximum takes all negatives, however many there are
SOFTMAX_COLUMNS = 256  # that the softmax reads at a time
LEAST_BOUNDED = 0.023  # exp(-2/τ) is 1.7e-38 here, and float32's least normal number 1.2e-38


class TileConfig(NamedTuple):
    """Tiles of the two matrix products (tokens, negatives, width) and how the GPU runs them."""

    block_n: int
    block_k: int
    block_e: int
    num_warps: int
    num_stages: int
    strips: int = 1  # in which its results leave the registers, for all of them beside what they are made of do not fit


_TRITON_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
_ROWS = {"BLOCK_N": 8, "num_warps": 4}  # tile height of the kernels that go by rows

# From the largest on, none of which spills (`benchmarks/static_table.json`): a tile's rows and columns are read from the second-level
# cache, so a larger one reads less for each product.
_WIDE_GRADIENT = TileConfig(128, 64, 256, 8, 3, strips=2)
_SQUARE = TileConfig(128, 128, 64, 8, 3)
_SQUARE_GRADIENT = TileConfig(128, 64, 128, 8, 3)
_SMALL = TileConfig(64, 64, 64, 4, 2)
_FLOAT32 = TileConfig(32, 32, 32, 4, 2)
_WIDE_BYTES = 147456  # of shared memory


def similarity_config(dtype: torch.dtype, gpu: Gpu, aligned: bool, tokens: int, candidates: int) -> TileConfig:
    """The tiles of the first product: [block_n, block_k] of h_s candidatesᵀ, block_e at a time.

    The largest that spills nothing and of which every multiprocessor gets one.

    Args:
        aligned: rows can be read 16 bytes at a time; else a tile needs more addresses than a large one has registers for.
    """
    if dtype == torch.float32:
        return _FLOAT32
    tiles = triton.cdiv(tokens, _SQUARE.block_n) * triton.cdiv(candidates, _SQUARE.block_k)
    spills = gpu.capability[0] == 10 or dtype == torch.float16 or not aligned
    return _SMALL if spills or tiles < gpu.multiprocessors else _SQUARE


def gradient_config(dtype: torch.dtype, gpu: Gpu, aligned: bool, tokens: int, width: int) -> TileConfig:
    """The tiles of the second product: [block_n, block_e] of weights candidates, block_k at a time; chosen likewise."""
    if dtype == torch.float32:
        return _FLOAT32
    if not aligned or dtype == torch.float16:  # whose weights are float32
        return _SMALL
    # On sm_90 products read their operands from shared memory; elsewhere the wide tile spills.
    takes_wide = gpu.capability[0] == 9 and gpu.shared_memory >= _WIDE_BYTES
    for config in (*([_WIDE_GRADIENT] if takes_wide else []), _SQUARE_GRADIENT):
        if triton.cdiv(tokens, config.block_n) * triton.cdiv(width, config.block_e) >= gpu.multiprocessors:
            return config
    return _SMALL


def _aligned(*tensors: Tensor) -> bool:
    """Whether all rows begin, and are as long as, whole multiples of what Triton vectorises by."""
    return all(x.stride(1) == 1 and x.stride(0) % 16 == 0 and x.shape[1] % 16 == 0 for x in tensors)


def cut(tokens: int, columns: int, width: int, gpu: Gpu, first: TileConfig, second: TileConfig) -> tuple[int, int]:
    """How many tokens, and how many columns, have their weights held at a time where every logit is bounded.

    As many tokens as give each multiprocessor one tile of the second product; then so many columns that the tiles of the
    first one leave the fewest multiprocessors idle in its last round.
    """
    down = max(1, gpu.multiprocessors // triton.cdiv(width, second.block_e))
    chunk = min(tokens, max(down * second.block_n, LEAST_TOKENS))
    sums = 5 * triton.cdiv(max(columns, 1), first.block_k)  # of each token, a tile's after another's
    chunk = min(chunk, max(LEAST_TOKENS, CHUNK // sums))
    most = min(max(1, CHUNK // chunk // first.block_k), triton.cdiv(max(columns, 1), first.block_k))

    def busy(across: int) -> float:
        tiles = triton.cdiv(chunk, first.block_n) * across
        return tiles / (triton.cdiv(tiles, gpu.multiprocessors) * gpu.multiprocessors)

    across = max(range((most + 1) // 2, most + 1), key=lambda across: (round(busy(across), 2), across))
    return chunk, min(across * first.block_k, max(columns, 1))


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
    """Loss sum, count, gradients of the loss sum for h_s and the temperature, and the tokens' values as in `reference`."""
    tokens, width = h_s.shape
    rows = negatives.shape[0]
    float32 = {"dtype": torch.float32, "device": h_s.device}
    tau = torch.full((), temperature, **float32) if temperature_tensor is None else temperature_tensor.float()
    token_values = torch.zeros(5, tokens, **float32)
    gradient = torch.empty((tokens, width) if with_grad else 0, **float32)
    masses = torch.empty(tokens, **float32)
    columns = rows + (tokens if in_batch else 0)
    mask = token_mask.view(torch.uint8) if token_mask is not None else None
    bounded = normalize and temperature is not None and temperature >= LEAST_BOUNDED
    narrow = bounded and h_s.dtype == torch.bfloat16
    here = gpu(h_s.device)
    aligned = _aligned(h_s, negatives, *((h_t,) if in_batch else ()))
    first = similarity_config(h_s.dtype, here, aligned, tokens, columns)
    second = gradient_config(h_s.dtype, here, aligned, tokens, width)
    if bounded:
        chunk, piece = cut(tokens, columns, width, here, first, second)
    else:
        chunk, piece = min(tokens, max(LEAST_TOKENS, CHUNK // max(columns, 1))), columns
    weights = torch.empty(chunk, piece, dtype=torch.bfloat16 if narrow else torch.float32, device=h_s.device)
    scales = torch.empty(tokens if bounded else 1, **float32)
    flags = {
        "HAS_FILL": fill is not None,
        "HAS_IDS": token_ids is not None,
        "HAS_NEGATIVE_IDS": negative_ids is not None and rows > 0,
        "HAS_MASK": mask is not None,
        "IN_BATCH": in_batch,
        "WITH_GRAD": with_grad,
    }
    with torch.cuda.device_of(h_s):
        norm_s, norm_t, norm_c, positives = _norms(h_s, h_t, negatives, normalize, normalize_negatives)
        sources = [_Source(negatives, norm_c, 0, normalize_negatives)] if rows else []
        sources += [_Source(h_t, norm_t, rows, normalize)] if in_batch else []
        if bounded:
            sources = [part for source in sources for part in source.cut(piece)]
        if not sources:
            gradient.zero_()
        tiles = [triton.cdiv(source.rows.shape[0], first.block_k) for source in sources]
        partial = torch.empty(sum(tiles) if bounded else 0, 5, chunk, **float32)
        where = (tau, _or(fill, h_s), _or(negative_ids, h_s), _or(mask, h_s), _or(token_ids, h_s))
        for begin in range(0, tokens, chunk):
            size = min(chunk, tokens - begin)
            grid = (triton.cdiv(size, _ROWS["BLOCK_N"]),)
            if bounded:
                for index, source in enumerate(sources):
                    _weights(
                        first, h_s, norm_s, source, positives, where, weights, partial, begin, size, rows, columns,
                        sum(tiles[:index]), flags,
                    )  # fmt: skip
                    if with_grad:
                        _gradients(second, weights, source, gradient, begin, size, h_s.dtype, accumulate=index > 0)
                totals_kernel[grid](
                    partial, positives, tau, _or(mask, h_s), token_values, masses, scales,
                    begin, size, tokens, sum(tiles), chunk, HAS_MASK=mask is not None, **_ROWS,
                )  # fmt: skip
            else:
                for source in sources:
                    _similarities(first, h_s, norm_s, source, weights[:, source.first :], begin, size, normalize)
                softmax_kernel[grid](
                    weights, positives, *where, norm_c, norm_t, token_values, masses,
                    begin, size, tokens, rows, columns, columns,
                    **flags, NORMALIZE_NEGATIVES=normalize_negatives, NORMALIZE=normalize, BLOCK_K=SOFTMAX_COLUMNS, **_ROWS,
                )  # fmt: skip
                for index, source in enumerate(sources if with_grad else []):
                    own = weights[:, source.first :]
                    _gradients(second, own, source, gradient, begin, size, h_s.dtype, accumulate=index > 0)
        if with_grad:
            finish_kernel[(triton.cdiv(tokens, _ROWS["BLOCK_N"]),)](
                gradient, h_s, h_t, norm_s, norm_t, masses, scales, tau, _or(mask, h_s), tokens, width,
                *h_s.stride(), *h_t.stride(), HAS_MASK=mask is not None, NORMALIZE=normalize, SCALED=bounded, BLOCK_E=128, **_ROWS,
            )  # fmt: skip
    sums = token_values.sum(1)
    count = torch.full((), tokens, **float32) if token_mask is None else token_mask.sum().float()
    grad_temperature = sums[4].clone() if with_grad else torch.empty(0, **float32)
    return sums[0].clone(), count, gradient, grad_temperature, token_values[:4]


class _Source(NamedTuple):
    """Rows that serve as negatives and where their columns begin among the similarities."""

    rows: Tensor
    norms: Tensor
    first: int
    normalized: bool  # by us

    def cut(self, size: int) -> list[_Source]:
        """The same rows in pieces of at most `size`."""
        starts = range(0, self.rows.shape[0], size)
        norms = [self.norms[i : i + size] for i in starts]
        return [
            _Source(self.rows[i : i + size], n, self.first + i, self.normalized)
            for i, n in zip(starts, norms, strict=True)
        ]


forward = torch.library.custom_op("vlkd_triton::token_nce", launch, mutates_args=())


@forward.register_fake
def _(
    h_s, h_t, negatives, fill, negative_ids, token_mask, token_ids, temperature, temperature_tensor,
    normalize, normalize_negatives, in_batch, with_grad,
):  # fmt: skip
    scalar = h_s.new_empty((), dtype=torch.float32)
    gradient = h_s.new_empty(h_s.shape if with_grad else 0, dtype=torch.float32)
    grad_temperature = torch.empty_like(scalar) if with_grad else scalar.new_empty(0)
    return scalar, torch.empty_like(scalar), gradient, grad_temperature, scalar.new_empty(4, h_s.shape[0])


def _or(x: Tensor | None, placeholder: Tensor) -> Tensor:
    """A pointer that a kernel is told not to read, where there is no tensor."""
    return placeholder if x is None else x


def _norms(
    h_s: Tensor, h_t: Tensor, negatives: Tensor, normalize: bool, normalize_negatives: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The norms of the three, 1 where rows are not normalised, and the similarity of each token with its teacher."""
    tokens, width = h_s.shape
    norms = []
    for x, wanted in ((h_s, normalize), (h_t, normalize), (negatives, normalize_negatives)):
        norm = torch.empty(x.shape[0], dtype=torch.float32, device=h_s.device)
        if x.shape[0]:
            norms_kernel[(triton.cdiv(x.shape[0], _ROWS["BLOCK_N"]),)](
                x, norm, *x.shape, *x.stride(), NORMALIZE=wanted, BLOCK_E=128, **_ROWS
            )
        norms.append(norm)
    positives = torch.empty(tokens, dtype=torch.float32, device=h_s.device)
    positives_kernel[(triton.cdiv(tokens, _ROWS["BLOCK_N"]),)](
        h_s, h_t, norms[0], norms[1], positives, tokens, width, *h_s.stride(), *h_t.stride(),
        NORMALIZE=normalize, BLOCK_E=128, **_ROWS,
    )  # fmt: skip
    return norms[0], norms[1], norms[2], positives


def _weights(
    config: TileConfig, h_s: Tensor, norm_s: Tensor, source: _Source, positives: Tensor, where: tuple[Tensor, ...], out: Tensor, partial: Tensor,
    begin: int, size: int, negatives: int, columns: int, first_tile: int, flags: dict[str, bool],
) -> None:  # fmt: skip
    """The weights of tokens begin .. begin + size for a source's rows, and their sums by tile."""
    rows, width = source.rows.shape
    tiles = triton.cdiv(rows, config.block_k)
    weights_kernel[(triton.cdiv(size, config.block_n) * tiles,)](
        h_s[begin:], source.rows, norm_s[begin:], source.norms, positives, *where, out, partial,
        begin, size, rows, width, negatives, columns, source.first, first_tile, partial.stride(1),
        *h_s.stride(), *source.rows.stride(), out.stride(0), tiles,
        NORMALIZE_CANDIDATES=source.normalized, **flags, DTYPE=_TRITON_DTYPES[out.dtype],
        BLOCK_N=config.block_n, BLOCK_K=config.block_k, BLOCK_E=config.block_e,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def _similarities(
    config: TileConfig,
    h_s: Tensor,
    norm_s: Tensor,
    source: _Source,
    out: Tensor,
    begin: int,
    size: int,
    normalize: bool,
) -> None:
    """The similarities of tokens begin .. begin + size with a source's rows."""
    rows, width = source.rows.shape
    tiles = triton.cdiv(rows, config.block_k)
    similarity_kernel[(triton.cdiv(size, config.block_n) * tiles,)](
        h_s[begin:], source.rows, norm_s[begin:], source.norms, out,
        size, rows, width, *h_s.stride(), *source.rows.stride(), out.stride(0), tiles,
        NORMALIZE=normalize, NORMALIZE_CANDIDATES=source.normalized,
        BLOCK_N=config.block_n, BLOCK_K=config.block_k, BLOCK_E=config.block_e,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def _gradients(
    config: TileConfig,
    weights: Tensor,
    source: _Source,
    out: Tensor,
    begin: int,
    size: int,
    dtype: torch.dtype,
    *,
    accumulate: bool,
) -> None:
    """The weights of tokens begin .. begin + size times a source's rows, into the gradient or added to it."""
    rows, width = source.rows.shape
    tiles = triton.cdiv(width, config.block_e)
    gradient_kernel[(triton.cdiv(size, config.block_n) * tiles,)](
        weights, source.rows, source.norms, out[begin:], size, rows, width,
        weights.stride(0), *source.rows.stride(), tiles,
        ACCUMULATE=accumulate, DTYPE=_TRITON_DTYPES[dtype],
        BLOCK_N=config.block_n, BLOCK_K=config.block_k, BLOCK_E=config.block_e, STRIPS=config.strips,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
