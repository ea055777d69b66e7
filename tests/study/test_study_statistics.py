"""Intervals: Student's t against tables and scipy, the bootstrap against its own definition."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from vlkd.evaluation import paired_bootstrap
from vlkd.evaluation.seeds import t_interval
from vlkd.study.findings import Outcome, RowInfo, Study
from vlkd.study.statistics import over_test_items, paired_difference, row_estimate, summarise


def scores(study: Study, row: str, metric: str, seeds) -> list[float]:
    return [study.of(row)[seed].score(metric) for seed in seeds]


def without_pictures(study: Study) -> Study:
    none = {"cider_per_picture": {}, "accuracy_per_picture": {}, "questions_per_picture": {}}
    return replace(study, outcomes=tuple(replace(each, **none) for each in study.outcomes))


def test_t_interval_by_hand():
    """Mean 3, s² = 10 / 4, s / √5 = √0.5; the table's t for 4 degrees of freedom at 97.5 % is 2.776."""
    found = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.seeds) == (3.0, 5)
    assert found.deviation == pytest.approx(math.sqrt(2.5))
    # The table rounds t at 5e-4.
    assert found.high - 3 == pytest.approx(2.776 * math.sqrt(0.5), abs=5e-4)
    assert 3 - found.low == pytest.approx(found.high - 3)
    assert t_interval([1.0, 3.0]).high == pytest.approx(2 + 12.706, abs=5e-4)  # one degree of freedom, s / √2 = 1


def test_other_levels_and_equal_values():
    assert t_interval([1.0, 2.0, 3.0], level=0.9).high == pytest.approx(2 + 2.920 / math.sqrt(3), abs=5e-4)
    same = t_interval([0.25, 0.25, 0.25])
    assert (same.deviation, same.low, same.high) == (0.0, 0.25, 0.25)


@pytest.mark.parametrize("metric", ["cider", "vqa", "BLEU-4"])
@pytest.mark.parametrize("row, baseline, seeds", [
    ("distilled", "student alone", range(5)),
    ("no queue", "distilled", range(3)),  # over the seeds that both have
    ("student alone", "no queue", range(3)),
])  # fmt: skip
def test_paired_difference_is_that_of_the_paired_t_test(study, metric, row, baseline, seeds):
    found = paired_difference(study, row, baseline, metric)
    first, second = scores(study, row, metric, seeds), scores(study, baseline, metric, seeds)
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert found.seeds == len(seeds)
    assert found.mean == pytest.approx(np.mean(first) - np.mean(second), abs=1e-12)
    # float64 rounding of scores below 1
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_pairing_matters():
    """A steady gain under a large spread of seeds: clear because the seeds are paired."""
    rows = (RowInfo("a", "g"), RowInfo("b", "g", baseline="a"))
    gains = (0.09, 0.10, 0.11)
    outcomes = [Outcome("a", seed, 1, float(seed), 0.0, 1.0) for seed in range(3)]
    outcomes += [Outcome("b", seed, 1, seed + gain, 0.0, 1.0) for seed, gain in enumerate(gains)]
    study = Study("t", "test", rows, tuple(outcomes))
    assert paired_difference(study, "b", "a", "cider").low > 0.07
    assert not paired_difference(study, "b", "a", "vqa").excludes_zero


def test_one_seed_has_no_interval(study):
    found = paired_difference(study, "attention only", "student alone", "cider")
    assert found.seeds == 1 and math.isfinite(found.mean)
    assert all(map(math.isnan, (found.deviation, found.low, found.high)))
    assert not found.excludes_zero


def test_no_seed_has_nothing(study):
    unmeasured = row_estimate(study, "distilled", "METEOR")
    assert unmeasured.seeds == 0 and math.isnan(unmeasured.mean)
    without = replace(study, outcomes=tuple(each for each in study.outcomes if each.row != "distilled"))
    assert paired_difference(without, "distilled", "student alone", "cider").seeds == 0
    assert over_test_items(without, "distilled", "student alone", "cider") is None


def test_a_seed_that_was_not_measured_is_left_out(study):
    broken = replace(study, outcomes=tuple(
        replace(each, cider=math.nan) if (each.row, each.seed) == ("distilled", 0) else each for each in study.outcomes
    ))  # fmt: skip
    assert row_estimate(broken, "distilled", "cider").seeds == 4
    found = paired_difference(broken, "distilled", "student alone", "cider")
    expected = stats.ttest_rel(
        scores(study, "distilled", "cider", range(1, 5)), scores(study, "student alone", "cider", range(1, 5))
    ).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("metric, name", [("cider", "cider_per_picture"), ("vqa", "accuracy_per_picture")])
def test_bootstrap_is_the_existing_one_of_the_seeds_means(study, metric, name):
    """Over the three seeds that both have; its centre is the difference of the corpus' scores."""
    first, second = (
        {
            key: np.mean([getattr(each, name)[key] for each in list(study.of(row).values())[:3]])
            for key in study.pictures
        }
        for row in ("no queue", "distilled")
    )
    weights = study.outcomes[0].questions_per_picture if metric == "vqa" else None
    found = over_test_items(study, "no queue", "distilled", metric)
    expected = paired_bootstrap(first, second, weights)
    assert found is not None and found.pictures == 24
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.difference == pytest.approx(paired_difference(study, "no queue", "distilled", metric).mean, abs=1e-12)


def test_no_scores_by_picture_no_bootstrap(study):
    assert over_test_items(without_pictures(study), "distilled", "student alone", "vqa") is None


@pytest.mark.parametrize("seed", [0, 1])
def test_other_pictures_are_refused(study, seed):
    odd = replace(study.of("distilled")[seed], cider_per_picture={"elsewhere": 1.0})
    others = tuple(each for each in study.outcomes if (each.row, each.seed) != ("distilled", seed))
    with pytest.raises(ValueError, match="on the same pictures; 'elsewhere'"):
        over_test_items(replace(study, outcomes=(*others, odd)), "distilled", "student alone", "cider")


def test_summary_holds_every_row_and_metric(study):
    summary = summarise(study)
    assert summary.metrics == ("cider", "vqa", "BLEU-4") and summary.compared == ("cider", "vqa")
    assert set(summary.results) == {(row.name, metric) for row in study.rows for metric in summary.metrics}
    distilled = summary.of("distilled", "cider")
    assert distilled.score == row_estimate(study, "distilled", "cider")
    assert distilled.difference == paired_difference(study, "distilled", "student alone", "cider")
    assert distilled.over_test_items == over_test_items(study, "distilled", "student alone", "cider")
    assert summary.of("distilled", "BLEU-4").over_test_items is None
    baseline = summary.of("student alone", "cider")
    assert baseline.difference is None and baseline.over_test_items is None


def test_a_baseline_that_was_not_run_leaves_the_score(study):
    rows = tuple(row for row in study.rows if row.name != "student alone")
    outcomes = tuple(each for each in study.outcomes if each.row != "student alone")
    found = summarise(replace(study, rows=rows, outcomes=outcomes)).of("distilled", "cider")
    assert found.difference is None and found.score.seeds == 5
