"""Detectors by name: torchvision's own, two that are put together here, and the rendered world's; and their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import efficientnet_b0, get_model, get_model_weights, list_models
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from vlkd.errors import VlkdError
from vlkd.recipes import Detectors
from vlkd.regions.packaged import load_packaged_detectors
from vlkd.regions.two_stage import TwoStageDetector
from vlkd.regions.weight_files import read_weights
from vlkd.scenes import CLASSES

RANDOM = "random"
_DEMO = ("demo-student", "demo-teacher")
_LIGHT = "fasterrcnn_efficientnet_b0_fpn"
_DEEP = "fasterrcnn_resnet101_fpn"
_SEED = 0  # of random weights: every process draws the same
# torchvision made these models' weights with norms that add nothing to the variance.
_EPSILON_0 = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn")


def detector_names() -> list[str]:
    """What :func:`load_detector` knows: from the lightest to the heaviest family, torchvision's own last."""
    return [*_DEMO, _LIGHT, _DEEP, *_torchvisions()]


def load_detector(name: str, weights: str | Path | None = None, classes: Path | None = None) -> TwoStageDetector:
    """A detector by name, on the CPU.

    Args:
        name: one of :func:`detector_names`.
        weights: a file (.safetensors; .pth or .pt of tensors only), "random", or None: those that torchvision
            publishes, trained on COCO, or the rendered world's that ship with the package.
        classes: a text file of class names, one a line, in the labels' order and without the background. COCO's by
            default.

    Raises:
        VlkdError: there is no such detector, or its weights are missing, cannot be fetched, or do not fit.
    """
    if name in _DEMO:
        return _demo(name, weights, classes)
    if name not in detector_names():
        raise VlkdError(f"There is no detector '{name}': choose one of {', '.join(detector_names())}.")
    names = coco_classes() if classes is None else read_classes(classes)
    tensors: Mapping[str, Tensor] | None = None
    if weights is None:
        if classes is not None:
            raise VlkdError(
                f"'{classes}' names the classes of weights of your own, but there are none: give the weights of "
                f"'{name}' too."
            )
        tensors = _published(name)
    elif weights != RANDOM:
        tensors = read_weights(Path(weights))
    model = _build(name, len(names) + 1)
    if tensors is not None:
        _load(model, tensors, name, weights or "torchvision's weights", names)
        if name in _EPSILON_0 and not any(key.endswith("num_batches_tracked") for key in tensors):
            for module in model.modules():  # frozen norms: torchvision's weights, or fine-tuned from them
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = 0.0
    weights_file = None
    if weights is not None:
        weights_file = RANDOM if weights == RANDOM else str(Path(weights).absolute())
    classes_file = str(classes.absolute()) if classes is not None else None
    return TwoStageDetector(model, names, name=name, weights=weights_file, classes_file=classes_file)


def coco_classes() -> tuple[str, ...]:
    """torchvision's 90 names of COCO's labels; ten of them are "N/A"."""
    return tuple(get_model_weights("fasterrcnn_resnet50_fpn")["DEFAULT"].meta["categories"][1:])


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names, one a line.

    Raises:
        VlkdError: there is no such file, it is empty or no text, or a line is blank.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise VlkdError(
            f"The class names '{path}' cannot be read ({error}): give a text file of one name a line."
        ) from None
    if not names or "" in names:
        where = f"line {names.index('') + 1} is blank" if names else "it is empty"
        raise VlkdError(f"The class names '{path}' must be one a line, but {where}.")
    return tuple(names)


def _torchvisions() -> list[str]:
    return list_models(include=["fasterrcnn_*", "maskrcnn_*"])


def _demo(name: str, weights: str | Path | None, classes: Path | None) -> TwoStageDetector:
    if weights is not None or classes is not None:
        raise VlkdError(f"'{name}' comes with its own weights and classes: leave those options out.")
    model = load_packaged_detectors(Detectors())[_DEMO.index(name)]
    return TwoStageDetector(model, CLASSES, standardised=True, name=name)


def _build(name: str, labels: int) -> FasterRCNN:
    """Random weights; ``labels`` counts the background."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        if name == _LIGHT:
            return _efficientnet(labels)
        if name == _DEEP:
            return FasterRCNN(
                resnet_fpn_backbone(backbone_name="resnet101", weights=None, norm_layer=nn.BatchNorm2d), labels
            )
        return get_model(name, weights=None, weights_backbone=None, num_classes=labels)  # type: ignore[return-value]


def _efficientnet(labels: int) -> FasterRCNN:
    """EfficientNet-B0 with a pyramid of 64 channels and few proposals, as light as the student's detector of the paper.

    The input is 600 pixels on its shorter side and at most 1000 on the longer one, as in bottom-up attention.
    """
    levels = {"2": "0", "3": "1", "5": "2", "7": "3"}  # strides 4, 8, 16, 32
    backbone = BackboneWithFPN(efficientnet_b0(weights=None).features, levels, [24, 40, 112, 320], out_channels=64)
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    side, width = 7, 1024
    return FasterRCNN(
        backbone,
        min_size=600,
        max_size=1000,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_test=500,
        rpn_post_nms_top_n_test=300,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=side, sampling_ratio=2),
        box_head=TwoMLPHead(backbone.out_channels * side**2, width),
        box_predictor=FastRCNNPredictor(width, labels),
    )


def _published(name: str) -> Mapping[str, Tensor]:
    """The weights that torchvision publishes, from its cache or fetched into it."""
    if name not in _torchvisions():
        raise VlkdError(
            f"There are no published weights of '{name}': give a file of your own, or '{RANDOM}' for a dry run."
        )
    url = get_model_weights(name)["DEFAULT"].url
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise VlkdError(
            f"The weights of '{name}' cannot be fetched from {url} ({error}): fetch that file elsewhere and give its "
            f"path, or give '{RANDOM}' for a dry run."
        ) from None


def _load(
    model: nn.Module, tensors: Mapping[str, Tensor], name: str, source: str | Path, classes: Sequence[str]
) -> None:
    """Put ``tensors`` into ``model``, every one of them and nothing left out.

    Raises:
        VlkdError: they belong to another architecture, or to another number of classes, or are not finite.
    """
    scores = "roi_heads.box_predictor.cls_score.weight"
    if scores in tensors and len(tensors[scores]) != len(classes) + 1:
        raise VlkdError(
            f"'{source}' tells {len(tensors[scores]) - 1} classes apart, but {len(classes)} names are given: give a "
            "file of its class names, one a line, without the background."
        )
    wanted = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    there = {key for key in tensors if not key.endswith("num_batches_tracked")}
    for key in [*wanted, *sorted(there)]:
        fits = key in there and key in wanted and tensors[key].shape == wanted[key].shape
        if not fits:
            found = list(tensors[key].shape) if key in tensors else "missing"
            expected = list(wanted[key].shape) if key in wanted else "none"
            raise VlkdError(f"'{source}' are no weights of '{name}': {key} is {found}, but {expected} is expected.")
    weights = {key: tensors[key].float() for key in wanted}
    for key, tensor in weights.items():
        if not tensor.isfinite().all():
            raise VlkdError(
                f"'{source}': {key} has numbers that are not finite: take the weights of before training failed."
            )
    model.load_state_dict(weights, strict=False)
