"""Rows in eight bits: float8_e4m3fn numbers, and a float32 factor for each row. N rows, E width.

The numbers are kept as uint8: torch neither pickles float8 tensors nor selects rows of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

DTYPE = torch.float8_e4m3fn
_LARGEST = torch.finfo(DTYPE).max


def quantized(rows: Tensor, normalize: bool) -> tuple[Tensor, Tensor]:
    """rows [N, E] as the bits of q [N, E] and scales [N], with scale q the row, or with `normalize` of length 1.

    A row's largest entry becomes the largest float8, whatever its length; its other entries keep three bits behind their
    leading one, down to 2^-15 of the largest. With `normalize` the scale is 1/‖q‖, so that rounding leaves the length exact.
    """
    rows = rows.float()
    largest = rows.abs().amax(-1, keepdim=True)
    zero = largest == 0
    q = (rows * torch.where(zero, 1.0, _LARGEST / largest)).to(DTYPE)
    scales = q.float().norm(dim=-1).reciprocal() if normalize else largest.squeeze(-1) / _LARGEST
    return q.view(torch.uint8), torch.where(zero.squeeze(-1), 1.0, scales)


def dequantized(bits: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows [N, E] that `quantized` took, rounded."""
    return (bits.view(DTYPE).float() * scales[:, None]).to(dtype)
