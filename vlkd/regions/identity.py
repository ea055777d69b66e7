"""Which detector made regions, and how: a model reads those of one detector, and widths do not distinguish detectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

# Counts batches in training and plays no part in what a detector gives.
_WITHOUT_EFFECT = "num_batches_tracked"


class DetectorIdentity(BaseModel):
    """What regions depend on, apart from the picture.

    Attributes:
        name: as ``vlkd regions --student`` takes it.
        fingerprint: of :func:`detector_fingerprint`.
        score_threshold: least probability of a region's class.
        max_regions: most regions a picture.
        weights: the file that the weights came from, or "random"; None for those that belong to the name.
        classes: the file of its class names; None for those that belong to the name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    fingerprint: str
    score_threshold: float
    max_regions: int
    weights: str | None = None
    classes: str | None = None

    def __str__(self) -> str:
        files = f", of {self.weights}" if self.weights else ""
        limits = f"score-threshold {self.score_threshold}, max-regions {self.max_regions}"
        return f"{self.name} (weights {self.fingerprint}{files}), {limits}"

    def difference(self, other: DetectorIdentity) -> tuple[str, str] | None:
        """What sets the regions of the two apart, of this one and of the other; None where they are the same.

        What the files are called makes no difference.
        """
        if other.fingerprint != self.fingerprint:
            ours, theirs = (f"'{one.name}' (weights {one.fingerprint})" for one in (self, other))
            return ours, theirs
        for option in ("score_threshold", "max_regions"):
            if getattr(self, option) != getattr(other, option):
                told = option.replace("_", "-")
                ours, theirs = (f"'{one.name}' with --{told} {getattr(one, option)}" for one in (self, other))
                return ours, theirs
        return None


def detector_fingerprint(model: Any, classes: Sequence[str], standardised: bool) -> str:
    """Changes when the weights, the norms' epsilon, the classes, the input size or the features' scale do.

    It is the same on every device and for every order in which the weights lie in memory or in the model.

    Args:
        model: a FasterRCNN of torchvision.
        classes: names of the labels 1, 2, ….
        standardised: as in :class:`~vlkd.regions.two_stage.TwoStageDetector`.
    """
    transform = model.transform
    sizes = (tuple(transform.min_size), transform.max_size, transform.size_divisible)
    colours = (tuple(transform.image_mean), tuple(transform.image_std))
    epsilons = sorted(
        (name, module.eps) for name, module in model.named_modules() if isinstance(getattr(module, "eps", None), float)
    )
    digest = hashlib.sha256(repr((tuple(classes), sizes, colours, epsilons, standardised)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.endswith(_WITHOUT_EFFECT):
            digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
