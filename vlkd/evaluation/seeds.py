"""Student's t over training seeds: would another training give the same? See ``bootstrap`` for other test pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval; it speaks of other trainings on the same data, not of other pictures."""

    mean: float
    deviation: float  # of the sample, with n - 1; NaN for one seed
    low: float
    high: float
    seeds: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def t_interval(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """The mean of ``values`` with Student's t interval: mean ± t(n − 1, (1 + level) / 2) · s / √n.

    s is the sample's standard deviation. Values are taken as independent draws from a normal distribution. One value
    has a mean and no interval (NaN); no value has neither.
    """
    from scipy.stats import t

    count = len(values)
    if count == 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan, 0)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(t.ppf((1 + level) / 2, count - 1)) * deviation / math.sqrt(count)
    return Estimate(mean, deviation, mean - half, mean + half, count)
