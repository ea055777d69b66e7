"""Two-stage detectors whose box features also predict an object's attributes, as VinVL's do.

torchvision's Faster R-CNN, with attribute heads beside the class head: trained jointly, they make the box
head's output carry colour, texture and size, which a vision-language model needs as much as the class.

Legend: B pictures, n boxes of a picture, N boxes of all pictures, C channels, S input side, D feature width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.models.resnet import BasicBlock
from torchvision.models.shufflenetv2 import shufflenet_v2_x0_5
from torchvision.ops import Conv2dNormActivation, MultiScaleRoIAlign, clip_boxes_to_image, nms

from vlkd.recipes import Detector
from vlkd.scenes import ATTRIBUTES, CLASSES

ROI_SIDE = 5
FEATURE_SCALE = 1 / 8
"""Standard deviation of a feature's numbers. The box geometry that is appended varies by about a quarter; beside activations
a hundred times as large, a model reads where things are only after long training."""
NMS_IOU = 0.5
_MIN_SIDE = 1.0  # a box thinner than this, in input pixels, shows nothing
_MEAN = [0.485, 0.456, 0.406]
_STD = [0.229, 0.224, 0.225]
# Anchor side of each pyramid level (strides 4, 8, 16, 32), as a share of the input side.
_ANCHOR_SHARES = (0.09, 0.14, 0.22, 0.34)
_ANCHOR_RATIOS = (0.6, 1.0, 1.7)


@dataclass(frozen=True)
class FeatureMaps:
    """A backbone's output for a batch: what proposals, classes and box features are computed from."""

    levels: dict[str, Tensor]  # level name → [B, C, H, W]
    padded: Tensor  # [B, 3, S, S] normalised input
    resized: list[tuple[int, int]]  # (height, width) inside ``padded``
    original: list[tuple[int, int]]  # (height, width) of the pictures


@dataclass(frozen=True)
class Detections:
    """One picture's objects by descending score."""

    boxes: Tensor  # [n, 4] float32, the picture's pixels
    classes: Tensor  # [n] int64, index into CLASSES
    scores: Tensor  # [n] float32


class FasterRCNNWithAttributes(FasterRCNN):
    """Faster R-CNN that detects CLASSES and, in training, also learns ATTRIBUTES from the box features.

    In training mode ``detector(images, targets)`` returns the losses, as in torchvision; a target holds
    "boxes" [n, 4], "labels" [n] (class index + 1; 0 is background) and for each attribute its values [n].
    For extraction, :meth:`maps` runs the backbone once; :meth:`detections` and :meth:`features` read from it.
    """

    settings: Detector
    transform: _FitInside
    backbone: BackboneWithFPN
    rpn: RegionProposalNetwork
    roi_heads: _AttributeRoIHeads

    def maps(self, images: Sequence[Tensor]) -> FeatureMaps:
        """Backbone over pictures [3, H, W], float in 0..1, of any sizes."""
        original = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        batch, _ = self.transform(list(images))
        return FeatureMaps(self.backbone(batch.tensors), batch.tensors, batch.image_sizes, original)

    def detections(self, maps: FeatureMaps, limit: int, threshold: float) -> list[Detections]:
        """At most ``limit`` objects a picture, one box an object (class-agnostic NMS), at least one.

        A picture in which no class reaches ``threshold`` keeps its best box; one whose boxes are all
        degenerate gets a box around the whole picture.
        """
        proposals, _ = self.rpn(ImageList(maps.padded, maps.resized), maps.levels)
        whole = [whole_picture(size, maps.padded) for size in maps.resized]
        proposals = [torch.cat([boxes, box]) for boxes, box in zip(proposals, whole, strict=True)]
        head = self.roi_heads
        logits, offsets = head.box_predictor(self._box_features(maps, proposals))
        scores, classes = logits.softmax(dim=-1)[:, 1:].max(dim=-1)  # [N], background left out
        decoded = head.box_coder.decode(offsets, proposals)  # [N, classes + 1, 4]
        decoded = decoded[torch.arange(len(classes), device=classes.device), classes + 1]  # [N, 4]
        counts = [len(boxes) for boxes in proposals]
        return [
            select(*one, limit=limit, threshold=threshold)
            for one in zip(
                decoded.split(counts),
                scores.split(counts),
                classes.split(counts),
                whole,
                maps.resized,
                maps.original,
                strict=True,
            )
        ]

    def features(self, maps: FeatureMaps, boxes: Sequence[Tensor]) -> list[Tensor]:
        """RoIAlign and box head on given boxes: [n, 4] in a picture's pixels → [n, D].

        Each feature is standardised over its D numbers and scaled by :data:`FEATURE_SCALE`.
        """
        scaled = [
            resize_boxes(one.to(maps.padded), list(original), list(resized))
            for one, original, resized in zip(boxes, maps.original, maps.resized, strict=True)
        ]
        features = self._box_features(maps, scaled)
        features = FEATURE_SCALE * F.layer_norm(features, features.shape[-1:])
        return list(features.split([len(one) for one in scaled]))

    def _box_features(self, maps: FeatureMaps, boxes: list[Tensor]) -> Tensor:
        """[n, 4] in input pixels for each picture → [N, D]."""
        # The padded size, because the RoI pooler infers its stride from it and a thin picture's own misleads.
        sizes = [(int(maps.padded.shape[-2]), int(maps.padded.shape[-1]))] * len(boxes)
        return self.roi_heads.box_head(self.roi_heads.box_roi_pool(maps.levels, boxes, sizes))


class _AttributeRoIHeads(RoIHeads):
    """torchvision's box heads; in training they add the attributes' cross entropy on positive boxes."""

    box_roi_pool: MultiScaleRoIAlign
    box_head: TwoMLPHead
    box_predictor: FastRCNNPredictor
    attribute_predictors: nn.ModuleDict

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if not self.training or targets is None:
            return super().forward(features, proposals, image_shapes, targets)
        proposals, matched, labels, regression = self.select_training_samples(proposals, targets)
        box_features = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        logits, offsets = self.box_predictor(box_features)
        class_loss, box_loss = fastrcnn_loss(logits, offsets, labels, regression)
        losses = {"loss_classifier": class_loss, "loss_box_reg": box_loss}
        positive = [one > 0 for one in labels]  # [n] bool each
        objects = [rows[chosen] for rows, chosen in zip(matched, positive, strict=True)]
        box_features = box_features[torch.cat(positive)]  # [P, D]
        for name, predictor in self.attribute_predictors.items():
            values = torch.cat([target[name][rows] for target, rows in zip(targets, objects, strict=True)])
            # A sum over a clamped count: a batch without a positive box gives 0, not NaN.
            loss = F.cross_entropy(predictor(box_features), values, reduction="sum")
            losses[f"loss_{name}"] = loss / max(len(values), 1)
        return [], losses


class _FitInside(GeneralizedRCNNTransform):
    """Scales a picture to fit into a square, antialiased: a photograph may be many times the input size."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        height, width = image.shape[-2:]
        scale = self.max_size / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        if size != (height, width):
            image = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]
            if target is not None:
                target["boxes"] = resize_boxes(target["boxes"], [height, width], list(size))
        return image, target


def build_detector(settings: Detector) -> FasterRCNNWithAttributes:
    """A detector with random weights of the given trunk, input size and feature width."""
    backbone = _resnet10() if settings.backbone == "resnet10" else _shufflenet()
    anchors = AnchorGenerator(
        sizes=tuple((share * settings.input_size,) for share in _ANCHOR_SHARES),
        aspect_ratios=(_ANCHOR_RATIOS,) * len(_ANCHOR_SHARES),
    )
    box_head = TwoMLPHead(backbone.out_channels * ROI_SIDE**2, settings.feature_dim)
    box_predictor = FastRCNNPredictor(settings.feature_dim, len(CLASSES) + 1)
    # From the finest level alone: objects are small, and the pyramid brings the coarser levels into it.
    roi_pool = MultiScaleRoIAlign(["0"], output_size=ROI_SIDE, sampling_ratio=2)
    detector = FasterRCNNWithAttributes(
        backbone,
        rpn_anchor_generator=anchors,
        rpn_pre_nms_top_n_train=400,
        rpn_post_nms_top_n_train=150,
        rpn_pre_nms_top_n_test=150,
        rpn_post_nms_top_n_test=40,
        rpn_batch_size_per_image=128,
        box_roi_pool=roi_pool,
        box_head=box_head,
        box_predictor=box_predictor,
    )
    detector.roi_heads = _AttributeRoIHeads(
        roi_pool,
        box_head,
        box_predictor,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=64,
        positive_fraction=0.4,
        bbox_reg_weights=None,
        score_thresh=0.05,
        nms_thresh=NMS_IOU,
        detections_per_img=100,
    )
    detector.roi_heads.attribute_predictors = nn.ModuleDict(
        {name: nn.Linear(settings.feature_dim, len(values)) for name, values in ATTRIBUTES.items()}
    )
    detector.transform = _FitInside(
        settings.input_size, settings.input_size, _MEAN, _STD, size_divisible=settings.input_size
    )
    detector.settings = settings
    return detector.to(memory_format=torch.channels_last)  # a quarter faster on CPUs


def best_device() -> torch.device:
    """A CUDA device if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_tensors(pictures: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Pictures [H, W, 3] uint8 → tensors [3, H, W], float32 in 0..1."""
    return [torch.from_numpy(pixels).to(device).permute(2, 0, 1).float() / 255 for pixels in pictures]


def _resnet10() -> BackboneWithFPN:
    """ResNet-10's first three stages at half width: strides 4, 8, 16, and a pooled 32."""
    width = 32
    trunk = nn.Sequential(
        OrderedDict(
            stem=Conv2dNormActivation(3, width, kernel_size=7, stride=2),
            maxpool=nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            layer1=BasicBlock(width, width),
            layer2=_wider(width, 2 * width),
            layer3=_wider(2 * width, 4 * width),
        )
    )
    levels = {"layer1": "0", "layer2": "1", "layer3": "2"}
    # Norms in the pyramid too: without pretrained weights they make the difference in few steps.
    return BackboneWithFPN(trunk, levels, [width, 2 * width, 4 * width], out_channels=64, norm_layer=nn.BatchNorm2d)


def _wider(narrow: int, wide: int) -> BasicBlock:
    """A residual block that halves the resolution, its shortcut a strided 1x1 convolution."""
    shortcut = Conv2dNormActivation(narrow, wide, kernel_size=1, stride=2, activation_layer=None)
    return BasicBlock(narrow, wide, stride=2, downsample=shortcut)


def _shufflenet() -> BackboneWithFPN:
    """ShuffleNetV2 x0.5, cut after its stride 16 stage: strides 4, 8, 16, and a pooled 32."""
    trunk = shufflenet_v2_x0_5(weights=None)
    levels = {"maxpool": "0", "stage2": "1", "stage3": "2"}
    return BackboneWithFPN(trunk, levels, [24, 48, 96], out_channels=64, norm_layer=nn.BatchNorm2d)


def select(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    whole: Tensor,
    resized: tuple[int, int],
    original: tuple[int, int],
    *,
    limit: int,
    threshold: float,
) -> Detections:
    """One picture's candidates [n, 4] in input pixels → its detections in picture pixels."""
    boxes = clip_boxes_to_image(boxes, resized)
    shown = ((boxes[:, 2:] - boxes[:, :2]) >= _MIN_SIDE).all(dim=1)  # [n]
    boxes = torch.where(shown[:, None], boxes, whole)
    passing = torch.where(shown & (scores >= threshold))[0]
    if not len(passing):
        passing = scores.where(shown | ~shown.any(), -1.0).argmax()[None]
    kept = passing[nms(boxes[passing], scores[passing], NMS_IOU)[:limit]]
    return Detections(resize_boxes(boxes[kept], list(resized), list(original)), classes[kept], scores[kept])


def whole_picture(size: tuple[int, int], like: Tensor) -> Tensor:
    """[1, 4]: a box around the whole picture."""
    return like.new_tensor([[0.0, 0.0, size[1], size[0]]])
