"""What the Triton kernels on two attentions share: who sees whom, scores, running log-sum-exps, the terms of the divergence.

Shapes: B batch, H heads, L queries, M keys, D head width.
"""

# Triton gives a launch the signature of its kernel, which is not that of a launch.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlkd_kernels.triton_tiles import dot, exact, load_tile

LOG2_E = 1.4426950408889634
MAX_REGISTERS = 255  # said aloud, because ptxas else spills a little for the sake of one more block at a time
LN_2 = tl.constexpr(0.6931471805599453)
HIDDEN = tl.constexpr(-1e30)  # the log of a probability that is 0; the difference of two such is 0


@triton.jit
def visible_keys(mask, stride_l, stride_m, row, column, queries, keys, MASK: tl.constexpr, IS_CAUSAL: tl.constexpr):
    """Which keys (columns) which queries (rows) may see, [rows, columns]; MASK as `mask_kind` says."""
    seen = column < keys
    if MASK == "keys":  # one load a column: addresses of a whole tile would take more registers than its scores
        seen = seen & (tl.load(mask + column.to(tl.int64) * stride_m, mask=seen, other=0) != 0)
    visible = (row < queries)[:, None] & seen[None, :]
    if IS_CAUSAL:
        visible = visible & (column[None, :] <= row[:, None])
    if MASK == "full":
        offsets = row.to(tl.int64)[:, None] * stride_l + column.to(tl.int64)[None, :] * stride_m
        visible = visible & (tl.load(mask + offsets, mask=visible, other=0) != 0)
    return visible


@triton.jit
def scores(
    q, k, row, column, queries, keys, stride_l, stride_qd, stride_m, stride_kd, dtype: tl.constexpr,
    D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    used_q=None, used_k=None,
):  # fmt: skip
    """The tile of q kᵀ of one head whose first element is (row, column), operands rounded to dtype; NaN where infinite.

    The scores of rows not in `used_q`, and of keys not in `used_k`, are not wanted: these need not be read.
    """
    result = tl.zeros([BLOCK_L, BLOCK_M], tl.float32)
    for first in range(0, D, BLOCK_D):
        tile_q = load_tile(q, row, queries, stride_l, first, D, stride_qd, BLOCK_L, BLOCK_D, used_q)
        tile_k = load_tile(k, column, keys, stride_m, first, D, stride_kd, BLOCK_M, BLOCK_D, used_k)
        result = dot(tile_q.to(dtype), tl.trans(tile_k.to(dtype)), result)
    return exact(result)


@triton.jit
def any_row(used):
    """Of a tile [rows, columns], which columns some row uses."""
    return tl.max(used.to(tl.int32), 0) > 0


@triton.jit
def online_sum(scores, visible, maximum, total):
    """One step of a running log-sum-exp in base 2; rows without a visible key keep maximum -inf and total 0."""
    scores = tl.where(visible, scores, float("-inf"))
    new_maximum = tl.maximum(maximum, tl.max(scores, 1))
    shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    total = total * tl.exp2(maximum - shift) + tl.sum(tl.exp2(scores - shift[:, None]), 1)
    return new_maximum, total


@triton.jit
def kl_terms(p, t, difference):
    """t (Δ + exp(-Δ) - 1), Δ = log t - log p: a series where Δ is small, since the sum of its parts would cancel."""
    x = difference
    series = (
        x * x * (0.5 + x * (-1 / 6 + x * (1 / 24 + x * (-1 / 120 + x * (1 / 720 + x * (-1 / 5040 + x * (1 / 40320)))))))
    )
    return tl.where(tl.abs(x) < 0.5, t * series, t * x + p - t)


class TileConfig(NamedTuple):
    """The tile of one program: how many queries, keys and (for the scores) columns, and how the GPU runs it."""

    block_l: int
    block_m: int
    block_d: int
    num_warps: int
    num_stages: int


def padded(width: int) -> int:
    """A head width padded to a power of two that the matrix instructions accept."""
    return max(16, triton.next_power_of_2(width))


class Gpu(NamedTuple):
    """What the choice of a tile depends on."""

    capability: tuple[int, int]
    shared_memory: int  # bytes that a block may have
    multiprocessors: int = 132


TUNED_FOR = Gpu((9, 0), 227 * 1024)


def gpu(device: torch.device) -> Gpu:
    """A GPU as it describes itself; where kernels are interpreted or only compiled, the one that they are tuned for."""
    if device.type != "cuda":
        return TUNED_FOR
    properties = torch.cuda.get_device_properties(device)
    return Gpu(
        (properties.major, properties.minor), properties.shared_memory_per_block_optin, properties.multi_processor_count
    )


def mask_kind(mask: Tensor | None) -> str:
    """How a 4-d mask has to be read: "none", "keys" where all queries of a head see the same ones, else "full"."""
    if mask is None:
        return "none"
    return "keys" if mask.shape[2] == 1 or mask.stride(2) == 0 else "full"


def strided(mask: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """A mask as bytes and its strides when broadcast to a shape; nothing is copied."""
    expanded = mask.view(torch.uint8).expand(shape)
    return expanded, expanded.stride()
