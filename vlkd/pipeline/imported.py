"""A run's data that `vlkd data import` or `vlkd regions` left in a folder."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from vlkd.errors import VlkdError
from vlkd.keys import normal_key
from vlkd.pipeline.prepared import Prepared
from vlkd.recipes import Recipe
from vlkd.regions import PairedRegions, Regions, read_picture
from vlkd.regions.photographs import printable
from vlkd.regions.picture_folder import PictureFile, find_pictures
from vlkd.training import StageData


def open_imported(recipe: Recipe, folder: Path, images: Path | None = None) -> Prepared:
    """The data in ``folder``; its pictures lie in ``images``, under the keys that the store has.

    Nothing about the pictures themselves is an error: the page says of each why it cannot show it.

    Raises:
        VlkdError: something of the data is missing or damaged.
    """
    return Prepared(StageData.open(folder, recipe), _Pictures(images) if images else lambda regions: "")


def check_images(images: Path, data: StageData) -> None:
    """Look into the folder of the data's pictures, before hours of training end in a page without them.

    Raises:
        VlkdError: there is no such folder, it holds no picture, two of the same key, or none of the data's.
    """
    keys, found = {normal_key(key) for key in data.store.keys}, find_pictures(images).files
    if keys.isdisjoint(file.key for file in found):
        raise VlkdError(
            f"'{images}' holds none of the {len(keys)} pictures of the data: there, a key is such as '{data.store.keys[0]}', in "
            f"the folder such as '{printable(found[0].key)}': give the folder that `vlkd regions --images` was given."
        )


class _Pictures:
    """The pixels of a picture by the key of its regions, or why there are none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def _files(self) -> dict[str, PictureFile] | str:
        try:
            return {file.key: file for file in find_pictures(self._folder).files}
        except VlkdError as error:
            return str(error)

    def __call__(self, regions: Regions | PairedRegions) -> np.ndarray | str:
        if isinstance(self._files, str):
            return self._files
        file = self._files.get(normal_key(regions.key))
        if file is None:
            return f"There is no picture '{regions.key}' in '{self._folder}'."
        try:
            pixels = read_picture(file.path)
        except VlkdError as error:
            return str(error)
        height, width = pixels.shape[:2]
        if (height, width) != (regions.height, regions.width):
            return (
                f"'{file.path}' has {width} x {height} pixels, but its boxes are of {regions.width} x {regions.height}."
            )
        return pixels
