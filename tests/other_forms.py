"""Hand-made files of LXMERT, of bottom-up attention, and of arrays, with the pictures of :mod:`oscar_files`; how faults are told."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oscar_files import KEYS, SIZES, boxes, encoded, features
from safetensors.numpy import save_file

from vlkd.data.oscar import Sources, import_oscar, validate
from vlkd.errors import VlkdError

CLASSES = ("yolk", "goal", "bathroom", "dog,hound", "sheep")


def class_numbers(key: str, count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64) * int(key) % len(CLASSES)


def lxmert_row(key: str, side: int = 2, dim: int = 7, **changes: str) -> dict[str, str]:
    """Column -> text, in LXMERT's order."""
    of = boxes(key, 5) if side == 2 else boxes(key)
    numbers = features(key, side, dim)[:, :-6]
    row = {
        "img_id": key,
        "img_h": str(SIZES[key][1]),
        "img_w": str(SIZES[key][0]),
        "objects_id": base64.b64encode(class_numbers(key, len(of)).tobytes()).decode(),
        "objects_conf": encoded(np.linspace(1, 0, len(of))),
        "attrs_id": base64.b64encode(class_numbers(key, len(of)).tobytes()).decode(),
        "attrs_conf": encoded(np.linspace(0, 1, len(of))),
        "num_boxes": str(len(of)),
        "boxes": encoded(of),
        "features": encoded(numbers),
    }
    return row | changes


def bottom_up_row(key: str, side: int = 2, dim: int = 7, **changes: str) -> dict[str, str]:
    """Column -> text, in bottom-up attention's order."""
    row = lxmert_row(key, side, dim)
    names = {"img_id": "image_id", "img_w": "image_w", "img_h": "image_h"}
    order = ("img_id", "img_w", "img_h", "num_boxes", "boxes", "features")
    return {names.get(name, name): row[name] for name in order} | changes


def write_rows(path: Path, rows: list[dict[str, str]], header: bool = False) -> Path:
    lines = [list(rows[0])] if header else []
    lines += [list(row.values()) for row in rows]
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    return path


def write_arrays(path: Path, rows: dict[str, np.ndarray]) -> Path:
    """A file of arrays, by its suffix."""
    if path.suffix == ".npz":
        np.savez(path, **rows)
    elif path.suffix == ".safetensors":
        save_file(rows, path)
    else:
        torch.save({key: torch.from_numpy(value) for key, value in rows.items()}, path)
    return path


def of_own(keys: tuple[str, ...] = KEYS) -> dict[str, np.ndarray]:
    """The teacher's own features."""
    return {key: features(key, 2, 7) for key in keys}


def numbers(
    value: float, dtype: str = "float32", place: tuple[int, int] = (1, 3)
) -> Callable[[], dict[str, np.ndarray]]:
    """The teacher's own features with one number of picture 7 replaced."""

    def rows() -> dict[str, np.ndarray]:
        changed = {key: of.astype(dtype) for key, of in of_own().items()}
        changed["7"][place] = value
        return changed

    return rows


def refused(sources: Sources, folder: Path, sentence: str, **options: Any) -> str:
    """The sentence with which an import refuses files; `validate` names it too, and nothing is left."""
    problems = [
        finding.problem for finding in validate(sources, dtype=options.get("dtype", "float16")) if finding.fatal
    ]
    with pytest.raises(VlkdError) as caught:
        import_oscar(sources, folder / "data", **options)
    told = str(caught.value)
    assert re.search(sentence, told), told
    assert told in problems, problems
    assert len(told) < 700 and "\n" not in told
    assert not (folder / "data" / "store").exists() and not (folder / "data" / ".store.unfinished").exists()
    return told
