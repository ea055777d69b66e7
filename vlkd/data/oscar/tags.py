"""Object tags in the files of Oscar and VinVL.

``*.label.tsv``       key ⇥ JSON ``[{"class": name, …}, …]``
``predictions*.tsv``  key ⇥ JSON ``{"objects": [{"class": name, …}], "image_h": …, "image_w": …}``
classes               a text file of names, one a line, the number of a class being its line's from 0
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlkd.data.containers import require_text
from vlkd.data.oscar.encoded import brief, parse_json, share_problem, size_of
from vlkd.data.oscar.tsv import KeyedTsv, TsvFile
from vlkd.errors import VlkdError
from vlkd.keys import is_word, shown


class TagFile:
    """The tags of pictures by key, in the file's order; a picture may have more or fewer tags than regions.

    Attributes:
        path: of the file.
        keys: the pictures.
        problems: sentences about keys that cannot be used.
        indexed: whether a ``.lineidx`` says where rows are.

    Raises:
        VlkdError: there is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = KeyedTsv(TsvFile(path))
        self.keys, self.problems = self._rows.keys, self._rows.problems
        self.indexed = self._rows.tsv.indexed

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def place(self, key: str) -> str:
        """File, line (counted from 1) and key, for a sentence."""
        return self._rows.place(key)

    def read(self, key: str) -> tuple[tuple[str, ...], tuple[int, int] | None]:
        """The picture's tags, and its width and height where the file has them.

        Raises:
            VlkdError: the key is not there or its row is broken.
        """
        if key not in self._rows:
            raise VlkdError(f"'{self.path}' has no tags of picture '{shown(key)}': give the tags of the same pictures.")
        place, columns = self.place(key), self._rows.row(key)
        content = parse_json(columns[1], place) if len(columns) > 1 else None
        objects = content.get("objects") if isinstance(content, dict) else content
        if not isinstance(objects, list):
            raise VlkdError(f"{place}: expected a JSON list of objects with 'class' behind the key.")
        tags = tuple(class_of(item, f"{place}, object {number} (from 0)") for number, item in enumerate(objects))
        if not isinstance(content, dict) or not {"image_w", "image_h"} & content.keys():
            return tags, None
        return tags, size_of(content.get("image_w"), content.get("image_h"), place)


def class_of(item: Any, place: str) -> str:
    """The name of an object's class, once its score, where it has one, is one.

    Raises:
        VlkdError: there is no name, or the score is no number from 0 to 1.
    """
    if not isinstance(item, dict) or "class" not in item:
        raise VlkdError(f"{place}: expected a JSON list of objects with 'class' behind the key, but got {brief(item)}.")
    name = item["class"]
    if not is_word(name):
        raise VlkdError(f"{place}: 'class' is {brief(name)}, but a name is expected.")
    problem = share_problem(item["conf"]) if "conf" in item else None
    if problem:
        raise VlkdError(f"{place}: {problem}.")
    return name


def read_classes(path: Path) -> tuple[str, ...]:
    """The names in a file of classes; of synonyms with commas between them, as in objects_vocab.txt, the first counts.

    Raises:
        VlkdError: there is no such file, or a line is empty.
    """
    require_text(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise VlkdError(f"'{path}' is not in UTF-8 ({error.reason}): save it in UTF-8.") from None
    names = tuple(line.split(",")[0].strip() for line in lines)
    if "" in names:
        raise VlkdError(f"'{path}', line {names.index('') + 1}: no name, but one a line is expected.")
    return names
