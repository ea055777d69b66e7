"""What two detectors say of a picture: whose boxes and features, in which pixels, whatever the batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detector_pairs import CPU, Small, demo, records_of, refuses, small_detector

from vlkd.pipeline.exported import ExportedModel
from vlkd.pipeline.two_detectors import TwoDetectors
from vlkd.recipes import Detectors
from vlkd.regions import extract, load_packaged_detectors
from vlkd.regions.two_stage import UNNAMED
from vlkd.scenes import Picture

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def test_the_demos_detectors_give_what_the_demo_extracts(scenes: list[Picture]) -> None:
    """Two implementations: the demo's own, and this one for any detector."""
    pair = demo(max_regions=12)
    for scene, record in zip(scenes, records_of(pair, *(scene.pixels for scene in scenes)), strict=True):
        (expected,) = extract([scene], *load_packaged_detectors(Detectors()), 12, 0.2, batch=1)
        for name, value in vars(expected).items():
            if name != "key":
                np.testing.assert_array_equal(value, getattr(record, name), err_msg=name)


def test_features_are_the_box_heads_own_of_the_students_boxes(small: Small) -> None:
    """Called part by part on the resized picture, without the code under test."""
    student, teacher = small
    pixels = np.random.default_rng(0).integers(0, 256, (75, 110, 3), dtype=np.uint8)
    (record,) = records_of(TwoDetectors(student, teacher, device=CPU, score_threshold=0.0), pixels)
    assert 1 < len(record.student_boxes) <= 21
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    cases = [
        (student, record.student_boxes, record.student_features),
        (teacher, record.student_boxes, record.teacher_features),
        (teacher, record.own_boxes, record.own_features),
    ]
    for detector, boxes, features in cases:
        model = detector.model
        with torch.inference_mode():
            inputs, _ = model.transform([image])
            height, width = inputs.image_sizes[0]
            assert (height, width) != tuple(inputs.tensors.shape[-2:]) != (75, 110)  # resized, then padded
            scaled = torch.from_numpy(boxes) * torch.tensor([width / 110, height / 75] * 2)
            pooled = model.roi_heads.box_roi_pool(
                model.backbone(inputs.tensors), [scaled], [tuple(inputs.tensors.shape[-2:])]
            )
            expected = model.roi_heads.box_head(pooled).numpy()
        # Boxes are scaled in another order of operations; the features are of size 1.
        np.testing.assert_allclose(features[:, :-6], expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
        assert features.shape[1] == 1024 + 6 and expected.std() > 0
    assert np.abs(record.teacher_features[:, :-6] - record.student_features[:, :-6]).max() > 1e-3


def test_boxes_are_the_detectors_own_in_original_pixels(small: Small) -> None:
    """Every box is one of torchvision's, which has them per class and without the whole picture."""
    detector = small_detector(0)
    pixels = np.random.default_rng(1).integers(0, 256, (240, 360, 3), dtype=np.uint8)
    (record,) = records_of(TwoDetectors(detector, small[1], device=CPU, score_threshold=0.0), pixels)
    roi_heads = detector.model.roi_heads
    roi_heads.score_thresh, roi_heads.nms_thresh, roi_heads.detections_per_img = 0.0, 1.0, 1000
    with torch.inference_mode():
        (found,) = detector.model([torch.from_numpy(pixels).permute(2, 0, 1).float() / 255])
    distance = np.abs(record.student_boxes[:, None] - found["boxes"].numpy()).max(axis=-1).min(axis=1)  # [n]
    assert (distance < 0.01).sum() >= len(distance) - 1  # all but the one that started as the whole picture
    assert record.student_boxes[:, 2].max() > 160 and (record.student_boxes <= [360.01, 240.01, 360.01, 240.01]).all()
    assert UNNAMED not in record.tags


def test_a_blank_picture_keeps_one_region_and_the_limit_holds(small: Small) -> None:
    pair = TwoDetectors(*small, device=CPU, score_threshold=1.0)
    (record,) = records_of(pair, np.full((60, 90, 3), 255, dtype=np.uint8))
    assert len(record.student_boxes) == len(record.own_boxes) == len(record.tags) == 1
    pair.score_threshold, pair.max_regions = 0.0, 4
    (record,) = records_of(pair, np.random.default_rng(2).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    assert len(record.student_boxes) <= 4


def test_a_detector_without_proposals_gives_the_whole_picture() -> None:
    detectors = small_detector(0), small_detector(1)
    for detector in detectors:
        detector.model.rpn.score_thresh = 2.0
        torch.nn.init.zeros_(detector.model.roi_heads.box_predictor.bbox_pred.weight)
        torch.nn.init.zeros_(detector.model.roi_heads.box_predictor.bbox_pred.bias)
    (record,) = records_of(TwoDetectors(*detectors, device=CPU), np.zeros((60, 90, 3), dtype=np.uint8))
    for boxes in (record.student_boxes, record.own_boxes):
        np.testing.assert_allclose(boxes, [[0, 0, 90, 60]], atol=1e-3)


def test_a_picture_too_thin_for_an_exported_models_detector_is_named(small: Small) -> None:
    model = ExportedModel(Path(), None, small[0], 0.2, 5)  # type: ignore[arg-type]  # the card is not asked
    refuses(
        "'thin.png' cannot be looked at: 4000 x 1 pixels are too thin",
        model._regions,
        "thin.png",
        np.zeros((1, 4000, 3), np.uint8),
    )
    record = model._regions("dot.png", np.zeros((1, 1, 3), np.uint8))
    record.check()


def test_bits_do_not_depend_on_the_batch_and_its_company(scenes: list[Picture], small: Small) -> None:
    shapes = [(128, 128), (40, 128), (128, 128), (128, 60)]
    pixels = [scene.pixels[:height, :width] for scene, (height, width) in zip(scenes, shapes, strict=False)]
    together = records_of(TwoDetectors(*small, device=CPU, batch=4), *pixels)
    for number, one in enumerate(pixels):
        (alone,) = records_of(TwoDetectors(*small, device=CPU, batch=1), one)
        for name, value in vars(alone).items():
            if name != "key":
                np.testing.assert_array_equal(value, getattr(together[number], name), err_msg=name)


def test_batches_of_one_size_change_only_rounding(scenes: list[Picture], small: Small) -> None:
    """As on a GPU: batches of pictures of one input size, in whatever order they fill."""
    shapes = [(128, 128), (40, 128), (128, 128), (128, 60), (128, 128)]
    pixels = [scene.pixels[:height, :width] for scene, (height, width) in zip(scenes, shapes, strict=False)]
    pair = TwoDetectors(*small, device=CPU)
    alone = records_of(pair, *pixels)
    pair.batch = 2
    batched = records_of(pair, *pixels)
    assert [record.key for record in batched] == ["0", "2", "1", "3", "4"]  # the first full pair, then what is left
    for record in batched:
        expected = alone[int(record.key)]
        np.testing.assert_allclose(record.student_boxes, expected.student_boxes, rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(record.teacher_features, expected.teacher_features, rtol=1e-3, atol=1e-3)


def test_below_fp32_boxes_are_still_exact(scenes: list[Picture]) -> None:
    """The GPU's way, in the CPU's autocast: bfloat16 has 8 bits, too few for the pixels of a box."""
    pair = TwoDetectors(small_detector(0), small_detector(1), device=CPU, score_threshold=0.0)
    (exact,) = records_of(pair, scenes[0].pixels)
    for detector in (pair.student, pair.teacher):
        detector._half = torch.bfloat16
    (mixed,) = records_of(pair, scenes[0].pixels)
    with torch.autocast("cpu", torch.bfloat16):
        scores, offsets = pair.student.model.rpn.head([torch.rand(1, 256, 4, 4)])
    assert scores[0].dtype == offsets[0].dtype == torch.float32
    rounded = torch.from_numpy(mixed.student_boxes).bfloat16().float().numpy()
    assert mixed.student_boxes.dtype == np.float32 and (rounded != mixed.student_boxes).mean() > 0.5
    # Random detectors' scores are close together, so boxes are compared as sets: within a pixel of one of the exact.
    distance = np.abs(mixed.own_boxes[:, None] - exact.own_boxes).max(axis=-1).min(axis=1)
    assert np.median(distance) < 1.0
    differing = np.abs(mixed.own_features[:, :-6].mean() / exact.own_features[:, :-6].mean() - 1)
    assert 0 < differing < 0.1
