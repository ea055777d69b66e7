"""The six numbers of a box's geometry at the end of features: whether they are there, and what is there instead.

n regions, D numbers of the detector; then x1/W, y1/H, x2/W, y2/H, w/W, h/H.
"""

from __future__ import annotations

import numpy as np

from vlkd.errors import VlkdError
from vlkd.regions.paired import GEOMETRY_DIM

_SUM_TOLERANCE = 2e-3  # of x1 + w = x2, for numbers that were float16 once
_BEYOND = 0.01  # how far a box may reach beyond the picture, in parts of it
_MOST_IN_A_ROW = 100  # boxes that a wrong number of boxes may have joined


def ends_with_geometry(features: np.ndarray) -> bool:
    """Whether the last six columns of [n, D + 6] are numbers in [0, 1] with x1 + w = x2 and y1 + h = y2, w and h above 0."""
    return features.ndim == 2 and features.shape[1] > GEOMETRY_DIM and len(features) > 0 and not _wrong(features).any()


def check_geometry(features: np.ndarray, place: str) -> None:
    """Require that rows end with the geometry of a box.

    Raises:
        VlkdError: they do not; what they end with instead is named.
    """
    if ends_with_geometry(features):
        return
    dim = features.shape[1]
    if dim > GEOMETRY_DIM and ends_with_geometry(features[:, [*range(dim - 2), dim - 1, dim - 2]]):
        raise VlkdError(
            f"{place}: rows end with h/H, w/W, but w/W, h/H is expected behind x1/W, y1/H, x2/W, y2/H: swap the two."
        )
    if dim > GEOMETRY_DIM and 0 < (wrong := _wrong(features)).sum() < len(features):
        region = int(np.flatnonzero(wrong)[0])
        raise VlkdError(
            f"{place}: region {region} (from 0) ends with {_listed(features[region, -GEOMETRY_DIM:])}, which is no x1/W, y1/H, x2/W, y2/H, w/W, h/H of a box in "
            "the picture, though other regions' are: extract it again."
        )
    last = features[:, -GEOMETRY_DIM:].astype(np.float64)
    if dim > GEOMETRY_DIM and (np.abs(last[:, :2] + last[:, 4:] - last[:, 2:4]) <= 1).all() and (last[:, 4:] > 1).all():
        raise VlkdError(
            f"{place}: the six numbers at the end, {_listed(last[0])} of region 0, are pixels: divide them by the picture's "
            "width and height, as x1/W, y1/H, x2/W, y2/H, w/W, h/H."
        )
    raise VlkdError(
        f"{place}: {dim} numbers a region that do not end with x1/W, y1/H, x2/W, y2/H, w/W, h/H: append these six to the "
        "detector's numbers (Oscar and VinVL: 2048 + 6 = 2054)."
    )


def joined_rows(features: np.ndarray) -> int | None:
    """How many boxes stand in each row of [n, D], where the number of boxes was given too small; None where one does."""
    count, dim = features.shape
    for boxes in range(2, _MOST_IN_A_ROW + 1):
        if dim % boxes == 0 and ends_with_geometry(features.reshape(count * boxes, -1)):
            return boxes
    return None


def _wrong(features: np.ndarray) -> np.ndarray:
    """[n]: which rows do not end with a geometry."""
    numbers = features[:, -GEOMETRY_DIM:].astype(np.float64)
    corners, sides = numbers[:, :4], numbers[:, 4:]
    inside = ((corners >= -_BEYOND) & (corners <= 1 + _BEYOND)).all(axis=1)
    with np.errstate(invalid="ignore"):  # what other bytes make of it
        sums = (np.abs(corners[:, :2] + sides - corners[:, 2:]) <= _SUM_TOLERANCE).all(axis=1)
    return np.asarray(~(inside & sums & (sides > 0).all(axis=1)))


def _listed(numbers: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in numbers.tolist()) + ")"
