"""Which pictures an extraction is about now: all of a folder, those that came to it later, or what a kill left over."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlkd.data.store import part_name, remove_strays
from vlkd.errors import VlkdError
from vlkd.pipeline.ledger import Ledger, Round, Stamp, changed, difference
from vlkd.regions.picture_folder import PictureFile, PictureFolder


@dataclass(frozen=True)
class Places:
    """Where everything lies in ``out``."""

    out: Path

    @property
    def store(self) -> Path:
        return self.out / "store"

    @property
    def parts(self) -> Path:
        return self.out / ".store.unfinished"

    @property
    def notes(self) -> Path:
        return self.out / ".regions"

    def broken(self, part: int) -> Path:
        return self.notes / f"broken-{part:05d}.json"

    def has(self, part: int) -> bool:
        """Whether a part is written; when a store is extended, its parts move there one by one."""
        return any((folder / part_name(part)).exists() for folder in (self.parts, self.store))

    def forget(self) -> None:
        """After the round."""
        for folder in (self.parts, self.notes):
            shutil.rmtree(folder, ignore_errors=True)  # another process may be at it too


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Whatever goes wrong with the disk inside names a path; Arrow's errors do not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(out)) from error


def take_up(
    places: Places,
    ledger: Ledger | None,
    settings: dict[str, Any],
    found: PictureFolder,
    now: dict[str, Stamp],
    pictures_a_part: int,
) -> Round | None:
    """The round that is going on, or a new one; None if there is nothing to do. Processes may do so at the same time."""
    if ledger is not None:
        differs = difference(ledger.settings, settings)
        if differs:
            raise VlkdError(
                f"'{places.store}' holds regions made with {differs}: choose another folder, or delete that one."
            )
    round_ = Round.read(places.notes)
    if round_ is not None and ledger is not None and round_.pictures.items() <= ledger.pictures.items():
        places.forget()  # it was killed after its end
        round_ = None
    if round_ is None:
        round_ = _begin(places, ledger, settings, found, now, pictures_a_part)
    if round_ is None:
        return None
    differs = difference(round_.settings, settings)
    if differs:
        raise VlkdError(
            f"'{places.out}' holds an unfinished extraction with {differs}: finish that one, choose another folder, or delete "
            f"'{places.parts}' and '{places.notes}'."
        )
    other = changed(round_.pictures, now)
    if other:
        raise VlkdError(
            f"Files in '{found.folder}' have changed since '{places.out}' was begun: {other}: choose another folder, or delete "
            f"'{places.parts}' and '{places.notes}'."
        )
    return round_


def _begin(
    places: Places,
    ledger: Ledger | None,
    settings: dict[str, Any],
    found: PictureFolder,
    now: dict[str, Stamp],
    pictures_a_part: int,
) -> Round | None:
    """Note what is to be done; None if all is."""
    before = ledger or Ledger(settings)
    sound = {name: one for name, one in before.pictures.items() if name not in before.broken}
    other = changed(sound, now)
    if other:
        raise VlkdError(
            f"Files in '{found.folder}' have changed since their regions were made: {other}: choose another folder, or delete "
            f"'{places.store}' to make them anew."
        )
    todo = {name: one for name, one in now.items() if before.pictures.get(name) != one}
    if not todo:
        return None
    owners = {PictureFile(found.folder, name).key: name for name in sound if name not in todo}
    for name in todo:
        key = PictureFile(found.folder, name).key
        if key in owners:
            raise VlkdError(
                f"'{name}' would have the key '{key}', which '{places.store}' has of '{owners[key]}': rename it, or choose "
                "another folder."
            )
    first = 0 if ledger is None else remove_strays(places.store)
    shutil.rmtree(places.parts, ignore_errors=True)  # parts without notes may be of anything
    places.notes.mkdir(parents=True, exist_ok=True)
    Round(settings, todo, first, pictures_a_part).write(places.notes)
    return Round.read(places.notes)
