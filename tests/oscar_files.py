"""Hand-made files in the formats of Oscar and VinVL: three pictures, two detectors, tags, captions, questions."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path

import numpy as np
import torch

from vlkd.data.oscar import Sources
from vlkd.regions.paired import geometry

KEYS = ("42", "7", "101")
SIZES = {"42": (640, 480), "7": (500, 375), "101": (333, 500)}
CAPTIONS = {"42": ["a dog runs .", "one dog"], "7": ["two cats"], "101": ["a tree and a car"]}
ANSWERS = {"yes": 0, "two": 1, "red": 2}


def boxes(key: str, count: int | None = None) -> np.ndarray:
    """[n, 4] float32 in pixels; 2, 3 and 4 boxes unless told."""
    rng = np.random.default_rng(int(key))
    width, height = SIZES[key]
    count = 2 + KEYS.index(key) if count is None else count
    corner = rng.uniform(0, 0.5, (count, 2))
    whole = np.concatenate([corner, corner + rng.uniform(0.1, 0.4, (count, 2))], axis=1)
    return (whole * np.array([width, height] * 2)).astype(np.float32)


def features(key: str, side: int, dim: int) -> np.ndarray:
    """[n, dim + 6] float32; side 0 the student, 1 the teacher, 2 the teacher on boxes of its own."""
    of = boxes(key, 5) if side == 2 else boxes(key)
    numbers = np.random.default_rng((side, int(key))).standard_normal((len(of), dim)).astype(np.float32)
    return np.concatenate([numbers, geometry(of, *SIZES[key])], axis=1)


def encoded(rows: np.ndarray, dtype: str = "float32") -> str:
    return base64.b64encode(np.ascontiguousarray(rows.astype(dtype)).tobytes()).decode()


def write_features(path: Path, rows: dict[str, np.ndarray], form: str = "captioning", dtype: str = "float32") -> Path:
    """A file of features in one of Oscar's forms."""
    if form == "tensors":
        torch.save({key: torch.from_numpy(value) for key, value in rows.items()}, path.with_suffix(".pt"))
        return path.with_suffix(".pt")
    lines = []
    for key, value in rows.items():
        if form == "captioning":
            lines.append(f"{key}\t{json.dumps({'num_boxes': len(value), 'features': encoded(value, dtype)})}\n")
        elif form == "pre-training":
            lines.append(f"{key}\t{len(value)}\t{encoded(value, dtype)}\n")
        else:
            width, height = SIZES[key]
            objects = [
                {"rect": rect.tolist(), "class": f"thing{i}", "conf": 0.9, "feature": encoded(row[None, :-6], dtype)}
                for i, (rect, row) in enumerate(zip(boxes(key, len(value)), value, strict=True))
            ]
            lines.append(f"{key}\t{json.dumps({'objects': objects, 'image_w': width, 'image_h': height})}\n")
    path.write_text("".join(lines))
    return path


def write_tags(path: Path, keys: tuple[str, ...] = KEYS) -> Path:
    """A label file; one tag more than regions."""
    rows = {key: [{"class": f"tag{i}", "conf": 0.5} for i in range(3 + KEYS.index(key))] for key in keys if key in KEYS}
    rows |= {key: [{"class": "stranger"}] for key in keys if key not in KEYS}
    path.write_text("".join(f"{key}\t{json.dumps(rows[key])}\n" for key in keys))
    return path


def write_texts(folder: Path) -> tuple[Path, Path, Path]:
    """Captions, questions, answers (a pickle, as Oscar has it)."""
    captions = [
        {"image_id": int(key), "id": 10 * int(key) + i, "caption": caption}
        for key, of in CAPTIONS.items()
        for i, caption in enumerate(of)
    ]
    (folder / "train_caption.json").write_text(json.dumps(captions))
    questions = [
        {"q": "is it ?", "o": "dog ; tall tree", "an": [0, 2], "s": [0.3, 1], "img_id": 42, "q_id": 420},
        {"q": "how many ?", "o": "cat", "an": [], "s": [], "img_id": 7, "q_id": 70},
    ]
    (folder / "train2014_qla_mrcnn.json").write_text(json.dumps(questions))
    (folder / "trainval_ans2label.pkl").write_bytes(pickle.dumps(ANSWERS))
    return folder / "train_caption.json", folder / "train2014_qla_mrcnn.json", folder / "trainval_ans2label.pkl"


def write_all(folder: Path, form: str = "captioning") -> Sources:
    """Every file of a sound data set."""
    sides = [
        write_features(folder / f"{name}.feature.tsv", {key: features(key, side, dim) for key in KEYS}, form)
        for side, (name, dim) in enumerate((("student", 5), ("teacher", 7)))
    ]
    own = write_features(folder / "own.feature.tsv", {key: features(key, 2, 7) for key in KEYS}, form)
    captions, questions, answers = write_texts(folder)
    tags, own_tags = write_tags(folder / "student.label.tsv"), write_tags(folder / "own.label.tsv")
    return Sources(*sides, own, tags, own_tags, captions, questions, answers)
