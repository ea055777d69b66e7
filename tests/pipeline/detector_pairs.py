"""Pairs of detectors for tests of regions: the demo's own, and small random ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from vlkd.errors import VlkdError
from vlkd.pipeline.two_detectors import TwoDetectors
from vlkd.regions.picture_folder import PictureFile
from vlkd.regions.two_stage import UNNAMED, TwoStageDetector
from vlkd.regions.zoo import load_detector

CPU = torch.device("cpu")
CLASS_NAMES = ("cat", UNNAMED, "dog")
Small = tuple[TwoStageDetector, TwoStageDetector]


def demo(**options) -> TwoDetectors:
    student, teacher = load_detector("demo-student"), load_detector("demo-teacher")
    return TwoDetectors(student, teacher, device=CPU, **options)


def small_detector(seed: int) -> TwoStageDetector:
    """A random ResNet-18 FPN on inputs of 96 to 160 pixels."""
    torch.manual_seed(seed)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    sizes = {"min_size": 96, "max_size": 160, "rpn_post_nms_top_n_test": 20}
    return TwoStageDetector(FasterRCNN(backbone, len(CLASS_NAMES) + 1, **sizes), CLASS_NAMES)


def records_of(pair: TwoDetectors, *pictures: np.ndarray) -> list:
    files = [PictureFile(Path(), f"{number}.png") for number in range(len(pictures))]
    return list(pair.records(zip(files, pictures, strict=True)))


def refuses(match: str, call, *arguments, **options) -> None:
    with pytest.raises(VlkdError, match=match) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
