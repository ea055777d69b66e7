"""A small invented study: teachers, both students, two queues, three shares, and a row of one seed."""

from __future__ import annotations

import numpy as np
import pytest

from vlkd.study.findings import Outcome, RowInfo, Study

ALONE = "student alone"
ROWS = (  # row, mean CIDEr, mean accuracy, seeds
    (RowInfo("teacher, not adapted", "Teachers"), 0.60, 0.55, 3),
    (RowInfo("teacher, adapted", "Teachers", "trained further", "teacher, not adapted", main=True), 0.90, 0.75, 3),
    (RowInfo(ALONE, "Students", share=1.0, main=True), 0.62, 0.60, 5),
    (RowInfo("distilled", "Students", "all losses", ALONE, queue=4096, share=1.0, main=True), 0.68, 0.62, 5),
    (RowInfo("attention only", "Which losses", "L_ATT", ALONE), 0.64, 0.61, 1),
    (RowInfo("no queue", "Queue", "in-batch", "distilled", queue=0), 0.66, 0.61, 3),
    (RowInfo("student, 1 %", "Data", "", None, share=0.01), 0.40, 0.45, 3),
    (RowInfo("distilled, 1 %", "Data", "", "student, 1 %", share=0.01), 0.44, 0.46, 3),
)
PICTURES = [f"test-{number:06d}" for number in range(24)]
QUESTIONS = {key: 2 + number % 3 for number, key in enumerate(PICTURES)}


def outcome(row: str, seed: int, cider: float, accuracy: float, noise: np.random.Generator) -> Outcome:
    """Scores by picture about the given means, and the corpus' scores that follow from them."""
    ciders = dict(zip(PICTURES, cider * noise.uniform(0.5, 1.5, len(PICTURES)), strict=True))
    right = {key: noise.binomial(QUESTIONS[key], accuracy) / QUESTIONS[key] for key in PICTURES}
    total = sum(QUESTIONS.values())
    return Outcome(
        row=row,
        seed=seed,
        parameters=912_345 if row.startswith("teacher") else 204_321,
        cider=float(sum(ciders.values()) / len(ciders)),
        vqa=sum(right[key] * QUESTIONS[key] for key in PICTURES) / total,
        seconds=41.5 + seed,
        scores={"BLEU-4": cider / 3 + noise.uniform(0, 0.05)},
        cider_per_picture={key: float(value) for key, value in ciders.items()},
        accuracy_per_picture=right,
        questions_per_picture=QUESTIONS,
    )


@pytest.fixture(scope="session")
def study() -> Study:
    noise = np.random.default_rng(0)
    return Study(
        title="Eight rows",
        split="test",
        rows=tuple(row for row, *_ in ROWS),
        outcomes=tuple(
            outcome(row.name, seed, cider, accuracy, noise)
            for row, cider, accuracy, seeds in ROWS
            for seed in range(seeds)
        ),
        settings={"seed": 0, "world": {"train": 10}},
        versions={"vlkd": "0.1", "torch": "2.15"},
        hardware="two cores",
        commit="0123abc",
        command="vlkd study ablations --seeds 5",
        seconds=7200.0,
        headline="distilled",
    )
