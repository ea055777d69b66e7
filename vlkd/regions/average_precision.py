"""AP50, as COCO defines it, of a detector on pictures whose boxes are known."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from vlkd.regions.detectors import Detections, FasterRCNNWithAttributes, to_tensors
from vlkd.scenes import CLASSES, Picture

_LIMIT = 50  # detections a picture that are scored
_THRESHOLD = 0.02  # low: the precision-recall curve needs the doubtful ones too


def ap50(detector: FasterRCNNWithAttributes, pictures: Iterable[Picture], *, batch: int = 16) -> float:
    """Mean over classes of the average precision at an IoU of 0.5, in 0..1 (pycocotools)."""
    return float(np.mean(list(ap50_by_class(detector, pictures, batch=batch).values())))


def ap50_by_class(
    detector: FasterRCNNWithAttributes, pictures: Iterable[Picture], *, batch: int = 16
) -> dict[str, float]:
    """Class name → AP50, of the classes that occur in the pictures.

    Raises:
        ValueError: no picture, or none with an object in it.
    """
    images: list[dict] = []
    truths: list[dict] = []
    found: list[dict] = []
    for chunk in chunks(pictures, batch):
        for picture, detections in zip(chunk, _detect(detector, chunk), strict=True):
            number = len(images) + 1
            height, width = picture.pixels.shape[:2]
            images.append({"id": number, "height": height, "width": width})
            for box, label in zip(picture.boxes, picture.classes, strict=True):
                truths.append(_annotation(number, len(truths) + 1, box, label))
            fields = (detections.boxes, detections.classes, detections.scores)
            for box, label, score in zip(*(field.cpu().numpy() for field in fields), strict=True):
                found.append(_annotation(number, len(found) + 1, box, label) | {"score": float(score)})
    if not truths:
        raise ValueError("expected pictures with annotated objects, but there is none to score")
    return _coco_ap50(images, truths, found)


def chunks(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    """Lists of ``size`` pictures, the last one shorter."""
    iterator = iter(pictures)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _detect(detector: FasterRCNNWithAttributes, pictures: list[Picture]) -> list[Detections]:
    device = next(detector.parameters()).device
    with torch.inference_mode():
        maps = detector.maps(to_tensors([picture.pixels for picture in pictures], device))
        return detector.detections(maps, _LIMIT, _THRESHOLD)


def _annotation(image: int, number: int, box: np.ndarray, label: int) -> dict:
    x1, y1, x2, y2 = (float(value) for value in box)
    return {
        "id": number,
        "image_id": image,
        "category_id": int(label) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
    }


def _coco_ap50(images: list[dict], truths: list[dict], found: list[dict]) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth: Any = COCO()
        detections: Any = COCO()
        for annotations, coco in ((truths, truth), (found, detections)):
            coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
            coco.createIndex()
        evaluation = COCOeval(truth, detections, "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.maxDets = [_LIMIT]
        evaluation.params.areaRng = [[0.0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, 0]  # [recall, classes]; -1 where a class is absent
    return {name: float(curve.mean()) for name, curve in zip(CLASSES, precision.T, strict=True) if curve[0] >= 0}
