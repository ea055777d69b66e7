"""Claims beside what was found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vlkd.evaluation.seeds import Estimate
from vlkd.study.claims import claims_markdown, found_of
from vlkd.study.findings import Claim, Study
from vlkd.study.page import page
from vlkd.study.statistics import over_test_items, paired_difference

pytestmark = pytest.mark.slow

CLAIMS = (
    Claim("It helps", "distilled", "student alone", "CIDEr +5.1"),
    Claim("The other way round", "teacher, not adapted", "teacher, adapted"),
    Claim("Of a single seed", "attention only", "student alone"),
    Claim("Of a row that is not there", "distilled", "nobody"),
)


@pytest.fixture(scope="module")
def claiming(study: Study) -> Study:
    return replace(study, claims=CLAIMS)


def test_a_claim_is_the_difference_of_its_rows(claiming: Study) -> None:
    found = {(one.claim.text, one.metric): one for one in found_of(claiming)}
    assert [text for text, metric in found if metric == "vqa"] == [
        "It helps",
        "The other way round",
        "Of a single seed",
    ]
    for metric in ("cider", "vqa"):
        one = found["It helps", metric]
        assert one.difference == paired_difference(claiming, "distilled", "student alone", metric)
        assert one.over_test_items == over_test_items(claiming, "distilled", "student alone", metric)
        assert found["The other way round", metric].difference.mean < 0
    assert found["The other way round", "cider"].verdict == "disagrees"
    assert found["Of a single seed", "cider"].verdict == "one seed cannot tell"


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.1, 0.3, "agrees"), (-0.3, -0.1, "disagrees"), (-0.1, 0.3, "not resolved")]
)
def test_the_interval_over_seeds_decides(claiming: Study, low: float, high: float, verdict: str) -> None:
    one = next(found_of(claiming))
    assert replace(one, difference=Estimate((low + high) / 2, 0.1, low, high, 3)).verdict == verdict


def test_the_tables_say_it(claiming: Study) -> None:
    table = claims_markdown(claiming)
    assert table.count("| It helps | CIDEr +5.1 | distilled − student alone | CIDEr |") == 1
    assert "nobody" not in table and "disagrees" in table
    shown = page(claiming)
    assert "The paper’s claims" in shown and "The paper: CIDEr +5.1." in shown


def test_a_study_without_claims_says_nothing_of_them(study: Study) -> None:
    assert claims_markdown(study) == "" and "claims" not in page(study)


def test_claims_are_kept(claiming: Study, tmp_path) -> None:
    claiming.save(tmp_path / "study.json")
    assert Study.load(tmp_path / "study.json").claims == CLAIMS
