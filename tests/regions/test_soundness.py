"""What is wrong with features and boxes is said in words, and what is right is left alone."""

from __future__ import annotations

import re

import numpy as np
import pytest

from vlkd.regions.soundness import box_problem, file_box_problem, half_problem, number_problem, size_problem

BOXES = np.array([[10, 20, 300, 200], [320, 100, 640, 480], [0, 0, 640.9, 480]], np.float32)
WIDTH, HEIGHT = 640, 480


def test_sound_boxes_have_no_problem() -> None:
    assert file_box_problem(BOXES, WIDTH, HEIGHT) is None and box_problem(BOXES, WIDTH, HEIGHT) is None
    assert box_problem(BOXES / np.array([WIDTH, HEIGHT] * 2, np.float32), 1, 1) is None
    tiny = np.array([[0, 0, 1, 1], [1, 0, 2, 2]], np.float32)
    assert file_box_problem(tiny, 2, 2) is None


OF_A_FILE = {
    "parts of the picture": (BOXES / np.array([640, 480] * 2), "all boxes lie between 0 and 1, the first is .*pixels"),
    "x, y, width, height": (
        np.concatenate([BOXES[:, :2], BOXES[:, 2:] - BOXES[:, :2]], axis=1),
        r"the box \(320, 100, 320, 380\) of region 1 .* looks like x, y, width, height",
    ),
    "corners exchanged": (BOXES[:, [2, 3, 0, 1]], r"the box \(300, 200, 10, 20\) of region 0 .* has no area"),
    "no height": (np.array([[10, 400, 300, 400.0]]), "has no area"),
    "a resized picture's": (BOXES * 1.6, "reaches beyond the picture of 640 x 480 .* resized"),
    "y before x": (BOXES[:, [1, 0, 3, 2]], "reaches beyond the picture of 640 x 480 .* the two may be exchanged"),
    "negative": (BOXES - np.array([30, 0, 0, 0]), r"the box \(-20, 20, 300, 200\) of region 0"),
    "not finite": (np.where(BOXES == 300, np.nan, BOXES), r"the box \(10, 20, nan, 200\) of region 0 .* not finite"),
}


@pytest.mark.parametrize("name", OF_A_FILE)
def test_boxes_of_a_file_in_another_unit_or_order(name: str) -> None:
    boxes, sentence = OF_A_FILE[name]
    found = file_box_problem(boxes.astype(np.float32), WIDTH, HEIGHT)
    assert found is not None and re.search(sentence, found), found


def test_boxes_that_no_store_holds() -> None:
    assert "corners exchanged" in str(box_problem(BOXES[:, [2, 3, 0, 1]], WIDTH, HEIGHT))
    assert "beyond" in str(box_problem(BOXES * 2, WIDTH, HEIGHT))
    assert "beyond" in str(box_problem(BOXES, 1, 1))
    assert "not finite" in str(box_problem(np.full((1, 4), np.inf, np.float32), WIDTH, HEIGHT))
    flat = np.array([[3, 3, 3, 9]], np.float32)  # what rounding may leave of a thin one
    assert box_problem(flat, WIDTH, HEIGHT) is None


def test_numbers() -> None:
    values = np.array([[1, 2, 3], [4, 5, np.inf]], np.float32)
    assert number_problem(values[:1]) is None
    assert "number 2 of region 1 (both from 0) is inf" in str(number_problem(values))
    assert half_problem(np.array([[65519, 1e-30], [0, 0]], np.float32)) is None
    assert "is 65520, beyond float16's 65504" in str(half_problem(np.array([[65520, 1]], np.float32)))
    assert "region 1 has no number above 6e-05" in str(half_problem(np.array([[1, 0], [6e-5, -1e-9]], np.float32)))


@pytest.mark.parametrize("size", [(0, 1), (1, None), ("640", 480), (640.0, 480), (False, 480), (float("nan"), 2)])
def test_sizes(size: tuple) -> None:
    assert size_problem(640, 480) is size_problem(np.int64(640), 480) is None
    assert "whole numbers of pixels" in str(size_problem(*size))
