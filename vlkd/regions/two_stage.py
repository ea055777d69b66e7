"""Any of torchvision's two-stage detectors as a source of regions: its boxes, and its box head's output for any boxes.

Legend: B pictures, n boxes of a picture, N boxes of all pictures, C channels, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import resize_boxes

from vlkd.errors import VlkdError
from vlkd.regions.detectors import FEATURE_SCALE, Detections, FeatureMaps, select, whole_picture
from vlkd.regions.identity import DetectorIdentity, detector_fingerprint

Precision = Literal["fp32", "bf16", "fp16"]

UNNAMED = "N/A"
"""Stands in torchvision's list of COCO's classes for numbers without a class."""


class TwoStageDetector:
    """A Faster or Mask R-CNN of torchvision that gives regions; always in eval mode.

    A picture's result depends on no other picture, provided that the pictures of a call have the same
    :meth:`input_size`: where padding depends on the company, so do features near a picture's edge.
    """

    def __init__(
        self,
        model: FasterRCNN,
        classes: Sequence[str],
        *,
        standardised: bool = False,
        name: str = "unnamed",
        weights: str | None = None,
        classes_file: str | None = None,
    ) -> None:
        """Take ``model`` over.

        Args:
            model: any FasterRCNN; its box predictor must be a FastRCNNPredictor.
            classes: names of the labels 1, 2, …; a label called :data:`UNNAMED` is never detected.
            standardised: each feature is standardised over its D numbers and scaled by :data:`FEATURE_SCALE`, as the
                rendered world's detectors have it; else it is the box head's output as it is.
            name, weights, classes_file: what :meth:`identity` says of it.

        Raises:
            VlkdError: the predictor has another number of classes, or is of another kind.
        """
        self.model: Any = model.eval()  # Any: torchvision declares its parts no closer than Module
        predictor = self.model.roi_heads.box_predictor
        if not isinstance(predictor, FastRCNNPredictor):
            raise VlkdError(
                f"The detector's box predictor is a {type(predictor).__name__}, but a FastRCNNPredictor is expected."
            )
        count = predictor.cls_score.out_features - 1
        if count != len(classes):
            raise VlkdError(f"The detector tells {count} classes apart, but {len(classes)} names are given.")
        self.classes = tuple(classes)
        self.feature_dim: int = predictor.cls_score.in_features
        self.name, self._weights, self._classes_file = name, weights, classes_file
        self._standardised = standardised
        self._half: torch.dtype | None = None
        self._unnamed = [number for number, name in enumerate(classes) if name == UNNAMED]
        # Boxes in half precision would be wrong by pixels, so what the head says is float32 before it meets anchors.
        self.model.rpn.head.register_forward_hook(_to_float)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def fingerprint(self) -> str:
        """As :func:`~vlkd.regions.identity.detector_fingerprint`."""
        return detector_fingerprint(self.model, self.classes, self._standardised)

    def identity(self, score_threshold: float, max_regions: int) -> DetectorIdentity:
        """What the regions depend on that it gives with these limits."""
        return DetectorIdentity(
            name=self.name, fingerprint=self.fingerprint(), score_threshold=score_threshold, max_regions=max_regions,
            weights=self._weights, classes=self._classes_file,
        )  # fmt: skip

    def to(self, device: torch.device, precision: Precision = "fp32") -> TwoStageDetector:
        """Move it; below fp32 the backbone, the proposals' convolutions and the box head run in autocast.

        Raises:
            VlkdError: mixed precision without a GPU.
        """
        if precision != "fp32" and device.type == "cpu":
            raise VlkdError(f"Precision {precision} needs a GPU, but the device is the CPU: take fp32.")
        self._half = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.model.to(device)
        return self

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the padded input that a picture of so many pixels becomes.

        Raises:
            VlkdError: the picture is so thin that nothing of it is left.
        """
        try:
            resized, _ = self.model.transform.resize(torch.empty(3, height, width, device="meta"))
        except (ZeroDivisionError, RuntimeError):  # its shorter side is scaled to 0 pixels
            raise VlkdError(f"{width} x {height} pixels are too thin for the detector.") from None
        step = self.model.transform.size_divisible
        padded_height, padded_width = (-(-side // step) * step for side in resized.shape[-2:])
        return padded_height, padded_width

    def maps(self, images: Sequence[Tensor]) -> FeatureMaps:
        """Backbone over pictures [3, H, W], float in 0..1, of one :meth:`input_size`."""
        original = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        batch, _ = self.model.transform(list(images))
        with self._mixed():
            levels = self.model.backbone(batch.tensors)
        levels = {name: level.float() for name, level in levels.items()}
        return FeatureMaps(levels, batch.tensors, batch.image_sizes, original)

    def detections(self, maps: FeatureMaps, limit: int, threshold: float) -> list[Detections]:
        """At most ``limit`` objects a picture by descending score, at least one.

        One box an object: non-maximum suppression does not look at the class. Boxes are in the picture's own pixels. A
        picture in which no class reaches ``threshold`` keeps its best box; one without a box gets one around the whole
        picture.
        """
        with self._mixed():
            proposals, _ = self.model.rpn(ImageList(maps.padded, maps.resized), maps.levels)
        whole = [whole_picture(size, maps.padded) for size in maps.resized]
        proposals = [torch.cat([boxes, box]) for boxes, box in zip(proposals, whole, strict=True)]
        head = self.model.roi_heads
        logits, offsets = head.box_predictor(self._box_features(maps, proposals))
        likely = logits.softmax(dim=-1)[:, 1:]  # [N, classes], background left out
        likely[:, self._unnamed] = 0
        scores, classes = likely.max(dim=-1)  # [N]
        decoded = head.box_coder.decode(offsets, proposals)  # [N, classes + 1, 4]
        decoded = decoded[torch.arange(len(classes), device=classes.device), classes + 1]  # [N, 4]
        counts = [len(boxes) for boxes in proposals]
        pictures = zip(
            *(values.split(counts) for values in (decoded, scores, classes)),
            whole,
            maps.resized,
            maps.original,
            strict=True,
        )
        return [select(*one, limit=limit, threshold=threshold) for one in pictures]

    def features(self, maps: FeatureMaps, boxes: Sequence[Tensor]) -> list[Tensor]:
        """RoI pooling and box head on given boxes: [n, 4] in a picture's pixels → [n, D] float32."""
        scaled = [
            resize_boxes(one.to(maps.padded), list(original), list(resized))
            for one, original, resized in zip(boxes, maps.original, maps.resized, strict=True)
        ]
        features = self._box_features(maps, scaled)
        if self._standardised:
            features = FEATURE_SCALE * F.layer_norm(features, features.shape[-1:])
        return list(features.split([len(one) for one in scaled]))

    def _box_features(self, maps: FeatureMaps, boxes: list[Tensor]) -> Tensor:
        """[n, 4] in input pixels for each picture → [N, D] float32."""
        # The padded size, because the RoI pooler infers its stride from it and a thin picture's own misleads.
        sizes = [(int(maps.padded.shape[-2]), int(maps.padded.shape[-1]))] * len(boxes)
        head = self.model.roi_heads
        pooled = head.box_roi_pool(maps.levels, boxes, sizes)
        with self._mixed():
            return head.box_head(pooled).float()

    def _mixed(self) -> AbstractContextManager:
        return nullcontext() if self._half is None else torch.autocast(self.device.type, self._half)


def _to_float(_module: torch.nn.Module, _inputs: Any, outputs: tuple[list[Tensor], ...]) -> tuple[list[Tensor], ...]:
    return tuple([tensor.float() for tensor in tensors] for tensors in outputs)
