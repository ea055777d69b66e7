"""Which dtype an op computes in, and which one it sums in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, losses and gradients inside an op: float32, float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of an op's products: autocast's when it is on and x is not float64, else that of x."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def exact(x: Tensor) -> Tensor:
    """x, NaN where it is infinite: an infinity can make a finite loss of numbers that have no meaning."""
    return x + x * 0


def finite(x: Tensor) -> Tensor:
    """x, 0 where it is not finite: for products with weights that are NaN where x counts, and 0 where it does not."""
    return torch.where(x.isfinite(), x, 0)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """A context in which products keep the dtype that the op has chosen."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
