"""What is in a picture and where: things sampled and placed, before a pixel is drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vlkd.scenes.shapes import DEFAULT_TURN, TURN, coverage
from vlkd.scenes.vocabulary import CLASSES, COLOURS, PLAIN, SIZES, TEXTURES, is_glyph

CANVAS = 192.0  # a scene is laid out on a square of this side, whatever size it is drawn at
MIN_THINGS, MAX_THINGS = 4, 9
EXTENTS = ((16.0, 21.0), (30.0, 38.0), (50.0, 62.0))  # longer side of small, medium, large things
REPEAT_CLASS, REPEAT_COLOUR = 0.42, 0.36  # chance to take after an earlier thing: makes groups
MIN_VISIBLE = 0.62  # of every thing, on the coarse grid; a margin over the promised half
MAX_HIDING = 0.4  # share of a new thing that may lie over earlier ones
LIKES_OVERLAP = 0.3  # share of things that may overlap others from the first attempt on
ATTEMPTS = 30
GRID = 96  # side of the coarse grid on which overlaps are counted
CELL = CANVAS / GRID


@dataclass(frozen=True)
class Thing:
    """One annotated object. Lengths are in canvas units (192 to a side), y grows downwards."""

    cls: int
    colour: int
    texture: int
    size: int
    extent: float  # longer side before turning
    degrees: float
    grain: float  # direction of the texture in degrees
    x: float = 0.0
    y: float = 0.0
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # of the visible part

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the visible part."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def area(self) -> float:
        """The area of the visible part's box."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])

    @property
    def can_have_texture(self) -> bool:
        """Glyphs and small things are always plain: a texture would not show on them."""
        return self.size > 0 and not is_glyph(self.cls)


def sample_scene(rng: np.random.Generator) -> tuple[Thing, ...]:
    """Sample 4 to 9 things from the back to the front, each at least about 60 % visible."""
    count = int(rng.integers(MIN_THINGS, MAX_THINGS + 1))
    while True:  # a crowd of large things may not fit; then another crowd of the same number is drawn
        placed = _place(_sample_things(rng, count), rng)
        if placed is not None:
            return placed


def _sample_things(rng: np.random.Generator, count: int) -> list[Thing]:
    things: list[Thing] = []
    for _ in range(count):
        cls, colour = int(rng.integers(len(CLASSES))), int(rng.integers(len(COLOURS)))
        if things and rng.random() < REPEAT_CLASS:
            cls = things[rng.integers(len(things))].cls
        if things and rng.random() < REPEAT_COLOUR:
            colour = things[rng.integers(len(things))].colour
        size = int(rng.integers(len(SIZES)))
        turn = TURN.get(CLASSES[cls], DEFAULT_TURN)
        thing = Thing(
            cls=cls,
            colour=colour,
            texture=PLAIN,
            size=size,
            extent=float(rng.uniform(*EXTENTS[size])),
            degrees=float(rng.uniform(-turn, turn)),
            grain=float(rng.uniform(20, 70)) * (1 if rng.random() < 0.5 else -1),
        )
        texture = int(rng.integers(len(TEXTURES)))
        things.append(replace(thing, texture=texture) if thing.can_have_texture else thing)
    # Large things tend to lie further back, so that they seldom hide a small one.
    haste = [thing.extent * rng.uniform(0.5, 1.5) for thing in things]
    return [things[i] for i in np.argsort(haste)[::-1]]


def _place(things: list[Thing], rng: np.random.Generator) -> tuple[Thing, ...] | None:
    """Put the things on the canvas one over the other, or return None if one finds no room."""
    owner = np.full((GRID, GRID), len(things), dtype=np.int64)  # index of the topmost thing
    full: list[int] = []
    placed: list[Thing] = []
    for index, thing in enumerate(things):
        spot = _find_spot(thing, index, owner, np.array(full), rng)
        if spot is None:
            return None
        cells, left, top, x, y = spot
        height, width = cells.shape
        owner[top : top + height, left : left + width][cells] = index
        full.append(int(cells.sum()))
        placed.append(replace(thing, x=x, y=y))
    return tuple(
        replace(thing, box=tuple(CELL * v for v in visible_box(owner == index))) for index, thing in enumerate(placed)
    )


def _find_spot(
    thing: Thing, index: int, owner: np.ndarray, full: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, int, int, float, float] | None:
    """Cells [h, w] of the thing, their left and top on the grid, and its centre on the canvas."""
    mask, left, top = coverage(
        thing.cls, extent=thing.extent / CELL, degrees=thing.degrees, x=0.0, y=0.0, supersample=1
    )
    cells = mask > 0
    height, width = cells.shape
    visible = np.bincount(owner.ravel(), minlength=owner.max() + 1)[:index]
    eager = rng.random() < LIKES_OVERLAP
    for attempt in range(ATTEMPTS):
        column = int(rng.integers(1, GRID - width))
        row = int(rng.integers(1, GRID - height))
        under = owner[row : row + height, column : column + width][cells]
        hidden = np.bincount(under, minlength=index)[:index]
        limit = MAX_HIDING if eager or attempt > ATTEMPTS // 2 else 0.0
        if hidden.sum() > limit * len(under):
            continue
        if np.all(visible - hidden >= MIN_VISIBLE * full):
            return cells, column, row, CELL * (column - left), CELL * (row - top)
    return None


def visible_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The tight box (x1, y1, x2, y2) of the True pixels of `mask` [h, w], ends exclusive."""
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
