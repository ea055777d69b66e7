"""A folder of one's own pictures: which files, under which keys, and their pixels read ahead."""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlkd.errors import VlkdError
from vlkd.keys import normal_key
from vlkd.regions.photographs import read_picture

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class PictureFile:
    """One file; ``name`` is its path in the folder with forward slashes, ``key`` the same without suffix."""

    folder: Path
    name: str

    @property
    def key(self) -> str:
        return normal_key(self.name[: self.name.rindex(".")])

    @property
    def path(self) -> Path:
        return self.folder / self.name


def find_pictures(folder: Path) -> list[PictureFile]:
    """All picture files in ``folder`` and its subfolders, sorted; hidden ones are left out.

    Raises:
        VlkdError: there is no such folder, no picture in it, or two have the same key.
    """
    if not folder.is_dir():
        raise VlkdError(f"There is no folder '{folder}': give a folder of pictures.")
    inside = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    hidden = {path for path in inside if any(part.startswith(".") for part in path.parts)}
    files = [
        PictureFile(folder, path.as_posix()) for path in inside if path not in hidden and (folder / path).is_file()
    ]
    if not files:
        raise VlkdError(f"There is no picture in '{folder}': files ending with {', '.join(SUFFIXES)} are expected.")
    names: dict[str, str] = {}
    for file in files:
        other = names.setdefault(file.key, file.name)
        if other != file.name:
            raise VlkdError(
                f"'{folder}': '{other}' and '{file.name}' would both have the key '{file.key}': rename or remove one."
            )
    return files


def read_ahead(files: Iterable[PictureFile], workers: int) -> Iterator[tuple[PictureFile, np.ndarray | VlkdError]]:
    """Pixels [H, W, 3] uint8 of the files, in their order, or why there are none; ``workers`` threads decode them."""
    waiting: deque[tuple[PictureFile, Future[np.ndarray | VlkdError]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for file in files:
            waiting.append((file, pool.submit(_read, file.path)))
            if len(waiting) > 2 * workers:
                first, read = waiting.popleft()
                yield first, read.result()
        while waiting:
            first, read = waiting.popleft()
            yield first, read.result()


def _read(path: Path) -> np.ndarray | VlkdError:
    try:
        return read_picture(path)
    except VlkdError as error:
        return error
    except (EOFError, struct.error, zlib.error) as error:  # what Pillow lets through of damaged files
        return VlkdError(f"The file '{path}' cannot be read as a picture ({error}): give a whole PNG or JPEG file.")
