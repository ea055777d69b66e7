"""The paired bootstrap: right centre, right spread, whole pictures."""

from __future__ import annotations

import numpy as np
import pytest

from vlkd.evaluation import paired_bootstrap


def scores(values) -> dict[str, float]:
    return {f"picture-{number:04d}": float(value) for number, value in enumerate(values)}


def test_interval_of_normal_differences():
    """For many independent differences the interval is the textbook one: mean +- 1.96 s / sqrt(n)."""
    rng = np.random.default_rng(1)
    second, gain = rng.random(400), rng.normal(0.3, 1.0, 400)
    found = paired_bootstrap(scores(second + gain), scores(second), resamples=20_000)
    half = 1.96 * gain.std() / 20
    assert found.difference == pytest.approx(gain.mean())
    # A 2.5 % quantile of n draws has the standard deviation sqrt(p (1 - p) / n) / density = 0.019 standard errors
    # for n = 20,000, which is 1 % of `half`; four of these.
    assert found.low == pytest.approx(gain.mean() - half, abs=0.04 * half)
    assert found.high == pytest.approx(gain.mean() + half, abs=0.04 * half)
    assert found.excludes_zero and found.pictures == 400


def test_the_same_model_differs_by_exactly_nothing():
    values = scores(np.random.default_rng(0).random(50))
    found = paired_bootstrap(values, values)
    assert (found.difference, found.low, found.high) == (0.0, 0.0, 0.0)
    assert not found.excludes_zero


def test_pairing_matters():
    """A small steady gain under a large common spread is found only because pictures are paired."""
    second = 10 * np.random.default_rng(0).random(60)
    assert paired_bootstrap(scores(second + 0.1), scores(second)).low == pytest.approx(0.1)


def test_weights_count_questions():
    found = paired_bootstrap({"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 0.0}, {"a": 3, "b": 1})
    assert found.difference == 0.75


def test_repeatable_and_order_free():
    rng = np.random.default_rng(2)
    first, second = scores(rng.random(30)), scores(rng.random(30))
    turned = dict(reversed(first.items()))
    assert paired_bootstrap(first, second) == paired_bootstrap(turned, second)
    assert paired_bootstrap(first, second, seed=1) != paired_bootstrap(first, second, seed=0)


def test_other_pictures_are_refused():
    with pytest.raises(ValueError, match="'b' is in only one"):
        paired_bootstrap({"a": 1.0}, {"a": 1.0, "b": 0.0})
    with pytest.raises(ValueError, match="got none"):
        paired_bootstrap({}, {})
