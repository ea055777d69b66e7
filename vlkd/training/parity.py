"""A guard for the first steps of a run: the fused losses against their reference, on the run's own tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vlkd.errors import VlkdError
from vlkd.objectives import Term
from vlkd.training.method import Method
from vlkd.training.trained import Forward

# The largest relative difference by the dtype of a loss's products. The reference sums the same rounded inputs in float32; a
# kernel may also round what lies between two products, some times the dtype's epsilon (2^-7 in bfloat16, 2^-10 in float16)
# and, behind the temperature of the NCE, a multiple of it. A wrong factor, sign or mask is off by far more.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
_NOTHING = 1e-9  # a difference of two numbers that should both be 0


class ParityGuard:
    """Compares the fused terms of the first ``steps`` optimizer steps with their reference, and their gradients too.

    It draws no random number and leaves the graph of the step as it is, so that the trained bits do not depend on it.
    """

    def __init__(self, method: Method, steps: int) -> None:
        self._method = method
        self._steps = steps
        self._step = 0
        self._worst: dict[str, float] = {}

    def check(
        self, step: int, student: Forward, teacher: Forward | None, batch: Mapping[str, Tensor], terms: dict[str, Term]
    ) -> None:
        """Compare a micro-batch of optimizer step ``step`` (from 1), under the autocast of its forward.

        Raises:
            VlkdError: a fused term or a gradient of it is not that of its reference.
        """
        if step > self._steps or teacher is None:
            return
        if step != self._step:
            self._step, self._worst = step, {}
        for name in self._method.fused:
            self._compare(name, terms[name], student, teacher, batch)

    def row(self, step: int) -> dict[str, float]:
        """``check/term``: the largest relative difference in step ``step``; empty for a step that was not checked."""
        return {f"check/{name}": worst for name, worst in self._worst.items()} if step == self._step else {}

    def _compare(self, name: str, term: Term, student: Forward, teacher: Forward, batch: Mapping[str, Tensor]) -> None:
        inputs = _inputs(name, student)
        copies = {key: tensor.detach().requires_grad_() for key, tensor in inputs.items()}
        # Of copies, for the queries of one layer move the maps of those behind it too, by way of the model.
        apart = _with_inputs(student, copies)
        fused, reference = (
            self._method.fused_term(name, apart, teacher, batch, backend) for backend in (None, "reference")
        )
        found, expected = (torch.autograd.grad(each.sum, list(copies.values())) for each in (fused, reference))
        tolerance = _TOLERANCES[_product_dtype(next(iter(inputs.values())))]
        self._judge(name, "value", term.sum.detach(), reference.sum.detach(), tolerance)
        for key, one, other in zip(inputs, found, expected, strict=True):
            self._judge(name, f"gradient for the student's {key}", one, other, tolerance)

    def _judge(self, name: str, what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
        """Differences are measured by their norm. Where the reference is not finite, the training stops."""
        pair = (found.double(), expected.double())
        norm, right, difference = (x.norm().item() for x in (*pair, pair[0] - pair[1]))
        if not math.isfinite(right):
            return
        relative = 0.0 if difference <= _NOTHING else difference / right if right else math.inf
        if not relative <= tolerance:
            raise VlkdError(
                f"Step {self._step}, loss term '{name}': the {what} of the fused operator has norm {norm:.6g} and that of its "
                f"reference {right:.6g}; they differ by {difference:.3g}, more than {tolerance:g} of the latter: please report "
                "this with what `vlkd doctor` says."
            )
        self._worst[name] = max(self._worst.get(name, 0.0), relative)


def _inputs(name: str, student: Forward) -> dict[str, Tensor]:
    """What a term is differentiated for; layers before the last are named by their place among the compared ones."""
    if name == "hidden":
        return {"projected hidden states": student.projected}
    inputs = {"queries": student.attention.query, "keys": student.attention.key}
    for place, layer in enumerate(student.earlier_attention, start=1):
        inputs |= {f"queries of layer {place}": layer.query, f"keys of layer {place}": layer.key}
    return inputs


def _with_inputs(student: Forward, inputs: dict[str, Tensor]) -> Forward:
    if "queries" not in inputs:
        return student._replace(projected=inputs["projected hidden states"])
    earlier = tuple(
        layer._replace(query=inputs[f"queries of layer {place}"], key=inputs[f"keys of layer {place}"])
        for place, layer in enumerate(student.earlier_attention, start=1)
    )
    last = student.attention._replace(query=inputs["queries"], key=inputs["keys"])
    return student._replace(attention=last, earlier_attention=earlier)


def _product_dtype(tensor: Tensor) -> torch.dtype:
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype
