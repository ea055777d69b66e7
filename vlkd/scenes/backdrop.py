"""What lies behind the things: a coloured ground, a faint pattern and clutter nobody asks about."""

from __future__ import annotations

import math
from colorsys import hls_to_rgb

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLE = 2


def draw_backdrop(rng: np.random.Generator, size: int) -> np.ndarray:
    """A backdrop [size, size, 3] float32 in 0..255 of muted colours, with clutter on it."""
    ground = _ground(rng, size)
    clutter = np.asarray(_clutter(rng, size), dtype=np.float32)  # [size, size, 4]
    opacity = clutter[..., 3:] / 255.0
    return ground * (1.0 - opacity) + clutter[..., :3] * opacity


def _muted_pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two neighbouring colours of middle lightness, on which both white and black stand out."""
    hue = rng.random()
    bright = rng.random() < 0.72
    light = rng.uniform(0.68, 0.82) if bright else rng.uniform(0.3, 0.4)
    saturation = rng.uniform(0.12, 0.42) if bright else rng.uniform(0.1, 0.24)
    shift = rng.uniform(-0.1, 0.1)
    first = hls_to_rgb(hue, light, saturation)
    second = hls_to_rgb((hue + shift) % 1.0, light + rng.choice((-0.08, 0.08)), saturation)
    return (
        np.array(first, dtype=np.float32) * 255.0,
        np.array(second, dtype=np.float32) * 255.0,
    )


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """A flat, graded, banded, chequered or spotted mixture [size, size, 3] of two colours."""
    first, second = _muted_pair(rng)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = axis[None, :], axis[:, None]
    angle = rng.uniform(0, math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    cycles = rng.uniform(2.0, 5.0) * 2 * math.pi
    kind = rng.integers(6)
    if kind == 0:
        mix = along - along.min()
    elif kind == 1:
        mix = np.hypot(x - rng.uniform(0.2, 0.8), y - rng.uniform(0.2, 0.8))
    elif kind == 2:
        mix = _crisp(np.sin(cycles * along), size)
    elif kind == 3:
        mix = _crisp(np.sin(cycles * along) * np.sin(cycles * across), size)
    elif kind == 4:
        mix = _crisp(np.sin(cycles * along) * np.sin(cycles * across) - 0.5, size)
    else:
        waves = np.sin(cycles * along + 2.0 * np.sin(cycles * across / 2))
        mix = 0.5 + 0.5 * waves
    mix = np.clip(mix, 0.0, 1.0)[..., None]
    return first * (1.0 - mix) + second * mix


def _crisp(wave: np.ndarray, size: int) -> np.ndarray:
    """A wave in -1..1 turned into two levels with edges about a pixel or two wide."""
    return np.clip(0.5 + wave * size / 40.0, 0.0, 1.0)


def _clutter(rng: np.random.Generator, size: int) -> Image.Image:
    """Faint blobs, thin lines, squiggles and confetti on a transparent RGBA image."""
    side = size * SUPERSAMPLE
    unit = side / 192.0
    image = Image.new("RGBA", (side, side), (128, 128, 128, 0))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 4)):
        x, y = rng.uniform(0, side, size=2)
        rx, ry = rng.uniform(10, 34, size=2) * unit
        draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=_tint(rng, 26, 60))
    for _ in range(rng.integers(0, 4)):
        ends = rng.uniform(0, side, size=4).tolist()
        draw.line(ends, fill=_tint(rng, 70, 150), width=round(rng.uniform(1.0, 2.2) * unit))
    for _ in range(rng.integers(0, 3)):
        heading = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.55, size=16))
        steps = 5.5 * unit * np.stack([np.cos(heading), np.sin(heading)], axis=1)  # [16, 2]
        path = (rng.uniform(0, side, size=2) + np.cumsum(steps, axis=0)).ravel().tolist()
        draw.line(path, fill=_tint(rng, 70, 150), width=round(1.5 * unit), joint="curve")
    for _ in range(rng.integers(0, 26)):
        x, y = rng.uniform(0, side, size=2)
        dx, dy = rng.uniform(-3.2, 3.2, size=2) * unit
        draw.line((x, y, x + dx, y + dy), fill=_tint(rng, 120, 220), width=round(1.7 * unit))
    return image.reduce(SUPERSAMPLE)


def _tint(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int, int]:
    red, green, blue = (round(255 * v) for v in hls_to_rgb(rng.random(), 0.55, 0.5))
    return red, green, blue, int(rng.integers(low, high))
