"""Which backend runs a call, and why not the others.

Every op can be run by `reference` (plain PyTorch, any device). `cpu` (C++) and `cuda` come from the compiled extension;
`triton` runs on NVIDIA GPUs, and on CPU tensors under Triton's interpreter (TRITON_INTERPRET=1), which is for tests.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import NamedTuple

import torch

from vlkd_kernels import extension

OPS = ("attention_mse", "distill_attention", "token_nce", "ring_queue")
BACKENDS = ("cuda", "cpu", "triton", "reference")
_PREFERENCE = {"cpu": ("cpu", "reference", "triton", "cuda")}  # on a CPU, Triton's interpreter is for tests alone
_MINIMUM_CAPABILITY = (8, 0)  # bfloat16 matrix instructions
WIDEST_HEAD = 256  # of Triton: a row of the gradient is held in registers


class BackendError(RuntimeError):
    """The named backend cannot run this call here; the message says why."""


class BackendStatus(NamedTuple):
    """Whether a backend can run an op on a device, and the reason."""

    backend: str
    available: bool
    reason: str


def explain_backend(
    op: str, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32, wide: bool = False
) -> list[BackendStatus]:
    """Every backend's status for an op, in the order of preference: `backend=None` runs the first available one.

    Args:
        op: "attention_mse", "distill_attention", "token_nce" or "ring_queue".
        device: where the tensors are; the GPU if there is one, else the CPU.
        dtype: what the op computes in.
        wide: whether a head of an attention op is wider than `WIDEST_HEAD`.
    """
    if op not in OPS:
        raise ValueError(f"explain_backend: op must be one of {', '.join(map(repr, OPS))}, got {op!r}.")
    kind = _default_device() if device is None else torch.device(device).type
    return [BackendStatus(name, *_status(op, name, kind, dtype, wide)) for name in _PREFERENCE.get(kind, BACKENDS)]


def available_backends(
    op: str = "attention_mse",
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    wide: bool = False,
) -> tuple[str, ...]:
    """The names of the backends that can run an op here, the preferred one first; arguments as in `explain_backend`."""
    statuses = explain_backend(op, device=device, dtype=dtype, wide=wide)
    return tuple(status.backend for status in statuses if status.available)


@torch.compiler.assume_constant_result
def choose(op: str, backend: str | None, device: str, dtype: torch.dtype, wide: bool = False) -> str:
    """The backend that runs a call.

    Args:
        op: one of `OPS`.
        backend: a name, which is run or refused, or None for the first available one.
        device: the device type of the tensors.
        dtype: what the op computes in.
        wide: whether a head of an attention op is wider than `WIDEST_HEAD`.

    Raises:
        ValueError: there is no backend of that name.
        BackendError: the named backend cannot run this call.
    """
    if backend is None:
        return next(name for name in _PREFERENCE.get(device, BACKENDS) if _status(op, name, device, dtype, wide)[0])
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend must be None or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}.")
    available, reason = _status(op, backend, device, dtype, wide)
    if not available:
        raise BackendError(f"{op}: backend {backend!r} cannot run this call: {reason}.")
    return backend


def _status(op: str, backend: str, device: str, dtype: torch.dtype, wide: bool) -> tuple[bool, str]:
    if backend == "reference":
        return True, "plain PyTorch, runs on every device"
    if backend == "triton":
        return _triton_status(op, device, dtype, wide)
    if (op, backend) == ("distill_attention", "cuda"):
        return False, "there is no CUDA C++ kernel for it"
    if device != backend:
        return False, f"it takes {backend} tensors, got {device} tensors"
    if extension.load() is None:
        return False, f"the compiled extension is not loaded: {extension.why_not()}"
    if not _has_kernel(op, backend):
        return False, f"the compiled extension holds no {backend} kernel for it"
    return True, "the compiled extension holds a kernel for it"


@functools.cache
def _has_kernel(op: str, backend: str) -> bool:
    """Whether the extension, which is loaded, registered a kernel."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(_SCHEMAS[op], backend.upper())


_SCHEMAS = {
    "attention_mse": "vlkd::attention_mse",
    "distill_attention": "vlkd::attention_mse",  # beside torch's own attention
    "token_nce": "vlkd::token_nce",
    "ring_queue": "vlkd::ring_enqueue_",
}


def _triton_status(op: str, device: str, dtype: torch.dtype, wide: bool) -> tuple[bool, str]:
    if op == "ring_queue":
        return False, "there is no Triton kernel for it"
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed; install it with `pip install triton`"
    if dtype == torch.float64:
        return False, "it computes in float16, bfloat16 or float32, got float64"
    if wide:
        return False, f"it takes head widths up to {WIDEST_HEAD}, got a wider one"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device == "cpu":
        if interpreted:
            return True, "runs under Triton's interpreter (TRITON_INTERPRET=1)"
        return False, "it takes cpu tensors only under Triton's interpreter; set TRITON_INTERPRET=1"
    if device != "cuda":
        return False, f"it takes cuda tensors, got {device} tensors"
    if torch.version.hip is not None:
        return False, "it is tested on NVIDIA GPUs only, and this torch is built for ROCm"
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    if capability is None or capability < _MINIMUM_CAPABILITY:
        return False, f"it needs an NVIDIA GPU of compute capability 8.0 or newer, got {capability}"
    return True, "compiles for this GPU"


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
