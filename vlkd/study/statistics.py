"""How sure a study's numbers are: Student's t over training seeds and, beside it, a bootstrap over pictures.

The two answer different questions. Seeds: would another training of the same row give the same? Pictures: would other
test pictures? An interval over one of them says nothing about the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlkd.evaluation.bootstrap import Interval, paired_bootstrap
from vlkd.evaluation.seeds import LEVEL, Estimate, t_interval
from vlkd.study.findings import METRICS, Outcome, RowInfo, Study

_PER_PICTURE = {"cider": "cider_per_picture", "vqa": "accuracy_per_picture"}


@dataclass(frozen=True)
class Result:
    """What is known of one row in one metric. Without a baseline in the study the differences are None."""

    score: Estimate
    difference: Estimate | None = None  # to the baseline, paired by seed
    over_test_items: Interval | None = None  # of the same difference, over the pictures drawn


@dataclass(frozen=True)
class Summary:
    """A study with every number that is printed of it, computed once."""

    study: Study
    metrics: tuple[str, ...]  # of METRICS those that were measured, then further ones
    results: Mapping[tuple[str, str], Result]  # (row, metric) -> result

    @property
    def compared(self) -> tuple[str, ...]:
        """The metrics of METRICS that were measured."""
        return tuple(metric for metric in self.metrics if metric in METRICS)

    def of(self, row: str, metric: str) -> Result:
        return self.results[row, metric]


def summarise(study: Study) -> Summary:
    """All estimates, differences and bootstrap intervals of a study."""
    metrics = tuple(study.metrics())
    results = {(row.name, metric): _result(study, row, metric) for row in study.rows for metric in metrics}
    return Summary(study, metrics, results)


def _result(study: Study, row: RowInfo, metric: str) -> Result:
    score = row_estimate(study, row.name, metric)
    if row.baseline is None or study.row(row.baseline) is None:
        return Result(score)
    difference = paired_difference(study, row.name, row.baseline, metric)
    items = over_test_items(study, row.name, row.baseline, metric) if metric in METRICS else None
    return Result(score, difference, items)


def row_estimate(study: Study, row: str, metric: str) -> Estimate:
    """A row's mean score over the seeds that measured ``metric``."""
    return t_interval([score for outcome in study.of(row).values() if math.isfinite(score := outcome.score(metric))])


def paired_difference(study: Study, row: str, baseline: str, metric: str) -> Estimate:
    """``row`` − ``baseline`` over the seeds that measured both: the paired t interval.

    Equal to the interval of ``scipy.stats.ttest_rel``. Pairing by seed takes out what the two share: the order of the
    data, the initial weights, the teacher of that seed.
    """
    pairs = ((first.score(metric), second.score(metric)) for first, second in _pairs(study, row, baseline))
    return t_interval([first - second for first, second in pairs if math.isfinite(first - second)])


def over_test_items(study: Study, row: str, baseline: str, metric: str) -> Interval | None:
    """``row`` − ``baseline`` with a bootstrap interval over the test pictures: it is about the pictures that were
    drawn for the test, and not about seeds.

    Each picture's score is averaged over the seeds that both rows have, then pictures are drawn again with
    :func:`vlkd.evaluation.bootstrap.paired_bootstrap`. This is exact for CIDEr too: that of a corpus is the mean of
    the pictures' values, each with the document frequencies of all references. VQA's pictures weigh by their
    questions.

    Returns:
        None where the two share no seed with scores by picture.

    Raises:
        ValueError: the outcomes were not scored on the same pictures.
    """
    name = _PER_PICTURE[metric]
    pairs = [pair for pair in _pairs(study, row, baseline) if all(getattr(outcome, name) for outcome in pair)]
    if not pairs:
        return None
    first = _mean_by_picture([getattr(pair[0], name) for pair in pairs])
    second = _mean_by_picture([getattr(pair[1], name) for pair in pairs])
    weights = pairs[0][0].questions_per_picture if metric == "vqa" else None
    return paired_bootstrap(first, second, weights, level=LEVEL)


def _pairs(study: Study, row: str, baseline: str) -> list[tuple[Outcome, Outcome]]:
    """The outcomes of both rows for every seed that both have."""
    first, second = study.of(row), study.of(baseline)
    return [(first[seed], second[seed]) for seed in first if seed in second]


def _mean_by_picture(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    keys = scores[0].keys()
    for each in scores[1:]:
        if each.keys() != keys:
            odd = sorted(each.keys() ^ keys)[0]
            raise ValueError(f"every seed must be scored on the same pictures; {odd!r} is not in all of them")
    return {key: math.fsum(each[key] for each in scores) / len(scores) for key in keys}
