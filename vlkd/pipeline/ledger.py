"""What an extraction was asked for and which pictures it has done, in files beside its store.

``STORE/pictures.json`` (:class:`Ledger`) goes with a finished store, so that pictures can be added to it.
``OUT/.regions/round.json`` (:class:`Round`) says what an unfinished extraction is about; it is over once the ledger has its
pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlkd.errors import VlkdError
from vlkd.regions.picture_folder import PictureFile
from vlkd.runs import write_atomically

LEDGER = "pictures.json"
ROUND = "round.json"

Stamp = list[int]
"""Size in bytes and time of the last change in nanoseconds: what distinguishes a picture from another of the same name."""


@dataclass(frozen=True)
class Ledger:
    """Attributes:
    settings: all that decides what a picture's regions are, by the name under which a difference is told.
    pictures: name of each file → its stamp.
    broken: name → why it has no regions.
    """

    settings: dict[str, Any]
    pictures: dict[str, Stamp] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, store: Path) -> Ledger | None:
        """That of a store; None where there is no store.

        Raises:
            VlkdError: something else is in its place.
        """
        if not store.exists():
            return None
        path = store / LEDGER
        if not path.is_file():
            raise VlkdError(
                f"'{store}' is not one that this version's `vlkd regions` made (no {LEDGER}): choose another folder, or delete "
                "that one."
            )
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        write_atomically(folder / LEDGER, json.dumps(asdict(self)) + "\n")

    def fingerprint(self) -> str:
        """Of the settings and of the pictures that have regions, in whatever order they came."""
        sound = {name: one for name, one in self.pictures.items() if name not in self.broken}
        content = [self.settings, sorted(sound.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def present(self, now: Mapping[str, Stamp]) -> Ledger:
        """Without the broken pictures that are not among ``now``."""
        broken = {name: reason for name, reason in self.broken.items() if name in now}
        pictures = {name: one for name, one in self.pictures.items() if name in broken or name not in self.broken}
        return Ledger(self.settings, pictures, broken)

    def and_then(self, done: Round, broken: Mapping[str, str]) -> Ledger:
        """With the pictures of a round that is done."""
        kept = {name: reason for name, reason in self.broken.items() if name not in done.pictures}
        names = sorted({*self.pictures, *done.pictures}, key=in_folders)
        stamps, reasons = {**self.pictures, **done.pictures}, {**kept, **broken}
        return Ledger(
            self.settings,
            {name: stamps[name] for name in names},
            {name: reasons[name] for name in names if name in reasons},
        )


@dataclass(frozen=True)
class Round:
    """Attributes:
    settings: as in :class:`Ledger`.
    pictures: those that are to be done: name → stamp.
    first_part: number of its first part; those before it are in the store already.
    pictures_a_part: how many files make a part.
    """

    settings: dict[str, Any]
    pictures: dict[str, Stamp]
    first_part: int
    pictures_a_part: int

    @classmethod
    def read(cls, notes: Path) -> Round | None:
        """The one that is going on; None if there is none."""
        path = notes / ROUND
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def write(self, notes: Path) -> None:
        write_atomically(notes / ROUND, json.dumps(asdict(self)) + "\n")

    def blocks(self, folder: Path) -> dict[int, list[PictureFile]]:
        """The files of each part, by its number."""
        files = [PictureFile(folder, name) for name in self.pictures]
        starts = range(0, len(files), self.pictures_a_part)
        return {
            self.first_part + number: files[start : start + self.pictures_a_part] for number, start in enumerate(starts)
        }


def in_folders(name: str) -> list[str]:
    """Sorts names as :func:`~vlkd.regions.picture_folder.find_pictures` does."""
    return name.split("/")


def stamp(file: PictureFile) -> Stamp:
    """Of a file. One that has just vanished has a stamp that no file has, and is found out when it is read."""
    try:
        stat = file.path.stat()
    except OSError:
        return [-1, -1]
    return [stat.st_size, stat.st_mtime_ns]


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first setting that differs, as "dtype = float16, but this one has float32"; empty where none does."""
    for name, value in wanted.items():
        if found.get(name) != value:
            return f"{name} = {found.get(name)}, but this one has {value}"
    return ""


def changed(before: Mapping[str, Stamp], now: Mapping[str, Stamp]) -> str:
    """The pictures whose files have changed, as "'a.png' and 3 more pictures"; empty where none has."""
    names = [name for name, one in now.items() if name in before and before[name] != one]
    more = f" and {len(names) - 1} more pictures" if len(names) > 1 else ""
    return f"'{names[0]}'{more}" if names else ""
