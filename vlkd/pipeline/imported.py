"""A run's data that `vlkd data import` or `vlkd regions` left in a folder."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from vlkd.pipeline.prepared import Prepared
from vlkd.recipes import Recipe
from vlkd.regions import PairedRegions, Regions, read_picture
from vlkd.regions.picture_folder import PictureFile, find_pictures
from vlkd.training import StageData


def open_imported(recipe: Recipe, folder: Path, images: Path | None = None) -> Prepared:
    """The data in ``folder``; its pictures lie in ``images``, under the keys that the store has.

    Raises:
        VlkdError: something is missing or damaged.
    """
    return Prepared(StageData.open(folder, recipe), _Pictures(images) if images else lambda regions: None)


class _Pictures:
    """The pixels of a picture by the key of its regions, where the folder has it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def _files(self) -> dict[str, PictureFile]:
        return {file.key: file for file in find_pictures(self._folder)}

    def __call__(self, regions: Regions | PairedRegions) -> np.ndarray | None:
        file = self._files.get(regions.key)
        pixels = None if file is None else read_picture(file.path)
        fits = pixels is not None and pixels.shape[:2] == (regions.height, regions.width)
        return pixels if fits else None
