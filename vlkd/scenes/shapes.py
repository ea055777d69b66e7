"""Outlines of every class as polygons, and their rasterisation to coverage masks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from vlkd.scenes.vocabulary import CLASSES

STROKE = 0.21  # width of a glyph's strokes, as a share of its drawing box
TURN: dict[str, float] = {"circle": 180, "star": 36, "hexagon": 30, "arrow": 180, "flower": 30}
DEFAULT_TURN = 17.0  # degrees; small enough that a square never reads as a diamond


@dataclass(frozen=True)
class Part:
    """A closed polygon `points` [n, 2]; a hole erases what earlier parts filled."""

    points: np.ndarray
    hole: bool = False


@dataclass(frozen=True)
class Outline:
    """A shape's polygons, drawn in turn: fills add to it, holes cut into it."""

    points: np.ndarray  # [n, 2], of all polygons one after the other
    lengths: tuple[int, ...]  # corners of each polygon
    holes: tuple[bool, ...]  # whether the polygon is a hole
    solid: np.ndarray  # [n] bool, False for the corners of holes


def _polygon(*points: tuple[float, float]) -> list[Part]:
    return [Part(np.array(points, dtype=np.float64))]


def _arc(centre: tuple[float, float], radii: tuple[float, float], start: float, stop: float, n: int) -> np.ndarray:
    """Points [n, 2] along an ellipse from `start` to `stop` degrees, clockwise on the screen."""
    angle = np.radians(np.linspace(start, stop, n))
    return np.stack([centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)], axis=1)


def _disc(x: float, y: float, radius: float, hole: bool = False, n: int = 40) -> Part:
    return Part(_arc((x, y), (radius, radius), 0, 360, n), hole)


def _regular(corners: int, inner: float | None = None) -> list[Part]:
    """A regular polygon with a corner on top, or a star if an inner radius is given."""
    count = corners if inner is None else 2 * corners
    points = _arc((0, 0), (1, 1), -90, 270, count + 1)[:-1]
    if inner is not None:
        points[1::2] *= inner
    return [Part(points)]


def _stroke(points: np.ndarray) -> list[Part]:
    """A polyline [n, 2] drawn with a round pen of width `STROKE`."""
    half = STROKE / 2
    parts = [_disc(x, y, half, n=14) for x, y in points]
    for a, b in pairwise(points):
        across = np.array([a[1] - b[1], b[0] - a[0]]) * half / np.hypot(*(b - a))
        parts.append(Part(np.stack([a + across, b + across, b - across, a - across])))
    return parts


def _strokes(*lines: np.ndarray | list[tuple[float, float]]) -> list[Part]:
    return [part for line in lines for part in _stroke(np.asarray(line, dtype=np.float64))]


def _heart() -> list[Part]:
    t = np.linspace(0, 2 * np.pi, 49)[:-1]
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return [Part(np.stack([x, y], axis=1))]


def _flower() -> list[Part]:
    petals = _arc((0, 0), (0.62, 0.62), 0, 300, 6)
    return [*(_disc(x, y, 0.36) for x, y in petals), _disc(0, 0, 0.55), _disc(0, 0, 0.22, True)]


def _moon() -> list[Part]:
    return [_disc(0, 0, 1), _disc(0.5, -0.18, 0.82, hole=True)]


def _cloud() -> list[Part]:
    puffs = [(-0.6, 0.12, 0.38), (-0.12, -0.22, 0.5), (0.42, -0.05, 0.42), (0.72, 0.2, 0.3)]
    base = _polygon((-0.6, 0.1), (0.72, 0.1), (0.72, 0.5), (-0.6, 0.5))
    return [*(_disc(*puff) for puff in puffs), *base]


def _house() -> list[Part]:
    roof = _polygon((-1, -0.1), (0, -1), (1, -0.1))
    walls = _polygon((-0.74, -0.15), (0.74, -0.15), (0.74, 0.9), (-0.74, 0.9))
    door = Part(np.array([(-0.2, 0.3), (0.2, 0.3), (0.2, 0.95), (-0.2, 0.95)]), hole=True)
    return [*roof, *walls, door]


def _tree() -> list[Part]:
    crown = _polygon((0, -1), (0.52, -0.3), (-0.52, -0.3)) + _polygon((0, -0.6), (0.72, 0.45), (-0.72, 0.45))
    return crown + _polygon((-0.17, 0.4), (0.17, 0.4), (0.17, 1), (-0.17, 1))


def _build(name: str) -> list[Part]:
    arm = 0.36
    builders = {
        "circle": lambda: [_disc(0, 0, 1)],
        "square": lambda: _polygon((-1, -1), (1, -1), (1, 1), (-1, 1)),
        "triangle": lambda: _regular(3),
        "star": lambda: _regular(5, inner=0.45),
        "ring": lambda: [_disc(0, 0, 1), _disc(0, 0, 0.54, hole=True)],
        "cross": lambda: _polygon(
            (-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
            (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm),
        ),
        "heart": _heart,
        "diamond": lambda: _polygon((0, -1), (0.68, 0), (0, 1), (-0.68, 0)),
        "moon": _moon,
        "arrow": lambda: _polygon(
            (-1, -0.26), (0.1, -0.26), (0.1, -0.7), (1, 0), (0.1, 0.7), (0.1, 0.26), (-1, 0.26)
        ),
        "hexagon": lambda: _regular(6),
        "flower": _flower,
        "cloud": _cloud,
        "bolt": lambda: _polygon(
            (0.2, -1), (-0.6, 0.16), (-0.08, 0.16), (-0.3, 1), (0.6, -0.24), (0.06, -0.24), (0.5, -1)
        ),
        "house": _house,
        "tree": _tree,
        "letter a": lambda: _strokes([(0.1, 1), (0.45, 0), (0.8, 1)], [(0.24, 0.66), (0.66, 0.66)]),
        "letter b": lambda: _strokes(
            [(0.1, 0), (0.1, 1)],
            [(0.1, 0), *_arc((0.4, 0.24), (0.25, 0.24), -90, 90, 7), (0.1, 0.48)],
            [(0.1, 0.48), *_arc((0.44, 0.74), (0.29, 0.26), -90, 90, 7), (0.1, 1)],
        ),
        "letter k": lambda: _strokes(
            [(0.1, 0), (0.1, 1)], [(0.72, 0), (0.12, 0.6)], [(0.34, 0.42), (0.76, 1)]
        ),
        "letter s": lambda: _strokes([
            *_arc((0.42, 0.25), (0.32, 0.25), -25, -270, 10),
            *_arc((0.42, 0.75), (0.32, 0.25), -90, 155, 10)[1:],
        ]),
        "digit 2": lambda: _strokes(
            [*_arc((0.4, 0.3), (0.32, 0.3), -170, 35, 10), (0.08, 1), (0.76, 1)]
        ),
        "digit 4": lambda: _strokes([(0.56, 1), (0.56, 0), (0.04, 0.68), (0.8, 0.68)]),
        "digit 5": lambda: _strokes(
            [(0.7, 0), (0.16, 0), (0.12, 0.46), *_arc((0.38, 0.69), (0.32, 0.31), -110, 145, 10)]
        ),
        "digit 8": lambda: _strokes(
            _arc((0.4, 0.23), (0.25, 0.23), 0, 360, 15), _arc((0.4, 0.73), (0.31, 0.27), 0, 360, 17)
        ),
    }  # fmt: skip
    return builders[name]()


@cache
def outline(cls: int) -> Outline:
    """The outline of a class, centred at 0 and scaled so that the longer side is 1."""
    parts = _build(CLASSES[cls])
    filled = np.concatenate([part.points for part in parts if not part.hole])  # [n, 2]
    low, high = filled.min(axis=0), filled.max(axis=0)
    points = np.concatenate([part.points for part in parts])
    return Outline(
        points=(points - (low + high) / 2) / (high - low).max(),
        lengths=tuple(len(part.points) for part in parts),
        holes=tuple(part.hole for part in parts),
        solid=np.concatenate([np.full(len(part.points), not part.hole) for part in parts]),
    )


def coverage(
    cls: int, *, extent: float, degrees: float, x: float, y: float, supersample: int = 4
) -> tuple[np.ndarray, int, int]:
    """Rasterise a thing whose longer side is `extent` pixels, centred at (x, y) and turned.

    Returns the coverage [h, w] uint8 (255 = fully covered) of a crop that holds the whole thing with
    a pixel to spare, and the crop's left and top pixel.
    """
    shape = outline(cls)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = np.array([[cosine, sine], [-sine, cosine]]) * extent
    points = shape.points @ turn + (x, y)  # [n, 2]
    filled = points[shape.solid]
    left, top = (math.floor(v) - 1 for v in filled.min(axis=0))
    width, height = (math.ceil(v) + 1 for v in filled.max(axis=0) - (left, top))
    mask = Image.new("L", (width * supersample, height * supersample))
    draw = ImageDraw.Draw(mask)
    # Pillow's pixel centres lie on whole numbers, ours half a pixel further.
    flat = ((points - (left, top)) * supersample - 0.5).ravel().tolist()
    start = 0
    for length, hole in zip(shape.lengths, shape.holes, strict=True):
        draw.polygon(flat[start : start + 2 * length], fill=0 if hole else 255)
        start += 2 * length
    small = mask.reduce(supersample) if supersample > 1 else mask
    return np.asarray(small), left, top
