"""One process at a time writes a folder.

The lock is the operating system's (``flock``) on a file in the folder, so that it ends with its process, however that ends, and
nobody ever has to delete one. The file says who holds it, and goes when the holder is done. Where there is no such lock (Windows,
some network file systems) work goes on without one.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlkd.errors import VlkdError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: The file that is locked.
LOCK = ".lock"
_LACKING = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}

_logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path | str) -> Iterator[None]:
    """Nobody else who asks may write ``folder`` meanwhile. It is made if it is not there, and goes again if it stays empty.

    This is also the moment in which a folder that cannot be written is noticed, before any work.

    Raises:
        VlkdError: another process is at work there.
        OSError: it cannot be made or written.
    """
    folder = Path(folder)
    path = folder / LOCK
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _take(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # still locked: nobody takes a file that is about to go
            os.close(handle)
    finally:
        with suppress(OSError):  # not empty: it stays, and so do those around it
            for place in made:
                place.rmdir()


def _take(path: Path) -> int:
    """An open and locked file at ``path`` that says whose it is."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle, path)
            if _is_at(handle, path):
                _sign(handle, path)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder was done, and took it away, between our two calls


def _sign(handle: int, path: Path) -> None:
    try:
        os.ftruncate(handle, 0)
        os.write(handle, _ourselves().encode())
    except OSError as error:
        path.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def _lock(handle: int, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 4096, 0).decode(errors="replace") or "another process"
        raise VlkdError(
            f"'{path.parent}' is being written by {holder}: wait until that has ended, end it, or choose another folder."
        ) from None
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        _logger.warning("'%s' lies on a file system without locks: start one command at a time there.", path.parent)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _ourselves() -> str:
    command = shlex.join([Path(sys.argv[0]).name or "python", *sys.argv[1:]])
    return f"process {os.getpid()} on {platform.node()} (`{command[:200]}`)"
