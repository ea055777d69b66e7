"""Drawing a scene: things with texture, outline and shadow over a backdrop, then sensor noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from vlkd.scenes.backdrop import draw_backdrop
from vlkd.scenes.scene import CANVAS, Thing, visible_box
from vlkd.scenes.shapes import coverage
from vlkd.scenes.vocabulary import COLOURS, TEXTURES

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 48),
    "orange": (246, 138, 30),
    "yellow": (250, 212, 48),
    "green": (44, 158, 78),
    "blue": (38, 104, 216),
    "purple": (124, 62, 178),
    "pink": (248, 132, 184),
    "white": (250, 250, 247),
    "black": (34, 34, 40),
}
INK_LIGHT, INK_DARK = (255.0, 255.0, 255.0), (20.0, 20.0, 34.0)
MIN_SIZE = 64  # pixels; below it the smallest things would vanish


def render(things: Sequence[Thing], rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the things on a picture of size x size pixels.

    Returns the pixels [size, size, 3] uint8 and the tight boxes [n, 4] float32 (x1, y1, x2, y2 in
    pixels) around the visible part of every thing. The random numbers drawn do not depend on the
    things, so that a scene with one thing changed keeps its backdrop and noise.
    """
    canvas = draw_backdrop(rng, size)  # [size, size, 3]
    owner = np.full((size, size), -1, dtype=np.int64)  # index of the topmost thing
    for index, thing in enumerate(things):
        _draw(thing, index, canvas, owner)
    canvas += _noise(rng, size)
    pixels = np.clip(canvas + 0.5, 0.0, 255.0).astype(np.uint8)
    boxes = [visible_box(owner == index) for index in range(len(things))]
    return pixels, np.array(boxes, dtype=np.float32).reshape(-1, 4)


def _noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Grey grain and a little colour noise [size, size, 3] float32 of a random strength."""
    strength = rng.uniform(1.5, 7.0)
    # Sums of two random bytes are close enough to a bell, and several times cheaper than normals.
    grain = rng.integers(0, 256, size=(2, size, size, 1), dtype=np.uint8).sum(axis=0, dtype=np.int16)
    tint = rng.integers(0, 256, size=(2, size, size, 3), dtype=np.uint8).sum(axis=0, dtype=np.int16)
    mean, deviation = 255.0, 104.5
    scale = np.float32(strength / deviation)
    return scale * (0.8 * (grain - np.float32(mean)) + 0.45 * (tint - np.float32(mean)))


def _draw(thing: Thing, index: int, canvas: np.ndarray, owner: np.ndarray) -> None:
    size = canvas.shape[0]
    unit = size / CANVAS
    mask, left, top = coverage(
        thing.cls,
        extent=thing.extent * unit,
        degrees=thing.degrees,
        x=thing.x * unit,
        y=thing.y * unit,
    )
    _draw_shadow(mask, left, top, unit, canvas)
    here, there = _clip(mask.shape, left, top, size)
    opacity = mask[here].astype(np.float32)[..., None] / 255.0
    paint = _paint(thing, mask, left, top, unit)[here]
    canvas[there] += (paint - canvas[there]) * opacity
    owner[there][mask[here] >= 128] = index


def _clip(shape: tuple[int, ...], left: int, top: int, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The slices of a crop that lie inside the picture, and the picture's slices they cover."""
    height, width = shape[:2]
    rows = slice(max(0, top), min(size, top + height))
    columns = slice(max(0, left), min(size, left + width))
    here = (
        slice(rows.start - top, max(rows.start, rows.stop) - top),
        slice(columns.start - left, max(columns.start, columns.stop) - left),
    )
    return here, (rows, columns)


def _draw_shadow(mask: np.ndarray, left: int, top: int, unit: float, canvas: np.ndarray) -> None:
    """Darken a soft copy of the mask a little below and to the right of the thing."""
    spread = max(1, round(2 * unit))
    padded = Image.fromarray(np.pad(mask, 2 * spread))
    soft = np.asarray(padded.filter(ImageFilter.BoxBlur(spread)))
    shift = round(2 * unit) - 2 * spread
    here, there = _clip(soft.shape, left + shift, top + shift, canvas.shape[0])
    canvas[there] *= 1.0 - soft[here].astype(np.float32)[..., None] * (0.3 / 255.0)


def _paint(thing: Thing, mask: np.ndarray, left: int, top: int, unit: float) -> np.ndarray:
    """The colour of every pixel of a thing's crop [h, w, 3]: texture, soft light, darker rim."""
    colour = np.array(PALETTE[COLOURS[thing.colour]], dtype=np.float32)
    light = colour.mean() > 200 or COLOURS[thing.colour] == "yellow"
    ink = np.array(INK_DARK if light else INK_LIGHT, dtype=np.float32)
    height, width = mask.shape
    x = (np.arange(width, dtype=np.float32) + left + 0.5)[None, :] - thing.x * unit
    y = (np.arange(height, dtype=np.float32) + top + 0.5)[:, None] - thing.y * unit
    pattern = _pattern(thing, x, y, unit)[..., None]  # [h, w, 1], 1 = ink
    paint = colour + (ink - colour) * (pattern * (0.42 if light else 0.62))
    paint *= (1.0 - 0.16 * (x + y) / (thing.extent * unit))[..., None]
    rim = np.asarray(Image.fromarray(mask).filter(ImageFilter.BoxBlur(max(1, round(unit)))))
    edge = np.clip((250.0 - rim.astype(np.float32)) / 110.0, 0.0, 1.0)[..., None]  # [h, w, 1]
    dark = COLOURS[thing.colour] == "black"
    return paint + (ink * 0.45 - paint if dark else -0.38 * paint) * edge


def _pattern(thing: Thing, x: np.ndarray, y: np.ndarray, unit: float) -> np.ndarray:
    """The share of ink [h, w] in 0..1 of a texture, in coordinates turned by its grain."""
    name = TEXTURES[thing.texture]
    if name == "plain":
        return np.zeros((y.shape[0], x.shape[1]), dtype=np.float32)
    period = max(5.5, 0.155 * thing.extent) * unit
    turn = 2 * math.pi / period
    cosine, sine = turn * math.cos(math.radians(thing.grain)), turn * math.sin(math.radians(thing.grain))
    u, v = x * cosine + y * sine, y * cosine - x * sine
    if name == "striped":
        wave = np.sin(u) - 0.1
    elif name == "dotted":
        wave = (np.cos(u * 0.8) + np.cos(v * 0.8)) / 1.6 - 0.45
    else:
        wave = np.sin(u * 0.6) * np.sin(v * 0.6)
    return np.clip(0.5 + wave * 1.6 * period / 5.5, 0.0, 1.0)
