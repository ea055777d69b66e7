"""Folders that appear whole or not at all, and libraries' writing errors as what they are: the disk's."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlkd.errors import VlkdError
from vlkd.runs import permit_as_umask

# As safetensors, tokenizers and pyarrow put the operating system's error number into their own sentences.
_NUMBER = re.compile(r"(?:os error|errno|code:) (\d+)", re.IGNORECASE)
_TORCH = ("inline_container", "PytorchStreamWriter", "iostream error")  # torch.save gives no number
_FULL = 1 << 20  # bytes; less space than this is none


@contextmanager
def blamed_on(path: Path | str) -> Iterator[None]:
    """A failed write inside is an ``OSError`` with a number that names ``path``, whatever the library that wrote made of it."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise _os_error(error.errno, path) from error
    except VlkdError:
        raise
    except Exception as error:  # safetensors, tokenizers and torch raise other types
        number = _number_of(str(error), Path(path))
        if number is None:
            raise
        raise _os_error(number, path) from error


@contextmanager
def whole_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """A folder to write into, which is ``folder`` once the block has ended well; after a failed block nothing is left.

    Args:
        folder: those around it are made.
        replace: take the place of what is there.

    Raises:
        OSError: it cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    with blamed_on(folder):
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        try:
            partial.mkdir(parents=True)
            yield partial
            permit_as_umask(partial)
            sync(partial)
            if replace:
                shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and error.filename == str(partial):
                raise _os_error(error.errno or errno.EIO, folder) from error
            raise


def sync(folder: Path) -> None:
    """Have the files of a folder on the disk before it is renamed, so that no power cut leaves a whole name on empty files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())


def _os_error(number: int, path: Path | str) -> OSError:
    return OSError(number, os.strerror(number), str(path))


def _number_of(sentence: str, path: Path) -> int | None:
    """The error number in a library's sentence, or the one that the sentence leaves out."""
    found = _NUMBER.search(sentence)
    if found is not None:
        return int(found.group(1))
    if not any(part in sentence for part in _TORCH):
        return None
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    return errno.ENOSPC if shutil.disk_usage(existing).free < _FULL else errno.EIO
