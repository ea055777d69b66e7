"""A small invented story, complete in every part, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vlkd.evaluation.bootstrap import paired_bootstrap
from vlkd.report import (
    AnsweredQuestion,
    AttentionExample,
    Comparison,
    ModelRow,
    ReportData,
    Sample,
    StageRecord,
)

MODELS = {
    "teacher, own regions": 0.91,
    "teacher, not adapted": 0.62,
    "teacher, adapted": 0.88,
    "student alone": 0.55,
    "student, distilled": 0.64,
}


def _scores(strength: float) -> dict[str, float]:
    return {f"BLEU-{n}": strength / n for n in (1, 2, 3, 4)} | {"ROUGE-L": 0.8 * strength, "CIDEr": 1.1 * strength}


def _accuracies(strength: float) -> dict[str, float]:
    return {"all": 0.8 * strength, "colour": 0.9 * strength, "count": 0.6 * strength, "relation": 0.7 * strength}


def _rows() -> tuple[ModelRow, ...]:
    return tuple(
        ModelRow(
            name=name,
            parameters=912_000 if "teacher" in name else 204_000,
            captioning={
                "picture": _scores(strength),
                "none": _scores(0.2),
                "other": _scores(0.18),
            },
            vqa={"picture": _accuracies(strength), "none": _accuracies(0.4), "other": _accuracies(0.37)},
            note="trained on what it says, and on nothing else",
        )
        for name, strength in MODELS.items()
    )


def _metrics(path: Path, terms: tuple[str, ...]) -> Path:
    rng = np.random.default_rng(len(terms))
    rows = []
    for step in range(10, 310, 10):
        raw = {term: float((1 + i) * np.exp(-step / 150) + 0.1 + 0.05 * rng.random()) for i, term in enumerate(terms)}
        raw = {term: value * (1e-3 if term == "attention" else 1) for term, value in raw.items()}
        row = {"step": step, "lr": 1e-4, "loss": sum(raw.values())} | {f"raw/{t}": v for t, v in raw.items()}
        rows.append(row | {f"share/{t}": 1 / len(terms) for t in terms})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _stages(folder: Path) -> tuple[StageRecord, ...]:
    stages = [StageRecord("regions", "regions", "detectors", 41.2, None, "1640 pictures")]
    own = {"pretraining": ("language", "matching"), "captioning": ("captioning",), "vqa": ("answers",)}
    for task, terms in own.items():
        for model in ("teacher, adapted", "student alone", "student, distilled"):
            more = () if model != "student, distilled" else ("attention", "hidden", "classes")
            more = more[:2] if task == "pretraining" else more
            path = _metrics(folder / f"{task}-{model}.jsonl", terms + more)
            stages.append(StageRecord(f"{task}", task, model, 63.0, path, "loss 1.20 after 300 steps"))  # type: ignore[arg-type]
    return tuple(stages)


def _pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(120, 200, size=(96, 96, 3), dtype=np.uint8)


BOXES = np.array([[8, 10, 40, 44], [50, 52, 88, 90], [20, 50, 46, 80]], dtype=np.float32)


def _sample(number: int) -> Sample:
    return Sample(
        key=f"test-{number:06d}",
        pixels=_pixels(number),
        boxes=BOXES,
        tags=("circle", "star", "ring"),
        references=("a red circle left of a star", "two things"),
        captions={name: f"a red circle says {name}" for name in MODELS},
        questions=(
            AnsweredQuestion("colour", "what colour is the star ?", "red", dict.fromkeys(MODELS, "red")),
            AnsweredQuestion("count", "how many rings are there ?", "2", dict.fromkeys(MODELS, "3")),
        ),
    )


def _attention(number: int) -> AttentionExample:
    weights = np.array([0.4, 0.1, 0.05])
    return AttentionExample(
        key=f"test-{number:06d}",
        pixels=_pixels(number),
        boxes=BOXES,
        words=("[CLS]", "a", "red", "circle", "[SEP]"),
        word=3,
        maps={"teacher, adapted": weights, "student, distilled": weights[::-1].copy()},
    )


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    keys = [f"test-{i:06d}" for i in range(40)]
    rng = np.random.default_rng(0)
    first = {key: float(rng.random() + 0.1) for key in keys}
    second = {key: float(rng.random()) for key in keys}
    names = ("student, distilled", "student alone")
    return ReportData(
        title="Five models on rendered pictures",
        rows=_rows(),
        detectors={"student": 0.612, "teacher": 0.874},
        test_pictures=40,
        test_questions=320,
        seed=0,
        comparisons=(
            Comparison("CIDEr", *names, paired_bootstrap(first, second)),
            Comparison("VQA accuracy", *names, paired_bootstrap(second, second)),
        ),
        stages=_stages(tmp_path_factory.mktemp("stages")),
        samples=(_sample(1), _sample(2)),
        attention=(_attention(3),),
        unavailable={"METEOR": "METEOR needs Java, and no `java` is on the PATH"},
        tokenisation="lower case",
        settings={"seed": 0, "world": {"train": 10}},
        versions={"vlkd": "0.1", "torch": "2.15"},
        command="vlkd demo --seed 0",
    )
