"""How a file of texts names pictures: by their keys, by file names with suffix, or by the numbers at the end of their keys."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from vlkd.data.json_rows import first_few
from vlkd.data.tables import picture_key
from vlkd.data.text_files import short
from vlkd.errors import VlkdError
from vlkd.keys import normal_key

T = TypeVar("T")


class Naming:
    """Which picture each key of one file of texts means.

    Attributes:
        places: the file's key -> the picture's key; None where there is no such picture.
        direct: how many keys, or the names that stand for them, are pictures' keys as they are.

    Raises:
        VlkdError: two pictures' keys differ in their Unicode form alone.
    """

    def __init__(self, keys: Sequence[str], pictures: Iterable[str], names: Mapping[str, str] | None = None) -> None:
        """``names`` says which file's key each key stands for; without it a key stands for itself."""
        spelled = _spelled(pictures)
        self._named = {key: normal_key(names.get(key, "") if names else key) for key in keys}
        self.places = {key: spelled.get(name) for key, name in self._named.items()}
        self.direct = sum(place is not None for place in self.places.values())
        if not self.direct:
            numbers = _numbers(spelled.values())
            self.places = {
                key: numbers.get(name) or spelled.get(picture_key(name)) for key, name in self._named.items()
            }

    def renamed(self, texts: Mapping[str, T], path: Path | None) -> dict[str, T]:
        """The texts under their pictures' keys.

        Raises:
            VlkdError: a picture is not there, or two keys mean the same one; ``path`` is the file that is to be blamed.
        """
        missing = [key for key, place in self.places.items() if place is None]
        if missing:
            raise VlkdError(
                f"'{path}': no features for {len(missing)} of {len(self.places)} pictures with texts, the first "
                f"{short(self._named[missing[0]] or missing[0])}: extract them, or remove these texts."
            )
        twice = {place for place, count in Counter(self.places.values()).items() if count > 1}
        if twice:
            raise VlkdError(
                f"'{path}': texts of several image ids are about one picture: {first_few(twice, len(self.places))}; one id is one "
                "picture's."
            )
        return {place: texts[key] for key, place in self.places.items() if place is not None}


def _spelled(pictures: Iterable[str]) -> dict[str, str]:
    """Normal key -> the key that a picture has; also of keys with a picture file's suffix without it, where that is clear."""
    spelled: dict[str, str] = {}
    for key in pictures:
        if spelled.setdefault(normal_key(key), key) != key:
            raise VlkdError(
                f"Two pictures are called '{key}' and differ in their Unicode form alone: rename one of them."
            )
    bare = {key: picture_key(key) for key in spelled}
    counts = Counter(bare.values())
    return {bare[key]: picture for key, picture in spelled.items() if counts[bare[key]] == 1} | spelled


def _numbers(keys: Iterable[str]) -> dict[str, str]:
    """The number at the end of a key, without leading zeros -> the key, where no other key ends so."""
    found = [(str(int(match[0])), key) for key in set(keys) if (match := re.search(r"[0-9]+$", key))]
    counts = Counter(number for number, _ in found)
    return {number: key for number, key in found if counts[number] == 1}
