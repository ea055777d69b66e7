"""Region extraction: the student's boxes with both detectors' features of them, and the teacher's own regions.

The teacher's backbone runs once a picture and serves both: RoIAlign and head on the student's boxes
(adaptation and distillation need the same boxes, in the same order), and its own detections.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from vlkd.regions.average_precision import chunks
from vlkd.regions.detectors import Detections, FasterRCNNWithAttributes, best_device, to_tensors
from vlkd.regions.paired import RegionRecord, geometry
from vlkd.scenes import CLASSES, Picture


def extract(
    pictures: Iterable[Picture],
    student: FasterRCNNWithAttributes,
    teacher: FasterRCNNWithAttributes,
    max_regions: int,
    score_threshold: float,
    *,
    batch: int = 16,
) -> Iterator[RegionRecord]:
    """Extract the regions of pictures, in their order; a CUDA device is used if there is one.

    Args:
        pictures: may be a generator; only ``batch`` of them are held at a time.
        student, teacher: in eval mode; they are moved to the device.
        max_regions: most regions of each detector a picture; at least one is always kept.
        score_threshold: least class probability of a region.
        batch: pictures that go through the detectors together.
    """
    device = best_device()
    student, teacher = student.to(device).eval(), teacher.to(device).eval()
    for chunk in chunks(pictures, batch):
        with torch.inference_mode(), _deterministic():
            records = _extract_batch(chunk, student, teacher, max_regions, score_threshold, device)
        yield from records


def detect(
    detector: FasterRCNNWithAttributes, pixels: np.ndarray, *, max_regions: int = 12, score_threshold: float = 0.2
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Objects in one picture [H, W, 3] uint8 of any size.

    Returns:
        boxes [n, 4] float32 in pixels, tags (n words) and scores [n] float32, by descending score; n >= 1.
    """
    device = next(detector.parameters()).device
    with torch.inference_mode(), _deterministic():
        maps = detector.maps(to_tensors([pixels], device))
        (found,) = detector.detections(maps, max_regions, score_threshold)
    return found.boxes.cpu().numpy(), _tags(found), found.scores.cpu().numpy()


def _extract_batch(
    pictures: list[Picture],
    student: FasterRCNNWithAttributes,
    teacher: FasterRCNNWithAttributes,
    limit: int,
    threshold: float,
    device: torch.device,
) -> list[RegionRecord]:
    images = to_tensors([picture.pixels for picture in pictures], device)
    student_maps, teacher_maps = student.maps(images), teacher.maps(images)
    found = student.detections(student_maps, limit, threshold)
    own = teacher.detections(teacher_maps, limit, threshold)
    boxes, own_boxes = [one.boxes for one in found], [one.boxes for one in own]
    student_features = student.features(student_maps, boxes)
    teacher_features = teacher.features(teacher_maps, boxes)
    own_features = teacher.features(teacher_maps, own_boxes)
    records = []
    for index, picture in enumerate(pictures):
        height, width = picture.pixels.shape[:2]
        records.append(
            RegionRecord(
                key=picture.key,
                width=width,
                height=height,
                student_boxes=boxes[index].cpu().numpy(),
                student_features=with_geometry(student_features[index], boxes[index], width, height),
                teacher_features=with_geometry(teacher_features[index], boxes[index], width, height),
                tags=_tags(found[index]),
                own_boxes=own_boxes[index].cpu().numpy(),
                own_features=with_geometry(own_features[index], own_boxes[index], width, height),
                own_tags=_tags(own[index]),
            )
        )
    return records


def with_geometry(features: Tensor, boxes: Tensor, width: int, height: int) -> np.ndarray:
    """Features [n, D] and boxes [n, 4] → [n, D + 6]."""
    return np.concatenate([features.cpu().numpy(), geometry(boxes.cpu().numpy(), width, height)], axis=1)


def _tags(found: Detections) -> tuple[str, ...]:
    return tuple(CLASSES[index] for index in found.classes.tolist())


def _deterministic() -> AbstractContextManager:
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
