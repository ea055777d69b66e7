"""Paired bootstrap over test pictures: how sure is a difference between two models, given these pictures?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A difference of means with its bootstrap interval. It speaks of the test pictures drawn, not of
    other training seeds."""

    difference: float
    low: float
    high: float
    level: float
    pictures: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    first: Mapping[str, float],
    second: Mapping[str, float],
    weights: Mapping[str, int] | None = None,
    *,
    resamples: int = 5000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile interval of ``mean(first) - mean(second)`` when whole pictures are drawn again.

    ``first`` and ``second`` map the same picture keys to each model's mean score there; ``weights`` holds
    how many items (questions) a picture contributes, 1 each when None. Drawing pictures, not questions,
    keeps the questions of one picture together, which are not independent.
    """
    if first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())[0]
        raise ValueError(f"both models must be scored on the same pictures; {odd!r} is in only one of them")
    if not first:
        raise ValueError("a bootstrap needs at least one picture, got none")
    keys = sorted(first)
    weight = np.array([1 if weights is None else weights[key] for key in keys], dtype=np.float64)
    gain = np.array([first[key] - second[key] for key in keys], dtype=np.float64) * weight
    drawn = np.random.default_rng(seed).integers(len(keys), size=(resamples, len(keys)))
    means = gain[drawn].sum(axis=1) / weight[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(gain.sum() / weight.sum()), float(low), float(high), level, len(keys))
