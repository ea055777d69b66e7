"""Checkpoints that appear whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from vlkd.disk import sync
from vlkd.runs import permit_as_umask

_WHOLE = re.compile(r"checkpoint-\d+")
#: Where a checkpoint is written before it is renamed into place.
PARTIAL = ".partial"


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the last step in ``folder``; None without any."""
    return max((path for path in _entries(folder) if _WHOLE.fullmatch(path.name)), key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which it was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def publish(folder: Path, name: str) -> None:
    """Rename the finished ``folder/.partial/name`` to ``folder/name`` and delete the checkpoints before it."""
    whole = folder / name
    permit_as_umask(folder / PARTIAL / name)
    sync(folder / PARTIAL / name)
    os.replace(folder / PARTIAL / name, whole)
    for path in _entries(folder):
        if path != whole:
            shutil.rmtree(path)


def discard_partial(folder: Path) -> None:
    """Remove what an interrupted save left."""
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``name`` → ``prefix.name``."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries ``prefix.name``, as ``name``."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
