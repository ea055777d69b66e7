"""csrc's CUDA kernels compiled for a processor (emulation/gpu.h), and what their callers through ctypes share."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from made_once import made_once
from torch import Tensor

from vlkd_kernels import available_backends

_HERE = Path(__file__).parent
ELEMENTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8)  # csrc's enum Element
POINTER = ctypes.c_void_p


def library(op: str, where: str, factory: pytest.TempPathFactory) -> ctypes.CDLL | None:
    """The emulation of an op's kernels, or None where `where` is "gpu", for the GPU's operator; skips what cannot run."""
    if where == "gpu":
        if "cuda" not in available_backends(op, device="cuda", dtype=torch.bfloat16):
            pytest.skip("cuda does not run here")
        return None
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    include = Path(torch.__file__).parent / "include"
    # For this processor, so that products and sums are fused where it can, as nvcc does.
    flags = ["-std=c++20", "-O2", "-march=native", "-fno-strict-aliasing", "-shared", "-fPIC", f"-I{include}"]
    command = ["g++", *flags, str(_HERE / "emulation" / f"{op}.cpp"), "-o"]
    return ctypes.CDLL(str(made_once(factory, f"{op}.so", lambda built: subprocess.run([*command, built], check=True))))


def moved(x: Tensor, device: str) -> Tensor:
    """A tensor elsewhere, with the same strides."""
    if x.device.type == device:
        return x
    whole = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())
    return whole.to(device).as_strided(x.shape, x.stride(), x.storage_offset())


def address(x: Tensor | None) -> int | None:
    """Where a tensor's elements begin; null for none."""
    return None if x is None else x.data_ptr()
