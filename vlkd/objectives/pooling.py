"""One row for a whole sequence: the mean over its counted tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_over_tokens(hidden: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_i c_i h_i / Σ_i c_i of every sequence, and whether it has a token that counts.

    A sequence without one has the row 0 and gives no gradient. As the mean is linear, a projection φ may come before or
    after it.

    Args:
        hidden: [B, L, E], any float dtype. Rows that do not count may hold anything, NaN too.
        counted: [B, L] bool, c.

    Returns:
        [B, 1, E] in fp32 or the wider dtype of ``hidden``; [B, 1] bool.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    total = torch.where(counted.unsqueeze(-1), hidden, 0).sum(1, keepdim=True, dtype=dtype)  # [B, 1, E]
    tokens = counted.sum(1, keepdim=True)  # [B, 1]
    return total / tokens.clamp(min=1).unsqueeze(-1), tokens > 0
