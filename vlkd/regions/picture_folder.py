"""A folder of one's own pictures: which files, under which keys, what is left out, and their pixels read ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from vlkd.errors import VlkdError
from vlkd.keys import normal_key
from vlkd.regions.photographs import printable, read_picture

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".pnm",
)  # fmt: skip
"""Of the files that are taken for pictures, in any case; which of them can be read shows when they are."""

_TOLD = 10  # examples in a message


@dataclass(frozen=True)
class PictureFile:
    """One file; ``name`` is its path in the folder with forward slashes."""

    folder: Path
    name: str

    @property
    def key(self) -> str:
        """The name without suffix; the whole name, as a message has it, where no store can hold it (:attr:`is_utf8`)."""
        return normal_key(self.name[: self.name.rindex(".")]) if self.is_utf8 else printable(self.name)

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def is_utf8(self) -> bool:
        """Only such a name can be a key."""
        return not any("\ud800" <= letter <= "\udfff" for letter in self.name)


@dataclass(frozen=True)
class PictureFolder:
    """What :func:`find_pictures` found.

    Attributes:
        folder: where.
        files: the pictures, sorted by folder and name.
        left_out: kind, such as ".txt" or "hidden" → names of what is not read.
    """

    folder: Path
    files: list[PictureFile]
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def told(self) -> str:
        """What is left out, in one line; empty where nothing is."""
        kinds = sorted(self.left_out.items(), key=lambda item: (-len(item[1]), item[0]))
        parts = [f"{len(names)} {kind} (such as '{printable(min(names))}')" for kind, names in kinds[:_TOLD]]
        if len(kinds) > _TOLD:
            parts.append(f"{sum(len(names) for _, names in kinds[_TOLD:])} others")
        return f"Left out of '{printable(self.folder)}': {', '.join(parts)}." if parts else ""


def find_pictures(folder: Path) -> PictureFolder:
    """All picture files in ``folder`` and its subfolders, also in linked ones; hidden ones are left out.

    Raises:
        VlkdError: there is no such folder, no picture in it, or several have the same key (all such keys are told, up to
            ten by name).
    """
    if not folder.is_dir():
        raise VlkdError(f"There is no folder '{printable(folder)}': give a folder of pictures.")
    left_out: dict[str, list[str]] = {}
    names = [name for name in _walk(folder, left_out) if _is_picture(name, left_out)]
    files = [PictureFile(folder, name) for name in sorted(names, key=lambda name: name.split("/"))]
    found = PictureFolder(folder, files, left_out)
    if not files:
        expected = f"files ending with {', '.join(SUFFIXES)} are expected"
        raise VlkdError(f"There is no picture in '{printable(folder)}': {expected}. {found.told()}".rstrip())
    _check_keys(found)
    return found


def read_ahead(files: Iterable[PictureFile], workers: int) -> Iterator[tuple[PictureFile, np.ndarray | VlkdError]]:
    """Pixels [H, W, 3] uint8 of the files, in their order, or why there are none; ``workers`` threads decode them."""
    waiting: deque[tuple[PictureFile, Future[np.ndarray | VlkdError]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for file in files:
            waiting.append((file, pool.submit(_read, file)))
            if len(waiting) > 2 * workers:
                first, read = waiting.popleft()
                yield first, read.result()
        while waiting:
            first, read = waiting.popleft()
            yield first, read.result()


def _read(file: PictureFile) -> np.ndarray | VlkdError:
    if not file.is_utf8:
        return VlkdError("Its name is not UTF-8, so it can be no key: rename the file.")
    try:
        return read_picture(file.path)
    except VlkdError as error:
        return error


def _walk(folder: Path, left_out: dict[str, list[str]]) -> Iterator[str]:
    """The names of all files that are not hidden; a link to a folder around itself is not followed."""
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        prefix, around = waiting.pop()
        try:
            place = os.stat(folder / prefix)
            entries = list(os.scandir(folder / prefix))
        except OSError:
            left_out.setdefault("folders that cannot be opened", []).append(prefix or ".")
            continue
        inside = around | {(place.st_dev, place.st_ino)}
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith("."):
                left_out.setdefault("hidden", []).append(name)
            elif entry.is_file():
                yield name
            elif not entry.is_dir():
                kind = "links that lead nowhere" if entry.is_symlink() else "that are no files"
                left_out.setdefault(kind, []).append(name)
            elif entry.is_symlink() and _identity(entry) in inside:
                left_out.setdefault("links to a folder that they are in", []).append(name)
            else:
                waiting.append((f"{name}/", inside))


def _identity(entry: os.DirEntry[str]) -> tuple[int, int]:
    stat = entry.stat()
    return stat.st_dev, stat.st_ino


def _is_picture(name: str, left_out: dict[str, list[str]]) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in SUFFIXES:
        return True
    left_out.setdefault(printable(suffix) or "without suffix", []).append(name)
    return False


def _check_keys(found: PictureFolder) -> None:
    names: dict[str, list[str]] = {}
    for file in found.files:
        if file.is_utf8:
            names.setdefault(file.key, []).append(f"'{file.name}'")
    twice = [(key, of) for key, of in names.items() if len(of) > 1]
    if not twice:
        return
    told = "; ".join(f"{' and '.join(of)} would both have the key '{key}'" for key, of in twice[:_TOLD])
    more = f"; and {len(twice) - _TOLD} more keys" if len(twice) > _TOLD else ""
    raise VlkdError(f"'{printable(found.folder)}': {told}{more}: rename or remove all but one of each.")
