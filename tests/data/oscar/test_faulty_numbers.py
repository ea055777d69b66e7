"""Numbers that no store holds, and boxes in another unit or order: one sentence from `validate` and from an import."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from oscar_files import KEYS, boxes, encoded, write_features
from other_forms import bottom_up_row, lxmert_row, numbers, of_own, refused, write_rows

from vlkd.data.oscar import Sources, import_oscar, validate

FORMS = ("captioning", "pre-training", "extractor", "tensors")
VALUES = {
    "nan": (np.nan, "float32", "number 3 of region 1 .* is nan"),
    "inf": (np.inf, "float32", "number 3 of region 1 .* is inf"),
    "minus inf in float16": (-np.inf, "float16", "number 3 of region 1 .* is -inf"),
    "beyond float16": (70_000, "float32", "number 3 of region 1 .* is 70000, beyond float16's 65504.*--dtype"),
    "beyond float32": (1e39, "float64", r"number 3 of region 1 .* is 1e\+39, beyond float32"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", VALUES)
def test_numbers_that_no_store_holds(name: str, form: str, tmp_path: Path) -> None:
    value, dtype, sentence = VALUES[name]
    path = write_features(tmp_path / "own.tsv", numbers(value, dtype)(), form, dtype)
    line = "" if form == "tensors" else ", line 2"
    refused(Sources(own=path, stored_as=dtype), tmp_path, rf"own\.(tsv|pt)'{line}, key '7'.*{sentence}")  # type: ignore[arg-type]


def test_float32_keeps_what_float16_cannot(tmp_path: Path) -> None:
    path = write_features(tmp_path / "own.tsv", numbers(70_000)())
    store = import_oscar(Sources(own=path), tmp_path / "data", dtype="float32").store
    assert store.read(["7"], "own")[0].features[1, 3] == 70_000  # type: ignore[union-attr]
    assert [finding for finding in validate(Sources(own=path), dtype="float32") if finding.fatal] == []


@pytest.mark.parametrize("place", range(6))
def test_a_geometry_of_no_number(place: int, tmp_path: Path) -> None:
    path = write_features(tmp_path / "own.tsv", numbers(np.nan, place=(1, 7 + place))())
    refused(Sources(own=path), tmp_path, f"line 2, key '7': number {7 + place} of region 1 .* is nan")


# ---- boxes in pixels --------------------------------------------------------------------------------------------------

CORNERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "x, y, width, height": (
        lambda of: np.concatenate([of[:, :2], of[:, 2:] - of[:, :2]], axis=1), "looks like x, y, width, height"),
    "parts of the picture": (lambda of: of / np.array([500, 375, 500, 375]), "all boxes lie between 0 and 1"),
    "corners exchanged": (lambda of: of[:, [2, 3, 0, 1]], "has no area, but corners with x1 < x2"),
    "of a resized picture": (lambda of: of * 2.5, r"reaches beyond the picture of 500 x 375 \(width x height\)"),
    "not a number": (lambda of: of * np.nan, "not finite"),
    "without area": (lambda of: of[:, [0, 1, 0, 3]], "has no area"),
    "outside": (lambda of: of - 400, "reaches beyond"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["extractor", "LXMERT", "bottom-up"])
@pytest.mark.parametrize("name", CORNERS)
def test_boxes_in_another_unit_or_order(name: str, form: str, tmp_path: Path) -> None:
    change, sentence = CORNERS[name]
    changed = change(boxes("7", 5))
    if form == "extractor":
        path = write_features(tmp_path / "own.tsv", of_own(), "extractor")
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        content = json.loads(lines[1][1])
        for item, rect in zip(content["objects"], changed.tolist(), strict=True):
            item["rect"] = rect
        lines[1][1] = json.dumps(content)
        path.write_text("".join("\t".join(line) + "\n" for line in lines))
    else:
        row = lxmert_row if form == "LXMERT" else bottom_up_row
        rows = [row(key) | ({"boxes": encoded(changed)} if key == "7" else {}) for key in KEYS]
        path = write_rows(tmp_path / "own.tsv", rows)
    refused(Sources(own=path), tmp_path, rf"own.tsv', line 2, key '7': .*{sentence}")


SIX: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "corners exchanged": (lambda g: g[:, [2, 3, 0, 1, 4, 5]], "do not end with x1/W"),
    "x, y, width, height": (lambda g: g[:, [0, 1, 4, 5, 2, 3]], "do not end with x1/W"),
    "pixels": (lambda g: g * np.array([500, 375] * 3), "are pixels: divide them by"),
    "no width": (lambda g: g * np.array([1, 1, 1, 1, 0, 1]), "do not end with x1/W"),
    "outside": (lambda g: g + np.array([1, 0, 1, 0, 0, 0]), "do not end with x1/W"),
    "one of them": (lambda g: np.where(np.arange(len(g))[:, None] == 2, g * 0.5 + 0.3, g), "region 2 .* ends with"),
}


@pytest.mark.parametrize("form", ["captioning", "pre-training", "tensors"])
@pytest.mark.parametrize("name", SIX)
def test_six_numbers_of_no_box(name: str, form: str, tmp_path: Path) -> None:
    change, sentence = SIX[name]
    rows = of_own()
    rows["7"] = np.concatenate([rows["7"][:, :-6], change(rows["7"][:, -6:]).astype(np.float32)], axis=1)
    refused(Sources(own=write_features(tmp_path / "own.tsv", rows, form)), tmp_path, rf"key '7': .*{sentence}")
