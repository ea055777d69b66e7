"""A detector's weights from a file of one's own: tensors by name, whatever the file is called, and nothing executed."""

from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlkd.errors import VlkdError
from vlkd.regions.photographs import printable

_SAVE = "save the model's state_dict() alone, best as .safetensors"
_INSIDE = ("model", "state_dict", "model_state_dict")  # where training scripts put the tensors, beside other things
_PARALLEL = "module."  # what DistributedDataParallel puts before each name
# What torch.load meets damaged files with: its unpickler trusts what it reads.
_DAMAGED = (
    pickle.PickleError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError, OSError, AssertionError,
    ArithmeticError, ImportError, MemoryError,
)  # fmt: skip


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a file of safetensors or of torch.save; its first bytes say which.

    A checkpoint of a training script may have them under "model" or "state_dict", and "module." before every name.

    Raises:
        VlkdError: there is no such file, it is damaged or no file of weights, or it holds something other than dense tensors.
    """
    if not path.is_file():
        raise VlkdError(f"There are no detector weights '{path}': give a .safetensors or .pth file, or 'random'.")
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as error:
        raise VlkdError(f"The weights '{path}' cannot be read ({error.strerror}): check its permissions.") from None
    other = _something_else(start)
    if other:
        raise VlkdError(f"'{path}' holds no weights: {other}.")
    content = _safetensors(path) if start[8:9] == b"{" else _torchs(path)
    return _tensors(path, content)


def _something_else(start: bytes) -> str:
    """What a file that begins like this is instead of weights, and what to do; empty where it may be weights."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "it is empty, so copy or download it again"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, so fetch the file itself with `git lfs pull`"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, so take the link of the file itself and download it again"
    if text.startswith((b"{", b"[")):
        return "it is JSON, so give the file of the tensors"
    return ""


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, *_DAMAGED) as error:
        raise VlkdError(f"The weights '{path}' are damaged ({_first_line(error)}): copy the file again.") from None


def _torchs(path: Path) -> Any:
    try:
        # Namespace: a script's options, beside the tensors. Opened here, for torch goes by the suffix of a path.
        with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file:
            return torch.load(file, weights_only=True, map_location="cpu")
    except _DAMAGED as error:
        # torch's own sentence advises to run what is in the file.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise VlkdError(
                f"The weights '{path}' hold more than tensors, which is not executed ({found[1]}): {_SAVE}."
            ) from None
        raise VlkdError(
            f"'{path}' is no file of safetensors or of torch.save, or a damaged one: copy it again, or {_SAVE}."
        ) from None


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    if isinstance(content, dict):
        content = next((content[name] for name in _INSIDE if isinstance(content.get(name), dict)), content)
    if not isinstance(content, dict) or not content:
        raise VlkdError(f"The weights '{path}' hold no tensors by name, but a {type(content).__name__}: {_SAVE}.")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise VlkdError(
                f"The weights '{path}' hold something else ({type(tensor).__name__}) under {printable(repr(name))}, but tensors by name are "
                f"expected: {_SAVE}."
            )
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_complex() or tensor.is_quantized:
            raise VlkdError(
                f"The weights '{path}': {name} is sparse, complex, quantised or without numbers, but dense real ones are expected."
            )
    if all(name.startswith(_PARALLEL) for name in content):
        return {name.removeprefix(_PARALLEL): tensor for name, tensor in content.items()}
    return content


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
