"""What a report is written from. `pipeline.py` fills a `ReportData`; everything here is plain data.

Letters: H, W pixels; n boxes of a picture; R regions shown to the models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlkd.evaluation.bootstrap import Interval
from vlkd.report.repetition import Repetition

CONDITIONS: dict[str, str] = {
    "picture": "the picture's own regions and tags",
    "none": "no regions and no tags",
    "other": "regions and tags of another picture",
}
"""Conditions of evaluation, in the order of the tables."""

Scores = Mapping[str, float]


@dataclass(frozen=True)
class ModelRow:
    """One compared model. Scores keep their own scale (CIDEr 1.0, accuracy 0..1); tables print x 100."""

    name: str  # short; it is the legend of every plot
    parameters: int  # of the captioning model, embeddings included
    captioning: Mapping[str, Scores]  # condition -> metric -> score
    vqa: Mapping[str, Scores]  # condition -> "all" or question kind -> accuracy
    note: str = ""  # one sentence: what it was trained on and what it reads


@dataclass(frozen=True)
class Comparison:
    """The difference ``first - second`` of one metric, with its bootstrap interval over test pictures."""

    metric: str  # "CIDEr" or "VQA accuracy"
    first: str  # a ModelRow's name
    second: str
    interval: Interval


@dataclass(frozen=True)
class StageRecord:
    """One finished stage. Stages with ``metrics`` are drawn in the plot of their task."""

    name: str  # the stage's folder, e.g. "distill"
    task: Literal["regions", "pretraining", "captioning", "vqa", "evaluation"]
    model: str  # legend: whose stage it is
    seconds: float
    metrics: Path | None = None  # metrics.jsonl
    result: str = ""  # its outcome in a few words, e.g. "loss 1.83 after 300 steps"
    sessions: int = 1  # over which the seconds are added up


@dataclass(frozen=True)
class AnsweredQuestion:
    kind: str
    question: str
    truth: str
    answers: Mapping[str, str]  # model -> answer


@dataclass(frozen=True)
class Sample:
    """One test picture with what the models said about it."""

    key: str
    pixels: np.ndarray | str  # [H, W, 3] uint8, or a sentence that says why there is none
    boxes: np.ndarray  # [n, 4] x1, y1, x2, y2 in pixels
    tags: tuple[str, ...]  # [n]
    references: tuple[str, ...]
    captions: Mapping[str, str]  # model -> caption
    questions: tuple[AnsweredQuestion, ...]


@dataclass(frozen=True)
class AttentionExample:
    """Where one word looks: attention over the regions, mean over heads of the last layer."""

    key: str
    pixels: np.ndarray  # [H, W, 3] uint8
    boxes: np.ndarray  # [R, 4] x1, y1, x2, y2 in pixels
    words: tuple[str, ...]  # the sentence, as the models read it
    word: int  # index into `words`
    maps: Mapping[str, np.ndarray]  # model -> [R], each weight in 0..1; what is missing to 1 goes to text


@dataclass(frozen=True)
class ReportData:
    """Everything the page and results.json show."""

    title: str
    rows: tuple[ModelRow, ...]
    detectors: Mapping[str, float]  # "student" and "teacher" -> AP50 in 0..1 on validation pictures
    test_pictures: int
    test_questions: int
    seed: int
    test_seen: int = 0  # test pictures that training had too
    validation: tuple[ModelRow, ...] = ()  # the same models on the validation split, on which settings are chosen
    comparisons: tuple[Comparison, ...] = ()  # first those of distillation: they head the page
    repetition: Repetition | None = None  # what several trainings with these settings gave, where it is known
    stages: tuple[StageRecord, ...] = ()
    samples: tuple[Sample, ...] = ()
    attention: tuple[AttentionExample, ...] = ()
    unavailable: Mapping[str, str] = field(default_factory=dict)  # metric -> why it is absent
    tokenisation: str = ""  # of the caption metrics
    hints: tuple[str, ...] = ()  # what the scores do not say by themselves
    settings: Mapping[str, Any] = field(default_factory=dict)  # the resolved recipe
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = "vlkd demo"  # repeats the run
