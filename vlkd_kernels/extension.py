"""The compiled extension: loaded when first asked for; where that fails the library goes on, and this module knows why.

`setup.py` leaves `_build.json` beside the library: the torch it was built against, why CUDA or all of it was left
out, and the registers and memory of every CUDA kernel. Loading the library registers the operators `torch.ops.vlkd.*`.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

_RECORD = Path(__file__).with_name("_build.json")
_REBUILD = "install vlkd again with `pip install --no-build-isolation .`, where a C++ compiler and torch are at hand"


def load() -> ModuleType | None:
    """The extension module, or None if it cannot be used (see `why_not`)."""
    return _load()[0]


def why_not() -> str | None:
    """Why the extension cannot be used and what to do about it, or None if it is loaded."""
    return _load()[1]


def build_info() -> dict[str, Any]:
    """How the extension was built.

    Returns:
        A dict with "loaded" and "why_not" always; from the build "torch", "without_cuda" (why CUDA was left out) and
        "kernels" (a list with registers, stack, shared and local memory of each CUDA kernel on each architecture, or
        why they are not known); from the loaded library "instruction_set" (what the C++ kernels compute with on this
        processor; `ATEN_CPU_CAPABILITY` and `ONEDNN_MAX_CPU_ISA` limit it), "compiler", "cxx_flags", "cxx_standard", "openmp", "cuda",
        "cuda_version", "cuda_architectures" and "nvcc_flags".
    """
    module, reason = _load()
    compiled = {"instruction_set": module.instruction_set(), **module.build_info()} if module is not None else {}
    return {"loaded": module is not None, "why_not": reason, **compiled, **_record()}


def runs_on(architectures: str, capability: tuple[int, int]) -> Literal["machine code", "PTX"] | None:
    """How a GPU runs what was compiled for `architectures` (as in TORCH_CUDA_ARCH_LIST), or None: it cannot.

    Machine code runs on the same major version from its minor version on, and that of "9.0a" on 9.0 alone. PTX is translated by
    every GPU that is no older. A list of names, such as "Hopper", is taken to mean the GPU.
    """
    forms = re.findall(r"(\d+)\.(\d+)([af]?)(\+PTX)?", architectures)
    if not forms:
        return "machine code"
    for major, minor, only, _ in forms:
        compiled = int(major), int(minor)
        if compiled == capability or (not only and compiled[0] == capability[0] and compiled[1] <= capability[1]):
            return "machine code"
    has_ptx = any(ptx and not only and (int(major), int(minor)) <= capability for major, minor, only, ptx in forms)
    return "PTX" if has_ptx else None


@functools.cache
def _load() -> tuple[ModuleType | None, str | None]:
    reason = _refused(_record())
    if reason is not None:
        return None, reason
    try:
        module = importlib.import_module("vlkd_kernels._C")
    except ModuleNotFoundError as error:
        return None, f"it is not built ({error}); {_REBUILD}"
    except ImportError as error:
        return None, f"it is built, but importing it failed ({error}); {_REBUILD}"
    for op in ("attention_mse", "token_nce", "ring_queue"):
        importlib.import_module(f"vlkd_kernels.{op}.native").register_fake()
    return module, None


def _refused(record: dict[str, Any]) -> str | None:
    """Why the library is not even tried."""
    if os.environ.get("VLKD_DISABLE_EXTENSION", "0") not in ("", "0"):
        return "it is switched off by VLKD_DISABLE_EXTENSION; unset that variable"
    if "error" in record:
        return f"it was not built: {record['error']}; {_REBUILD}"
    built = record.get("torch")
    if built is not None and _release(built) != _release(torch.__version__):
        return f"it was built against torch {built}, but this is torch {torch.__version__}; {_REBUILD}"
    return None


def _record() -> dict[str, Any]:
    return json.loads(_RECORD.read_text()) if _RECORD.exists() else {}


def _release(version: str) -> list[str]:
    """Major and minor: what torch's C++ interface may change between."""
    return version.split("+")[0].split(".")[:2]
