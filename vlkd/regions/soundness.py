"""What is wrong with the numbers of features and boxes, as the part of a sentence; None where nothing is.

n regions, D numbers of a feature; a box is x1, y1, x2, y2, in pixels of a picture of W x H.
"""

from __future__ import annotations

import numpy as np

HALF_LARGEST = 65504.0
_HALF_BEYOND = 65520.0  # what rounds to inf
_HALF_NORMAL = 2.0**-14  # below it, float16 has fewer digits the smaller a number is
_BEYOND = 0.01  # of a side: how far a box may reach beyond the picture
_BEYOND_PIXELS = 1.0  # or so many pixels, which is what rounding a resized picture's boxes costs
_LARGEST_SIDE = 1_000_000
_NO_PIXELS = 4  # a picture no larger has boxes of less than a pixel


def number_problem(values: np.ndarray) -> str | None:
    """A number of [n, D] that is not finite, by region and place (from 0)."""
    finite = np.isfinite(values)
    if finite.all():
        return None
    return f"{_first(values, np.asarray(~finite))}, but finite numbers are expected: extract it again"


def half_problem(values: np.ndarray) -> str | None:
    """What float16 cannot hold of finite [n, D], geometry left out: numbers that become inf, regions that fade to zero."""
    size = np.abs(values)
    beyond = size >= _HALF_BEYOND
    if beyond.any():
        return (
            f"{_first(values, beyond)}, beyond float16's {HALF_LARGEST:.0f}: take float32, or standardise the features"
        )
    largest = size.max(axis=1, initial=0)
    faint = np.flatnonzero((largest > 0) & (largest < _HALF_NORMAL))
    if not len(faint):
        return None
    return (
        f"region {faint[0]} has no number above {largest[faint[0]]:.3g}, of which float16 keeps few digits or none: take "
        "float32, or standardise the features"
    )


def size_problem(width: object, height: object) -> str | None:
    """Whether a picture's size is two whole numbers of pixels."""
    whole = (isinstance(side, (int, np.integer)) and not isinstance(side, bool) for side in (width, height))
    if all(whole) and min(width, height) >= 1 and max(width, height) <= _LARGEST_SIDE:  # type: ignore[type-var]
        return None
    return f"the picture's width and height are {width!r} and {height!r}, but whole numbers of pixels are expected"


def box_problem(boxes: np.ndarray, width: float, height: float) -> str | None:
    """Boxes [n, 4] that are not finite, have their corners exchanged, or reach beyond the picture.

    A picture of 1 x 1 stands for boxes that are parts of it.
    """
    finite = np.asarray(np.isfinite(boxes).all(axis=1))
    if not finite.all():
        return f"{_box(boxes, ~finite)} has numbers that are not finite: extract it again"
    swapped = np.asarray((boxes[:, 2:] < boxes[:, :2]).any(axis=1))
    if swapped.any():
        return f"{_box(boxes, swapped)} has its corners exchanged, but x1 <= x2 and y1 <= y2 are expected"
    outside = _outside(boxes, width, height)
    if outside.any():
        return f"{_box(boxes, outside)} reaches beyond the picture of {width:g} x {height:g}"
    return None


def file_box_problem(boxes: np.ndarray, width: int, height: int) -> str | None:
    """Boxes [n, 4] of a file, which may be in any unit and order: what they are instead of corners in pixels."""
    finite = np.asarray(np.isfinite(boxes).all(axis=1))
    if not finite.all():
        return box_problem(boxes, width, height)
    if min(width, height) > _NO_PIXELS and (np.abs(boxes) <= 1 + _BEYOND).all():
        return (
            f"all boxes lie between 0 and 1, the first is {_numbers(boxes[0])}: they are parts of the picture of "
            f"{width} x {height}, but corners in its pixels are expected"
        )
    flat = np.asarray((boxes[:, 2:] <= boxes[:, :2]).any(axis=1))
    if flat.any():
        sides = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        if (boxes[:, 2:] > 0).all() and not _outside(sides, width, height).any():
            return f"{_box(boxes, flat)} looks like x, y, width, height, but the corners x1, y1, x2, y2 are expected"
        return f"{_box(boxes, flat)} has no area, but corners with x1 < x2 and y1 < y2 are expected"
    outside = _outside(boxes, width, height)
    if not outside.any():
        return None
    turned = not _outside(boxes, height, width).any()
    return f"{_box(boxes, outside)} reaches beyond the picture of {width} x {height} (width x height): " + (
        "the two may be exchanged" if turned else "the boxes may be of a resized picture, or of another one"
    )


def _outside(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """[n]: which boxes reach beyond the picture by more than rounding explains."""
    sides = np.array([width, height] * 2, dtype=np.float64)
    room = np.maximum(_BEYOND * sides, np.where(sides > 1, _BEYOND_PIXELS, 0))
    return np.asarray(((boxes < -room) | (boxes > sides + room)).any(axis=1))


def _first(values: np.ndarray, wrong: np.ndarray) -> str:
    region, place = (int(index) for index in np.argwhere(wrong)[0])
    return f"number {place} of region {region} (both from 0) is {values[region, place]:.6g}"


def _box(boxes: np.ndarray, wrong: np.ndarray) -> str:
    region = int(np.flatnonzero(wrong)[0])
    return f"the box {_numbers(boxes[region])} of region {region} (from 0)"


def _numbers(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values.tolist()) + ")"
