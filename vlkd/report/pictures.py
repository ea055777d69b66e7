"""A picture with its boxes and tags drawn on it, as PNG bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from vlkd.report.style import drawing, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_SIDE = 4096  # pixels; a figure shows some hundreds of them
_FLATTEST, _TALLEST = 1 / 8, 3.0  # height of a panel as a share of its width
BOX_COLOURS = ("#00a6a6", "#d1435b", "#2f6fb0", "#eaa33b", "#7d5ba6", "#5b8c5a", "#c2410c", "#16324f")


def picture_with_boxes(pixels: np.ndarray, boxes: np.ndarray, tags: Sequence[str]) -> bytes:
    """``pixels`` [H, W, 3] uint8 with ``boxes`` [n, 4] in pixels and one tag a box (fewer tags leave boxes bare)."""
    pixels, boxes = drawable(pixels, boxes)
    with picture_panels(pixels, 1, inches=2.9) as (figure, (axes,)):
        for place, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            colour = BOX_COLOURS[place % len(BOX_COLOURS)]
            outline(axes, (x1, y1, x2, y2), colour)
            if place < len(tags):
                axes.text(
                    x1, y1, tags[place], fontsize=6.2, color="white", va="bottom", ha="left", clip_on=True,
                    bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.1, "alpha": 0.9},
                )  # fmt: skip
        return png(figure)


def drawable(pixels: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture [H, W, 3] and its boxes [n, 4], both smaller by a whole number where it has hundreds of megapixels."""
    from PIL import Image

    boxes = np.asarray(boxes)
    factor = -(-max(pixels.shape[:2]) // _MOST_SIDE)
    if factor == 1:
        return pixels, boxes
    scale = np.minimum(factor, pixels.shape[1::-1])  # a side shorter than that becomes one pixel
    return np.array(Image.fromarray(pixels).reduce(tuple(scale.tolist()))), boxes / np.tile(scale, 2)


@contextmanager
def picture_panels(
    pixels: np.ndarray, columns: int, inches: float = 2.7, header: float = 0.0
) -> Iterator[tuple[Figure, list[Axes]]]:
    """``columns`` panels that show the picture, ``inches`` wide each, with ``header`` inches above for titles.

    A very long picture gets a panel of a shape that can be drawn, with space around it.
    """
    height, width = pixels.shape[:2]
    share = min(max(height / width, _FLATTEST), _TALLEST)
    with drawing(inches * columns, inches * share + header, columns=columns) as (figure, panels):
        for axes in panels:
            axes.imshow(pixels, interpolation="bilinear", extent=(0, width, height, 0))
            axes.set_xlim(0, width)
            axes.set_ylim(height, 0)
            axes.set_axis_off()
        yield figure, panels


def outline(axes: Axes, box: Sequence[float], colour: str, width: float = 1.3, fill: float = 0.0) -> None:
    """Draw ``box`` (x1, y1, x2, y2) with a solid edge and, where ``fill`` > 0, a translucent face."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = box
    face = to_rgba(colour, fill) if fill > 0 else "none"
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, linewidth=width, edgecolor=colour, facecolor=face))
