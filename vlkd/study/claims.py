"""The paper's claims beside what a study found: agrees, disagrees, or not resolved at this size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vlkd.evaluation.bootstrap import Interval
from vlkd.evaluation.seeds import Estimate
from vlkd.study.findings import METRICS, Claim, Study
from vlkd.study.statistics import over_test_items, paired_difference
from vlkd.study.tables import ABSENT, PERCENT, SHORT, bounds, change, markdown_line, plain, scored_on


@dataclass(frozen=True)
class Found:
    """What a study found of a claim in one metric: the difference ``claim.first - claim.second``."""

    claim: Claim
    metric: str
    difference: Estimate  # paired by seed
    over_test_items: Interval | None

    @property
    def verdict(self) -> str:
        """By Student's t interval over seeds alone."""
        if self.difference.seeds < 2:
            return "one seed cannot tell" if self.difference.seeds else "not measured"
        if not self.difference.excludes_zero:
            return "not resolved"
        return "agrees" if self.difference.low > 0 else "disagrees"


def found_of(study: Study) -> Iterator[Found]:
    """Every claim whose two rows the study has, in every metric that was measured."""
    metrics = [metric for metric in study.metrics() if metric in METRICS]
    for claim in study.claims:
        if study.row(claim.first) is None or study.row(claim.second) is None:
            continue
        for metric in metrics:
            difference = paired_difference(study, claim.first, claim.second, metric)
            yield Found(claim, metric, difference, over_test_items(study, claim.first, claim.second, metric))


def claims_markdown(study: Study) -> str:
    """A Markdown table, a line a claim and metric; empty for a study without claims."""
    found = list(found_of(study))
    if not found:
        return ""
    head = [
        "claim",
        "in the paper",
        "here",
        "metric",
        f"difference [{PERCENT} t, seeds]",
        "[bootstrap, pictures]",
        "verdict",
    ]
    lines = [markdown_line(head), "|" + "---|" * 4 + "---:|---:|---|"]
    previous = None
    for one in found:
        claim = one.claim
        told = [plain(claim.text), plain(claim.paper or ABSENT), plain(f"{claim.first} − {claim.second}")]
        lines.append(
            markdown_line(
                [
                    *(told if claim is not previous else [""] * 3), SHORT[one.metric], change(one.difference),
                    bounds(one.over_test_items), one.verdict,
                ]
            )
        )  # fmt: skip
        previous = claim
    below = (
        f"Differences are × 100, on {scored_on(study)}. A claim is that the first row is better; the verdict is that of the interval over "
        "seeds: above 0 agrees, below 0 disagrees, and what includes 0 is not resolved at this size."
    )
    return "\n".join([*lines, "", below]) + "\n"
