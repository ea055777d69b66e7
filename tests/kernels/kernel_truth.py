"""The rule by which a backend's numbers are judged.

Truth is the op's `reference.loss`, differentiated by autograd in float64, on the very values that the backend was given.
The yardstick is the same function in the dtype of the inputs, as a user would write it: a backend's error may not exceed the
yardstick's by more than the slack of the table. The yardstick itself is trusted up to ten slacks only, so that a dtype in
which the plain form fails does not excuse everything.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable

import numpy
import pytest
import torch
from packaging.version import Version
from torch import Tensor

from vlkd_kernels import available_backends

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Error relative to the largest true entry.
SLACK = {
    torch.float64: 1e-12,  # about 5000 roundings of 2^-53, for the order of long sums
    torch.float32: 4e-6,  # about 64 roundings of 2^-24
    torch.bfloat16: 2**-8,  # one rounding, of a weight of a product or of the gradient itself
    torch.float16: 2**-10,  # two roundings of 2^-11
}
_TRUSTED = 10  # slacks

BACKENDS = ("reference", "triton", DEVICE)  # that may run on this device's tensors


def backends_here(op: str, dtype: torch.dtype = torch.float32) -> tuple[str, ...]:
    """The backends that can run an op in these tests."""
    names = available_backends(op, device=DEVICE, dtype=dtype)
    return tuple(name for name in names if name != "triton" or DEVICE == "cuda" or _interpreter_works())


def need(op: str, backend: str, dtype: torch.dtype = torch.float32) -> None:
    """Skip the test where a backend cannot run."""
    if backend not in backends_here(op, dtype):
        pytest.skip(f"{backend} does not run here")


def _interpreter_works() -> bool:
    """Triton 3.6's interpreter makes integers of arrays with one element, which numpy 2.4 forbids."""
    triton = Version(importlib.metadata.version("triton"))
    return triton >= Version("3.9") or Version(numpy.__version__) < Version("2.4")


def error(got: Tensor, truth: Tensor) -> float:
    """The largest difference, relative to the largest true entry (absolute where all of it is 0)."""
    if truth.numel() == 0:
        return 0.0
    size = truth.abs().max().item()
    return (got.double() - truth).abs().max().item() / (size or 1.0)


def assert_as_good(
    name: str, got: Tensor, truth: Tensor, plain: Tensor, dtype: torch.dtype, cancellation: float = 0.0
) -> None:
    """The rule above, for one tensor; `cancellation` is what the inputs themselves add to the slack."""
    assert got.shape == truth.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    assert got.isfinite().all(), f"{name} is not finite"
    slack = SLACK[dtype] + cancellation
    if (
        truth.numel() and got.dtype.is_floating_point
    ):  # what is smaller than the dtype's smallest number becomes 0 or that one
        numbers = torch.finfo(got.dtype)
        slack += numbers.smallest_normal * numbers.eps / (truth.abs().max().item() or 1.0)
    yardstick = error(plain, truth)
    allowed = slack + (min(yardstick, _TRUSTED * SLACK[dtype]) if yardstick == yardstick else 0.0)
    assert error(got, truth) <= allowed, f"{name}: error {error(got, truth):.2e}, allowed {allowed:.2e}"


def loss_and_gradients(
    call: Callable[..., Tensor], tensors: dict[str, Tensor], wanted: Iterable[str], grad_out: float
) -> dict[str, Tensor]:
    """The loss and the gradients of the wanted tensors for a given incoming gradient, by name."""
    leaves = {
        name: x.detach().clone().requires_grad_() if name in wanted else x.detach() for name, x in tensors.items()
    }
    loss = call(**leaves)
    loss.backward(torch.tensor(grad_out, dtype=loss.dtype, device=loss.device))
    gradients = {name: leaves[name].grad for name in wanted}
    for name, gradient in gradients.items():
        assert gradient is not None, f"no gradient for {name}"
        assert gradient.dtype == tensors[name].dtype
    return {"loss": loss.detach(), **{name: g for name, g in gradients.items() if g is not None}}
