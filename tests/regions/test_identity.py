"""What tells two detectors apart, and what does not."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from vlkd.regions.identity import DetectorIdentity, detector_fingerprint
from vlkd.regions.zoo import load_detector

CLASSES = ("cat", "dog")


def small(**sizes) -> FasterRCNN:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=norm)
    return FasterRCNN(backbone, len(CLASSES) + 1, **{"min_size": 96, "max_size": 160, **sizes}).eval()


def test_the_fingerprint_knows_every_part_of_what_a_detector_gives() -> None:
    model = small()
    seen = {detector_fingerprint(model, CLASSES, False)}
    seen.add(detector_fingerprint(model, CLASSES[::-1], False))
    seen.add(detector_fingerprint(model, CLASSES, True))
    seen.add(detector_fingerprint(small(max_size=200), CLASSES, False))
    model.backbone.body.bn1.eps = 0.0
    seen.add(detector_fingerprint(model, CLASSES, False))
    with torch.no_grad():
        model.roi_heads.box_head.fc7.bias[3] += 1e-6
    seen.add(detector_fingerprint(model, CLASSES, False))
    assert len(seen) == 6


def test_the_fingerprint_does_not_depend_on_how_the_weights_lie() -> None:
    model = small()
    expected = detector_fingerprint(model, CLASSES, False)
    assert expected == detector_fingerprint(small(), CLASSES, False)
    model = model.to(memory_format=torch.channels_last)
    model.backbone.body.bn1.num_batches_tracked += 7
    body = model.backbone.body
    body["layer1"] = body.pop("layer1")  # now behind the others
    assert list(body)[-1] == "layer1"
    assert detector_fingerprint(model, CLASSES, False) == expected


def test_a_detector_says_what_it_is() -> None:
    detector = load_detector("demo-student")
    identity = detector.identity(0.2, 12)
    assert identity.name == "demo-student" and identity.fingerprint == detector.fingerprint()
    assert identity.weights is None and identity.classes is None
    assert DetectorIdentity(**identity.model_dump()) == identity


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"name": "b", "weights": "elsewhere.pth", "classes": "c.txt"}, None),
        ({"fingerprint": "2"}, ("'a' (weights 1)", "'a' (weights 2)")),
        ({"score_threshold": 0.5}, ("'a' with --score-threshold 0.2", "'a' with --score-threshold 0.5")),
        ({"max_regions": 4}, ("'a' with --max-regions 12", "'a' with --max-regions 4")),
    ],
)
def test_what_sets_two_detectors_apart_is_told(changes: dict, told: tuple[str, str] | None) -> None:
    one = DetectorIdentity(name="a", fingerprint="1", score_threshold=0.2, max_regions=12)
    assert one.difference(one.model_copy(update=changes)) == told
