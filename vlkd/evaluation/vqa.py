"""Soft VQA accuracy (Antol et al., arXiv 1505.00468), for all questions and per kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlkd.data.vqa_v2 import normalized_answer

ALL = "all"


def soft_accuracy(answer: str, annotators: Sequence[str]) -> float:
    """Accuracy of one answer against what the annotators said.

    The official formula: the mean, over every choice of all annotators but one, of ``min(1, matches / 3)``
    among the chosen. One annotator (a rendered answer) makes it exact match; with two or three the divisor
    is the number of the chosen, so that agreeing with all gives 1.
    """
    if not annotators:
        raise ValueError("soft accuracy needs at least one annotator's answer, got none")
    matches = [normalized_answer(answer) == normalized_answer(other) for other in annotators]
    if len(matches) == 1:
        return float(matches[0])
    divisor = min(3, len(matches) - 1)
    total = sum(matches)
    return sum(min(1.0, (total - match) / divisor) for match in matches) / len(matches)


def vqa_scores(accuracies: Sequence[float], kinds: Sequence[str]) -> dict[str, float]:
    """Mean accuracy over all questions (``"all"``) and over each kind, kinds in alphabetical order; empty without questions."""
    if len(accuracies) != len(kinds):
        raise ValueError(f"expected one kind for each of {len(accuracies)} answers, got {len(kinds)}")
    if not accuracies:
        return {}
    by_kind: dict[str, list[float]] = {}
    for accuracy, kind in zip(accuracies, kinds, strict=True):
        by_kind.setdefault(kind, []).append(accuracy)
    means: Mapping[str, float] = {kind: sum(v) / len(v) for kind, v in sorted(by_kind.items())}
    return {ALL: sum(accuracies) / len(accuracies), **means}
