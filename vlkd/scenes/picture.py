"""A picture with everything known about it, made from nothing but a seed, a split and a number."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vlkd.errors import VlkdError
from vlkd.runs import write_atomically
from vlkd.scenes.captions import write_captions
from vlkd.scenes.questions import Question, ask_questions
from vlkd.scenes.render import MIN_SIZE, render
from vlkd.scenes.scene import sample_scene

SPLITS: tuple[str, ...] = ("detectors", "train", "validation", "test")
"""Disjoint by seed; pictures of `detectors` are for training the detectors only."""


@dataclass(frozen=True)
class Picture:
    """A drawn picture and its annotations."""

    key: str  # such as "test-000012"; unique within a world (a seed)
    pixels: np.ndarray  # [H, W, 3] uint8
    boxes: np.ndarray  # [n, 4] float32, x1, y1, x2, y2 in pixels around the visible part
    classes: np.ndarray  # [n] int64, indices into CLASSES
    attributes: dict[str, np.ndarray]  # name -> [n] int64, indices into ATTRIBUTES[name]
    captions: tuple[str, ...]  # five
    questions: tuple[Question, ...]  # eight or more


def make_picture(seed: int, split: str, index: int, *, size: int = 192) -> Picture:
    """Make picture number `index` of a split in the world of `seed`; same arguments, same bytes.

    The scene, its captions and its questions do not depend on `size` (pixels to a side).
    Raises VlkdError for an unknown split, a negative seed or index, or a size below 64.
    """
    _check(seed, split, index, size)
    sequence = np.random.SeedSequence([seed, SPLITS.index(split), index])
    layout, drawing, telling, asking = (np.random.default_rng(s) for s in sequence.spawn(4))
    things = sample_scene(layout)
    pixels, boxes = render(things, drawing, size)
    return Picture(
        key=f"{split}-{index:06d}",
        pixels=pixels,
        boxes=boxes,
        classes=np.array([thing.cls for thing in things], dtype=np.int64),
        attributes={
            name: np.array([getattr(thing, name) for thing in things], dtype=np.int64)
            for name in ("colour", "texture", "size")
        },
        captions=write_captions(things, telling),
        questions=ask_questions(things, asking),
    )


def save_pictures(folder: str | Path, seed: int, split: str, indices: Iterable[int], size: int = 192) -> list[Path]:
    """Write pictures as PNG files named by their keys and return the paths, in order.

    An existing file of the same name is replaced, and only once its successor is complete.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in indices:
        picture = make_picture(seed, split, index, size=size)
        path = folder / f"{picture.key}.png"
        encoded = io.BytesIO()
        Image.fromarray(picture.pixels).save(encoded, format="PNG")
        write_atomically(path, encoded.getvalue(), flush=False)
        paths.append(path)
    return paths


def _check(seed: int, split: str, index: int, size: int) -> None:
    if split not in SPLITS:
        raise VlkdError(f"Expected a split out of {', '.join(SPLITS)}, but got {split!r}.")
    for name, value in (("seed", seed), ("index", index)):
        if value < 0:
            raise VlkdError(f"Expected a picture's {name} to be 0 or more, but got {value}.")
    if size < MIN_SIZE:
        raise VlkdError(f"Expected a picture size of at least {MIN_SIZE} pixels, but got {size}.")
