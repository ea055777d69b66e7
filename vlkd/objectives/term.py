"""What every objective returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Term:
    """One loss before normalisation: ``sum / count`` is its mean over the rows that count.

    Attributes:
        sum: 0-d, at least fp32, differentiable: the row values added up.
        count: 0-d: how many rows were added. It may be 0, and then ``sum`` is 0 with zero gradients.
    """

    sum: Tensor
    count: Tensor
