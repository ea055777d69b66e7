"""Object tags in the files of Oscar and VinVL.

``*.label.tsv``       key ⇥ JSON ``[{"class": name, …}, …]``
``predictions*.tsv``  key ⇥ JSON ``{"objects": [{"class": name, …}], "image_h": …, "image_w": …}``
"""

from __future__ import annotations

import json
from pathlib import Path

from vlkd.data.oscar.tsv import TsvFile
from vlkd.errors import VlkdError


class TagFile:
    """The tags of pictures by key, in the file's order; a picture may have more or fewer tags than regions.

    Raises:
        VlkdError: there is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tsv = TsvFile(path)
        self.keys = tuple(self.tsv.first_column(row) for row in range(len(self.tsv)))
        self._row_of = {key: row for row, key in enumerate(self.keys)}

    def __contains__(self, key: str) -> bool:
        return key in self._row_of

    def line(self, key: str) -> int:
        """Where the picture stands, counted from 1."""
        return self._row_of[key] + 1

    def read(self, key: str) -> tuple[tuple[str, ...], tuple[int, int] | None]:
        """The picture's tags, and its width and height where the file has them.

        Raises:
            VlkdError: the key is not there or its row is broken.
        """
        if key not in self._row_of:
            raise VlkdError(f"'{self.path}' has no tags of picture '{key}': give the tags of the same pictures.")
        place = f"'{self.path}', line {self.line(key)}, key '{key}'"
        try:
            content = json.loads(self.tsv.row(self._row_of[key])[1])
            objects = content["objects"] if isinstance(content, dict) else content
            tags = tuple(str(item["class"]) for item in objects)
        except (ValueError, IndexError, KeyError, TypeError):
            raise VlkdError(f"{place}: expected a JSON list of objects with 'class' behind the key.") from None
        size = (content.get("image_w"), content.get("image_h")) if isinstance(content, dict) else (None, None)
        return tags, (int(size[0]), int(size[1])) if size[0] and size[1] else None
