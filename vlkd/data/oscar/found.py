"""What files of features give, whatever their form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Found:
    """One picture's regions as a file has them.

    Attributes:
        features: float32 [n, D + 6], finite.
        size: the picture's width and height in pixels, where the file says them.
        boxes: float32 [n, 4] in pixels, where the file has them; elsewhere they are known by their geometry alone.
        tags: the objects' names, where the file has them.
    """

    features: np.ndarray
    size: tuple[int, int] | None = None
    boxes: np.ndarray | None = None
    tags: tuple[str, ...] | None = None


class FeatureFile(Protocol):
    """A file of features, opened by :func:`vlkd.data.oscar.features.open_features`.

    Attributes:
        path: of the file.
        keys: the pictures in the file's order, each once, in Unicode's composed form.
        problems: sentences about keys that cannot be used.
        indexed: whether a ``.lineidx`` says where rows are; None where a file needs none.
        numbered: whether objects have the numbers of their classes, to which :attr:`classes` gives names.
    """

    path: Path
    keys: tuple[str, ...]
    problems: list[str]
    indexed: bool | None
    numbered: bool

    def __contains__(self, key: str) -> bool: ...

    def read(self, key: str) -> Found:
        """Raises :class:`VlkdError` that names file, line and key."""
        ...

    def place(self, key: str) -> str:
        """File, line (counted from 1) and key, for a sentence."""
        ...
