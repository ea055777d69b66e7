"""What there is before any training, wherever it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from vlkd.regions import PairedRegions, Regions
from vlkd.training import StageData


@dataclass(frozen=True)
class Prepared:
    """What all training stages read, and what the report says about it.

    Attributes:
        data: regions, texts, tokenizer.
        pixels: of a picture with these regions, [H, W, 3] uint8 in the size that its boxes are in; or a sentence that says why
            there are none.
        ap50: gives ``student`` and ``teacher`` → AP50, of detectors that can be measured.
        seconds: of detection and extraction, where they were this run's, in all its ``sessions``.
    """

    data: StageData
    pixels: Callable[[Regions | PairedRegions], np.ndarray | str]
    ap50: Callable[[], Mapping[str, float]] = dict
    seconds: float | None = None
    sessions: int = 1
