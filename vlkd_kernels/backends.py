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
    op: str,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    keys: int = 0,
    widths: tuple[int, ...] = (),
) -> list[BackendStatus]:
    """Every backend's status for an op, in the order of preference: `backend=None` runs the first available one.

    Args:
        op: "attention_mse", "distill_attention", "token_nce" or "ring_queue".
        device: where the tensors are; the GPU if there is one, else the CPU.
        dtype: what the op computes in.
        keys: of an attention op, how many keys a query sees at most.
        widths: of an attention op, the widths of its heads, the student's first and the teacher's second.
    """
    if op not in OPS:
        raise ValueError(f"explain_backend: op must be one of {', '.join(map(repr, OPS))}, got {op!r}.")
    kind = _default_device() if device is None else torch.device(device).type
    return [BackendStatus(name, *_status(op, name, kind, dtype, keys, widths)) for name in _preference(kind)]


def available_backends(
    op: str = "attention_mse",
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    keys: int = 0,
    widths: tuple[int, ...] = (),
) -> tuple[str, ...]:
    """The names of the backends that can run an op here, the preferred one first; arguments as in `explain_backend`."""
    statuses = explain_backend(op, device=device, dtype=dtype, keys=keys, widths=widths)
    return tuple(status.backend for status in statuses if status.available)


def size_class(size: int) -> int:
    """The least of 32, 64, 128 and 256 that a size does not exceed, else 512: all that a choice depends on.

    An ordinary number even where torch.compile traces the size as a symbol.
    """
    for limit in (32, 64, 128, 256):
        if size <= limit:
            return limit
    return 512


@torch.compiler.assume_constant_result
def choose(
    op: str, backend: str | None, device: str, dtype: torch.dtype, keys: int = 0, widths: tuple[int, ...] = ()
) -> str:
    """The backend that runs a call.

    Args:
        op: one of `OPS`.
        backend: a name, which is run or refused, or None for the first available one.
        device: the device type of the tensors.
        dtype: what the op computes in.
        keys, widths: as in `explain_backend`, each through `size_class`.

    Raises:
        ValueError: there is no backend of that name.
        BackendError: the named backend cannot run this call.
    """
    if backend is None:
        return next(name for name in _preference(device) if _status(op, name, device, dtype, keys, widths)[0])
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend must be None or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}.")
    available, reason = _status(op, backend, device, dtype, keys, widths)
    if not available:
        raise BackendError(f"{op}: backend {backend!r} cannot run this call: {reason}.")
    return backend


def _preference(device: str) -> tuple[str, ...]:
    """On a CPU, Triton's interpreter is for tests alone. On a GPU, Triton comes first until CUDA C++ has been measured."""
    return ("cpu", "reference", "triton", "cuda") if device == "cpu" else ("triton", "cuda", "cpu", "reference")


def _status(
    op: str, backend: str, device: str, dtype: torch.dtype, keys: int, widths: tuple[int, ...]
) -> tuple[bool, str]:
    if backend == "reference":
        return True, "plain PyTorch, runs on every device"
    if backend == "triton":
        return _triton_status(op, device, dtype, widths)
    if (op, backend) == ("distill_attention", "cuda"):
        return False, "there is no CUDA C++ kernel for it"
    if device != backend:
        return False, f"it takes {backend} tensors, got {device} tensors"
    if device == "cuda" and not torch.cuda.is_available():
        return False, "torch finds no GPU"
    if extension.load() is None:
        return False, f"the compiled extension is not loaded: {extension.why_not()}"
    if not _has_kernel(op, backend):
        return False, f"the compiled extension holds no {backend} kernel for it"
    if backend == "cuda" and (refusal := _architecture_refusal(torch.cuda.get_device_capability())):
        return False, refusal
    if backend == "cuda" and op in ("attention_mse", "token_nce") and dtype not in (torch.float16, torch.bfloat16):
        return False, f"it computes in float16 or bfloat16, got {str(dtype).removeprefix('torch.')}"
    refusal = _cuda_refusal(keys, widths) if (op, backend) == ("attention_mse", "cuda") else None
    return refusal is None, refusal or "the compiled extension holds a kernel for it"


@functools.cache
def _architecture_refusal(capability: tuple[int, int]) -> str | None:
    """Why a GPU cannot run what the extension was compiled for; None if it can."""
    architectures = extension.build_info()["cuda_architectures"]
    if extension.runs_on(architectures, capability) is not None:
        return None
    return "the extension is compiled for {}, this GPU is of compute capability {}.{}; install vlkd again here".format(
        architectures, *capability
    )


def _cuda_refusal(keys: int, widths: tuple[int, ...]) -> str | None:
    """The sizes that the CUDA kernel of attention_mse (csrc/attention_mse/head.cuh) does not take."""
    needed = _shared_bytes(keys, *(widths or (0, 0)))
    if needed is None:
        return "it takes up to 128 keys and head widths up to 128, or 256 keys and a student's head width up to 64"
    limit = torch.cuda.get_device_properties().shared_memory_per_block_optin
    if needed > limit:
        return f"it needs {needed} bytes of shared memory for heads of this size, and this GPU has {limit} for a block"
    return None


@functools.cache
def _shared_bytes(keys: int, width: int, width_t: int) -> int | None:
    module = extension.load()
    return None if module is None else module.attention_mse_shared_bytes(keys, width, width_t)


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


def _triton_status(op: str, device: str, dtype: torch.dtype, widths: tuple[int, ...]) -> tuple[bool, str]:
    if op == "ring_queue":
        return False, "there is no Triton kernel for it"
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed; install it with `pip install triton`"
    if dtype == torch.float64:
        return False, "it computes in float16, bfloat16 or float32, got float64"
    if any(width > WIDEST_HEAD for width in widths):
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
