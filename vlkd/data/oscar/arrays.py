"""Features in files of arrays, key -> [n, D + 6]: ``.npz``, ``.safetensors``, and PyTorch's ``.pt`` and ``.pth``.

None of them runs code: pickled objects are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlkd.data.oscar.encoded import to_float32
from vlkd.data.oscar.found import Found
from vlkd.data.oscar.six_numbers import check_geometry, ends_with_geometry
from vlkd.errors import VlkdError
from vlkd.keys import is_word, normal_key, shown

_LONGEST_REASON = 120  # characters
SUFFIXES = (".pt", ".pth", ".npz", ".safetensors")


class ArrayFile:
    """A :class:`~vlkd.data.oscar.found.FeatureFile` of arrays by key."""

    indexed: bool | None = None
    numbered: bool = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        load = {".npz": _numpy, ".safetensors": _safetensors}.get(path.suffix.lower(), _torch)
        names, self._get = load(path)
        self._name_of: dict[str, Any] = {}
        for name in names:
            self._add(name)
        self.keys = tuple(self._name_of)

    def __contains__(self, key: str) -> bool:
        return key in self._name_of

    def place(self, key: str) -> str:
        return f"'{self.path}', key '{shown(key)}'"

    def read(self, key: str) -> Found:
        place = self.place(key)
        features = to_float32(_rows(self._get(self._name_of[key]), place), place)
        if not ends_with_geometry(features) and ends_with_geometry(features.T):
            raise VlkdError(f"{place}: {list(features.shape)} is [D + 6, n], but [n, D + 6] is expected: transpose it.")
        check_geometry(features, place)
        return Found(features)

    def _add(self, name: Any) -> None:
        """Take a key up, or say why not."""
        if not isinstance(name, (str, int)) or isinstance(name, bool) or not is_word(str(name)):
            self.problems.append(f"'{self.path}': the key {name!r} is no text and no number.")
            return
        key = normal_key(str(name).strip())
        if key in self._name_of:
            self.problems.append(f"'{self.path}': the keys {self._name_of[key]!r} and {name!r} are the same: keep one.")
            return
        self._name_of[key] = name


Loaded = tuple[list[Any], Callable[[Any], Any]]


def _torch(path: Path) -> Loaded:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a broken archive, or an old one, makes torch raise
        content = _without_mmap(path, error)
    if not isinstance(content, Mapping) or not content:
        raise VlkdError(f"'{path}' holds {_kind(content)}, but a dict of key -> [n, D + 6] is expected.")
    return list(content), content.__getitem__


def _without_mmap(path: Path, first: Exception) -> Any:
    """The same of a file of torch before 1.6, which cannot be mapped."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise VlkdError(
            f"'{path}' holds no tensors that can be loaded without running code ({_reason(first)})."
        ) from None


def _numpy(path: Path) -> Loaded:
    try:
        archive = np.load(path, allow_pickle=False)
    except Exception as error:  # whatever a broken archive makes zip and NumPy raise
        raise VlkdError(f"'{path}' is no .npz of arrays ({_reason(error)}).") from None
    if not isinstance(archive, np.lib.npyio.NpzFile) or not archive.files:
        raise VlkdError(f"'{path}' holds {_kind(archive)}, but arrays of key -> [n, D + 6] are expected.")

    def get(name: str) -> Any:
        try:
            return archive[name]
        except Exception as error:  # the same
            raise VlkdError(f"'{path}', key '{shown(name)}': no array that can be read ({_reason(error)}).") from None

    return list(archive.files), get


def _safetensors(path: Path) -> Loaded:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise VlkdError(f"'{path}' is no .safetensors file ({_reason(error)}).") from None
    return sorted(file.keys()), file.get_tensor


def _rows(value: Any, place: str) -> np.ndarray:
    """A tensor or an array as [n, D + 6] of a floating type."""
    if not isinstance(value, np.ndarray):
        value = _of_tensor(value)
    if not isinstance(value, np.ndarray):
        raise VlkdError(f"{place}: {_kind(value)} came, but one tensor [n, D + 6] is expected.")
    if value.ndim == 3 and value.shape[0] == 1:
        raise VlkdError(
            f"{place}: {list(value.shape)} has a first dimension of 1, but [n, D + 6] is expected: leave it out."
        )
    if value.ndim != 2 or not value.size:
        raise VlkdError(f"{place}: {list(value.shape)} came, but [n, D + 6] with n of at least 1 is expected.")
    if value.dtype.kind != "f":
        raise VlkdError(f"{place}: numbers of {value.dtype} came, but floating-point numbers are expected.")
    return value


def _of_tensor(value: Any) -> Any:
    """A plain tensor as an array; whatever else as it is."""
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
        return value
    value = value.detach()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _reason(error: Exception) -> str:
    """What a decoder says, cut to a part of a sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"


def _kind(value: Any) -> str:
    """What something is, for a sentence."""
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(repr(name) for name in list(value)[:3]) or 'nothing'}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + (f" of {list(shape)}" if shape is not None else "")
