"""Soft VQA accuracy against the official formula."""

from __future__ import annotations

from itertools import combinations

import pytest

from vlkd.evaluation import soft_accuracy, vqa_scores


def official(answer: str, annotators: list[str]) -> float:
    """Mean of min(1, matches / 3) over all subsets that leave one annotator out."""
    subsets = list(combinations(annotators, len(annotators) - 1))
    return sum(min(1.0, subset.count(answer) / 3) for subset in subsets) / len(subsets)


@pytest.mark.parametrize("agreeing", range(11))
def test_ten_annotators(agreeing):
    annotators = ["red"] * agreeing + ["blue"] * (10 - agreeing)
    assert soft_accuracy("red", annotators) == pytest.approx(official("red", annotators))


def test_known_values():
    """0, 0.3, 0.6, 0.9, 1: the values of the VQA challenge for 0 to 4 of 10 annotators."""
    values = [soft_accuracy("red", ["red"] * n + ["blue"] * (10 - n)) for n in range(5)]
    assert values == pytest.approx([0, 0.3, 0.6, 0.9, 1.0])


def test_one_annotator_is_exact_match():
    assert soft_accuracy("red", ["red"]) == 1.0
    assert soft_accuracy("red", ["blue"]) == 0.0


def test_all_of_two_agreeing_gives_one():
    assert soft_accuracy("red", ["red", "red"]) == 1.0
    assert soft_accuracy("red", ["red", "blue"]) == 0.5


def test_no_annotator_is_refused():
    with pytest.raises(ValueError, match="got none"):
        soft_accuracy("red", [])


def test_scores_per_kind():
    scores = vqa_scores([1.0, 0.0, 1.0, 1.0], ["count", "count", "colour", "colour"])
    assert scores == {"all": 0.75, "colour": 1.0, "count": 0.5}
    assert next(iter(scores)) == "all"
    with pytest.raises(ValueError, match="4 answers, got 1"):
        vqa_scores([1.0, 0.0, 1.0, 1.0], ["count"])
