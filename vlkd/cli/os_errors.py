"""What the operating system refuses, as a sentence for the user."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_ADVICE = {
    errno.ENOSPC: "free some space there, and give the same command again",
    errno.EDQUOT: "free some space there, and give the same command again",
    errno.EROFS: "choose a place that can be written",
    errno.EACCES: "ask for permission, or choose another path",
    errno.EPERM: "ask for permission, or choose another path",
    errno.ENOTDIR: "a file stands where a folder is needed, so choose another path",
    errno.EEXIST: "something else of this name is there already, so choose another path",
    errno.ENOTEMPTY: "something else of this name is there already, so choose another path",
    errno.EISDIR: "a folder stands where a file is needed, so give the path of a file",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "this machine has too many files open",
    errno.EIO: "the disk, or the network to it, failed",
    errno.ESTALE: "the network to this disk was interrupted, so give the same command again",
}


def sentence(error: OSError) -> str:
    """Which path, what happened, what to do."""
    path = error.filename2 or error.filename  # of two, the second is what the first was to become
    if error.errno is None or path is None:
        return f"{' '.join(str(error).split()) or type(error).__name__}."
    what = os.strerror(error.errno)
    advice = _ADVICE.get(error.errno)
    if error.errno == errno.EEXIST and Path(os.fsdecode(path)).is_file():
        advice = "a file stands where a folder is needed, so choose another path"
    return f"'{os.fsdecode(path)}': {what[:1].lower()}{what[1:]}{f': {advice}' if advice else ''}."
