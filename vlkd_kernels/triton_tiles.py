"""What the Triton kernels share: loading a tile, rounding it, and matrix products in a stated precision.

Triton's interpreter keeps bfloat16 as raw 16-bit integers and multiplies those, so under it operands are widened first; and it
cuts float32 off to bfloat16, where a GPU rounds to nearest.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


@triton.jit
def load_tile(
    base, row, rows, stride_row, column, columns, stride_column,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, used=None,
):  # fmt: skip
    """The tile of a matrix [rows, columns] whose first element is (row, column), 0 outside the matrix.

    With `used`, 0 also in rows that are not: a NaN there would meet a weight of 0, and be one. A tile that is wanted twice
    is to be loaded with the same `used` both times, so that the compiler loads it once.
    """
    row = row + tl.arange(0, BLOCK_ROWS).to(tl.int64)
    column = column + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
    wanted = row < rows
    if used is not None:
        wanted = wanted & used
    inside = wanted[:, None] & (column < columns)[None, :]
    return tl.load(base + row[:, None] * stride_row + column[None, :] * stride_column, mask=inside, other=0.0)


@triton.jit
def plane(base, index: tl.constexpr, size):
    """Where a plane of a tensor [planes, size] begins; the size fits 32 bits, the offset may not."""
    return base + tl.full([], index, tl.int64) * size


@triton.jit
def exact(x):
    """x, NaN where it is infinite: an infinity can make a finite loss of numbers that have no meaning."""
    return x + x * 0.0


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x of float32 in dtype, to nearest, ties to even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def tf32(x):
    """x of float32 to TF32's 11 bits, to nearest, ties away from 0: a product in TF32 cuts the others off."""
    bits = (x.to(tl.uint32, bitcast=True) + 0x1000) & 0xFFFFE000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)  # a NaN's bits may all be set


@triton.jit
def dot(a, b, accumulator):
    """accumulator + a b, operands of one dtype, summed in float32. float32 operands are not rounded to TF32."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision="ieee")


@triton.jit
def weighted_dot(weights, values, accumulator, dtype: tl.constexpr):
    """accumulator + weights values, with weights that may be far smaller than float16 can hold: float32, or already of dtype.

    bfloat16 products round the weights to bfloat16. float16 ones take TF32 instead, which has float16's mantissa and
    float32's range: the values are exact in it and the weights are rounded to its 11 bits.
    """
    if dtype == tl.float16:
        return tl.dot(tf32(weights), values.to(tl.float32), accumulator, input_precision="tf32")
    if weights.dtype != dtype:
        weights = rounded(weights, dtype)
    return dot(weights, values.to(dtype), accumulator)
