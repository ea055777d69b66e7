"""Extraction with the shipped detectors: whose features of which boxes, determinism, odd pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, roi_align

from vlkd.errors import VlkdError
from vlkd.recipes import Detectors
from vlkd.regions import (
    FasterRCNNWithAttributes,
    RegionRecord,
    ap50,
    detect,
    extract,
    geometry,
    load_packaged_detectors,
    weights_facts,
)
from vlkd.regions.packaged import packaged_folder
from vlkd.scenes import CLASSES, Picture, make_picture

SETTINGS = Detectors()
# Float rounding of a few thousand fp32 terms; batched and single convolutions sum them in other orders.
TOLERANCE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(scope="module")
def detectors() -> tuple[FasterRCNNWithAttributes, FasterRCNNWithAttributes]:
    return load_packaged_detectors(SETTINGS)


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return [make_picture(5, "test", index) for index in range(6)]


def records_of(pictures, detectors, limit: int = SETTINGS.max_regions, **options) -> list[RegionRecord]:
    return list(extract(pictures, *detectors, limit, SETTINGS.score_threshold, **options))


@pytest.fixture(scope="module")
def records(pictures, detectors) -> list[RegionRecord]:
    return records_of(pictures, detectors)


def features_by_hand(detector: FasterRCNNWithAttributes, pixels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The detector's box features from its parts, without the code under test."""
    side = detector.settings.input_size
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    image = torch.nn.functional.interpolate(image, size=(side, side), mode="bilinear", antialias=True)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image = (image - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        finest = detector.backbone(image)["0"]
        scaled = torch.from_numpy(boxes) * (side / pixels.shape[0])
        pooled = roi_align(finest, [scaled], output_size=5, spatial_scale=1 / 4, sampling_ratio=2)
        head = detector.roi_heads.box_head
        features = torch.relu(head.fc7(torch.relu(head.fc6(pooled.flatten(1))))).numpy()
    features -= features.mean(axis=1, keepdims=True)
    return features / np.sqrt((features**2).mean(axis=1, keepdims=True) + 1e-5) / 8


def test_the_teachers_features_are_its_own_roi_align_and_head_on_the_students_boxes(records, pictures, detectors):
    record, picture = records[2], pictures[2]
    expected = features_by_hand(detectors[1], picture.pixels, record.student_boxes)
    np.testing.assert_allclose(record.teacher_features[:, :-6], expected, **TOLERANCE)
    assert expected.std() > 10 * TOLERANCE["atol"]


def test_each_detectors_features_of_its_own_boxes(records, pictures, detectors):
    record, picture = records[3], pictures[3]
    student = features_by_hand(detectors[0], picture.pixels, record.student_boxes)
    np.testing.assert_allclose(record.student_features[:, :-6], student, **TOLERANCE)
    own = features_by_hand(detectors[1], picture.pixels, record.own_boxes)
    np.testing.assert_allclose(record.own_features[:, :-6], own, **TOLERANCE)


def test_another_pictures_pixels_change_the_features(records, pictures, detectors):
    shuffled = features_by_hand(detectors[1], pictures[4].pixels, records[2].student_boxes)
    assert np.abs(shuffled - records[2].teacher_features[:, :-6]).max() > 100 * TOLERANCE["atol"]


def test_records_carry_keys_shapes_and_geometry(records, pictures):
    for record, picture in zip(records, pictures, strict=True):
        count, own = len(record.student_boxes), len(record.own_boxes)
        assert record.key == picture.key
        assert 1 <= count <= SETTINGS.max_regions and 1 <= own <= SETTINGS.max_regions
        assert record.student_features.shape == (count, SETTINGS.student.feature_dim + 6)
        assert record.teacher_features.shape == (count, SETTINGS.teacher.feature_dim + 6)
        assert record.own_features.shape == (own, SETTINGS.teacher.feature_dim + 6)
        assert len(record.tags) == count and len(record.own_tags) == own
        expected = geometry(record.student_boxes, record.width, record.height)
        np.testing.assert_array_equal(record.student_features[:, -6:], expected)
        np.testing.assert_array_equal(record.teacher_features[:, -6:], expected)
        record.paired(), record.own()  # their checks pass


def test_one_box_an_object(records):
    for record in records:
        overlap = box_iou(*(torch.from_numpy(record.own_boxes),) * 2)
        assert overlap.fill_diagonal_(0).max() <= 0.5 + 1e-4  # scaling the boxes rounds


def test_tags_come_by_descending_score(pictures, detectors):
    _, tags, scores = detect(detectors[0], pictures[0].pixels)
    assert all(scores[:-1] >= scores[1:])
    assert set(tags) <= set(CLASSES)


def test_the_limit_keeps_the_best(pictures, detectors, records):
    for short, full in zip(records_of(pictures, detectors, limit=2), records, strict=True):
        np.testing.assert_allclose(short.student_boxes, full.student_boxes[:2])
        assert short.tags == full.tags[:2]


def test_extraction_is_deterministic(pictures, detectors, records):
    again = records_of(pictures, detectors)
    for first, second in zip(records, again, strict=True):
        for name, value in vars(first).items():
            np.testing.assert_array_equal(value, getattr(second, name), err_msg=name)


def test_the_batch_a_picture_came_in_changes_only_rounding(pictures, detectors, records):
    for alone, together in zip(records_of(pictures, detectors, batch=1), records, strict=True):
        np.testing.assert_allclose(alone.student_boxes, together.student_boxes, **TOLERANCE)
        np.testing.assert_allclose(alone.teacher_features, together.teacher_features, **TOLERANCE)


@pytest.mark.parametrize("shape", [(192, 192), (1, 300), (700, 20), (333, 517), (1, 1)])
def test_a_blank_picture_of_any_shape_gives_a_region(shape, pictures, detectors):
    blank = replace(pictures[0], key="blank", pixels=np.full((*shape, 3), 255, dtype=np.uint8))
    (record,) = records_of([blank], detectors)
    for boxes in (record.student_boxes, record.own_boxes):
        assert len(boxes) >= 1
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= np.array([shape[1], shape[0]]) + 1e-3).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    record.paired(), record.own()


def test_no_picture_gives_no_record(detectors):
    assert records_of([], detectors) == []


def test_the_teachers_shipped_detector_is_the_better_one(detectors):
    student, teacher = (
        ap50(detector, (make_picture(3, "validation", index) for index in range(40))) for detector in detectors
    )
    facts = weights_facts()
    # 40 pictures of another world scatter around the recorded value; 0.1 is about four standard errors.
    assert student == pytest.approx(facts["student"]["ap50"], abs=0.1)
    assert teacher == pytest.approx(facts["teacher"]["ap50"], abs=0.1)
    assert teacher > student + 0.05


def test_the_shipped_files_are_small():
    sizes = [path.stat().st_size for path in packaged_folder().glob("*.safetensors")]
    assert len(sizes) == 2 and sum(sizes) <= 8e6


def test_weights_of_other_settings_are_refused():
    other = SETTINGS.model_copy(update={"teacher": SETTINGS.teacher.model_copy(update={"input_size": 160})})
    with pytest.raises(VlkdError, match=r"teacher's.*input_size = 192, but the recipe says 160.*--from-scratch"):
        load_packaged_detectors(other)


def test_weights_for_other_classes_are_refused(monkeypatch):
    monkeypatch.setattr("vlkd.regions.packaged.CLASSES", (*CLASSES[:-1], "zebra"))
    with pytest.raises(VlkdError, match=r"other classes or attributes.*--from-scratch"):
        load_packaged_detectors(SETTINGS)
