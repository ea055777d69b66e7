"""Argument checks of the public ops: done once, on the host, without asking the device for a value.

Every message says what was expected, what arrived and, where it is not plain, what to do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def check_float_tensors(op: str, tensors: Mapping[str, Tensor], dims: int | None = None) -> None:
    """Every tensor is a floating-point tensor, with `dims` dimensions if given, and all lie on one device."""
    first_name, first = next(iter(tensors.items()))
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(x).__name__}.")
        if not x.is_floating_point():
            raise TypeError(f"{op}: {name} must be a floating-point tensor, got {_name(x.dtype)}.")
        if x.dtype.itemsize < 2:
            raise TypeError(f"{op}: {name} must be float16, bfloat16, float32 or float64, got {_name(x.dtype)}.")
        if dims is not None and x.ndim != dims:
            raise ValueError(f"{op}: {name} must have {dims} dimensions, got shape {shape_of(x)}.")
        check_device(op, name, x, first_name, first)


def check_same_dtype(op: str, name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Two tensors of one model have one dtype."""
    if x.dtype != other.dtype:
        raise TypeError(
            f"{op}: {name} and {other_name} must have the same dtype, got {_name(x.dtype)} and {_name(other.dtype)}."
        )


def check_device(op: str, name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """A tensor lies where the first one does."""
    if x.device != other.device:
        raise ValueError(f"{op}: {name} must be on the device of {other_name}, {other.device}, got {x.device}.")


def check_shape(op: str, name: str, x: Tensor, shape: Sequence[int], meaning: str) -> None:
    """A tensor has exactly this shape; `meaning` spells it in the letters of the op's docstring."""
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must have shape {meaning} = {list(shape)}, got {shape_of(x)}.")


def check_dtype(op: str, name: str, x: Tensor, dtype: torch.dtype) -> None:
    """A mask is bool, ids are int64; nothing is converted silently."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(x).__name__}.")
    if x.dtype != dtype:
        raise TypeError(f"{op}: {name} must be {_name(dtype)}, got {_name(x.dtype)}{_way_to(dtype, x, name)}.")


def _way_to(dtype: torch.dtype, x: Tensor, name: str) -> str:
    """What to pass in place of a tensor of another dtype."""
    if dtype != torch.bool:
        return "" if x.is_floating_point() else f"; pass {name}.long()"
    if x.is_floating_point():
        return f"; True marks what may be used: pass {name} == 0 for a mask that is added to scores, 0 or -inf"
    return f"; True marks what may be used: pass {name} != 0 if 1 does"


def check_choice(op: str, name: str, value: str, choices: Sequence[str]) -> None:
    """An option is one of its words."""
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_reduction(op: str, reduction: str) -> None:
    """The loss and its gradient come from one pass, so only scalars are offered."""
    if reduction == "none":
        instead = "return_losses=True for every token's value" if op == "token_nce" else "one call for each part"
        raise ValueError(
            f"{op}: reduction 'none' is not offered, because the gradient is computed with the loss; "
            f"use 'sum' with return_count=True, or {instead}."
        )
    check_choice(op, "reduction", reduction, ("mean", "sum"))


def check_positive(op: str, name: str, value: float) -> None:
    """A number that is finite and greater than 0."""
    if isinstance(value, bool) or not isinstance(value, int | float | torch.SymFloat | torch.SymInt):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}.")
    if not (0 < value < math.inf):
        raise ValueError(f"{op}: {name} must be finite and greater than 0, got {value}.")


def check_finite(op: str, name: str, value: float) -> None:
    """A number that is neither infinite nor NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float | torch.SymFloat | torch.SymInt):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}.")
    if not (-math.inf < value < math.inf):
        raise ValueError(f"{op}: {name} must be finite, got {value}.")


def shape_of(x: Tensor) -> list[int]:
    """A shape as it reads best in a message."""
    return list(x.shape)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
