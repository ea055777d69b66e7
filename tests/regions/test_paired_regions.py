"""Paired regions: geometry numbers, and refusal of what does not belong together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vlkd.errors import VlkdError
from vlkd.regions import Regions, geometry, pair

BOXES = np.array([[10, 20, 50, 80], [0, 0, 100, 200], [30, 40, 70, 120]], dtype=np.float32)
WIDTH, HEIGHT = 100, 200


def regions_of(boxes: np.ndarray, dim: int, key: str = "test-000007") -> Regions:
    features = np.random.default_rng(dim).normal(size=(len(boxes), dim)).astype(np.float32)
    features = np.concatenate([features, geometry(boxes, WIDTH, HEIGHT)], axis=1)
    return Regions(key, WIDTH, HEIGHT, boxes, features, ("star",) * len(boxes))


def test_geometry_is_corners_and_sides_as_shares_of_the_picture():
    expected = [[0.1, 0.1, 0.5, 0.4, 0.4, 0.3], [0, 0, 1, 1, 1, 1], [0.3, 0.2, 0.7, 0.6, 0.4, 0.4]]
    numbers = geometry(BOXES, WIDTH, HEIGHT)
    assert numbers.dtype == np.float32
    np.testing.assert_allclose(numbers, expected, atol=1e-7)  # one fp32 rounding each


def test_a_pair_keeps_both_features_of_the_same_boxes():
    student, teacher = regions_of(BOXES, 5), regions_of(BOXES, 9)
    paired = pair(student, teacher)
    assert paired.student_features is student.features
    assert paired.teacher_features is teacher.features
    assert paired.tags == student.tags


def test_another_picture_is_refused_with_both_keys():
    with pytest.raises(VlkdError, match=r"'test-000007'.*'test-000008'"):
        pair(regions_of(BOXES, 5), regions_of(BOXES, 9, key="test-000008"))


def test_another_count_is_refused_with_key_and_both_counts():
    with pytest.raises(VlkdError, match=r"'test-000007': 3 student boxes and 2 teacher"):
        pair(regions_of(BOXES, 5), regions_of(BOXES[:2], 9))


def test_another_order_is_refused_with_key_and_both_boxes():
    with pytest.raises(VlkdError, match=r"'test-000007': region 0 is \(10, 20, 50, 80\).*\(30, 40, 70, 120\)"):
        pair(regions_of(BOXES, 5), regions_of(BOXES[::-1].copy(), 9))


def test_another_box_is_refused():
    moved = BOXES.copy()
    moved[1, 2] -= 0.5
    with pytest.raises(VlkdError, match=r"region 1 is \(0, 0, 100, 200\).*\(0, 0, 99.5, 200\)"):
        pair(regions_of(BOXES, 5), regions_of(moved, 9))


def test_another_picture_size_is_refused():
    teacher = replace(
        regions_of(BOXES, 9),
        height=400,
        features=np.zeros((3, 15), np.float32) + np.pad(geometry(BOXES, WIDTH, 400), ((0, 0), (9, 0))),
    )
    with pytest.raises(VlkdError, match=r"100 x 200 pixels and the teacher's 100 x 400"):
        pair(regions_of(BOXES, 5), teacher)


def test_features_of_other_boxes_are_refused_with_both_geometries():
    regions = regions_of(BOXES, 5)
    with pytest.raises(VlkdError, match=r"'test-000007': row 0 of features ends with the geometry \(0.3, .*\(0.1, "):
        replace(regions, features=regions.features[::-1].copy())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"features": np.zeros((3, 11), np.float64)}, "features must be float32, but are float64"),
        ({"features": np.zeros((3, 6), np.float32)}, r"\[regions, dim \+ 6\], but are \[3, 6\]"),
        ({"features": np.zeros((2, 11), np.float32)}, "3 boxes but 2 rows of features"),
        ({"boxes": BOXES.astype(np.float64)}, r"boxes must be float32 \[regions, 4\], but are float64"),
        ({"boxes": BOXES[:0]}, "has no region"),
    ],
)
def test_arrays_that_cannot_be_regions_are_refused(change: dict, sentence: str):
    with pytest.raises(VlkdError, match=rf"'test-000007'.*{sentence}"):
        replace(regions_of(BOXES, 5), **change)
