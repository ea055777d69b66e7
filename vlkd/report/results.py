"""results.json: the page's numbers for programs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlkd.report.story import ModelRow, ReportData
from vlkd.runs import write_atomically


def results_dict(story: ReportData) -> dict[str, Any]:
    """The numbers of a report; scores keep their own scale (CIDEr 1.0 is printed as 100.0)."""
    return {
        "title": story.title,
        "seed": story.seed,
        "test_pictures": story.test_pictures,
        "test_questions": story.test_questions,
        "detectors_ap50": dict(story.detectors),
        "rows": [_row(row) for row in story.rows],
        "validation": [_row(row) for row in story.validation],
        "comparisons": [asdict(comparison) for comparison in story.comparisons],
        "repeated": [asdict(difference) for difference in story.repetition.differences] if story.repetition else [],
        "stages": [
            {
                "name": stage.name,
                "task": stage.task,
                "model": stage.model,
                "seconds": stage.seconds,
                "sessions": stage.sessions,
                "result": stage.result,
            }
            for stage in story.stages
        ],
        "unavailable": dict(story.unavailable),
        "tokenisation": story.tokenisation,
        "versions": dict(story.versions),
        "settings": dict(story.settings),
    }


def _row(row: ModelRow) -> dict[str, Any]:
    return {
        "model": row.name,
        "parameters": row.parameters,
        "captioning": {condition: dict(scores) for condition, scores in row.captioning.items()},
        "vqa": {condition: dict(scores) for condition, scores in row.vqa.items()},
        "note": row.note,
    }


def write_results(folder: Path, story: ReportData) -> Path:
    """Write ``results.json`` into ``folder`` and return its path. NaN is written as null."""
    path = Path(folder) / "results.json"
    text = json.dumps(_without_nan(results_dict(story)), indent=2, allow_nan=False)
    write_atomically(path, text + "\n")
    return path


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
