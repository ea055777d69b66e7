"""A Triton kernel that does nothing but exponentials, to measure how many a GPU does in a second."""

# Triton gives a launch the signature of its kernel, which is not that of a launch.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

REPEATS = 1024
_BLOCK = 1024


@triton.jit
def _kernel(out, REPEATS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = at.to(tl.float32) * 1e-9
    for _ in range(REPEATS):
        x = tl.exp2(-x)  # the sign is free: x approaches 0.64
    tl.store(out + at, x)


def run(out: Tensor) -> None:
    """REPEATS exponentials for each element of `out`, a multiple of 1024 of them."""
    _kernel[(out.numel() // _BLOCK,)](out, REPEATS=REPEATS, BLOCK=_BLOCK)
