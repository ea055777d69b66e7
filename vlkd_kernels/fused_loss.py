"""The one autograd wrapper of the fused losses.

A fused loss is a scalar whose gradient is known once its forward has the probabilities, so every backend's forward returns
the loss and, when it is wanted, the gradient but for a factor. Nothing is left for the backward but one multiplication by
that factor and grad_out, done in float32: a float16 gradient of a mean over many entries would underflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def wants_gradient(*inputs: object) -> bool:
    """Whether any of the tensors among the inputs needs a gradient now."""
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)


def reduced(loss_sum: Tensor, count: Tensor, mean: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, count and the factor that makes of the loss sum's gradient that of the loss; a count of 0 gives a mean of 0."""
    scale = count.clamp(min=1).reciprocal() if mean else torch.ones_like(count)
    return loss_sum * scale, count, scale


def fused_loss(loss: Tensor, scale: Tensor, inputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
    """The loss with its known gradients attached.

    Args:
        loss: scalar, float32 (float64 for float64 inputs), not part of a graph.
        scale: scalar of the same dtype.
        inputs: the tensors that a gradient goes to, where they require one.
        gradients: for each input what, multiplied by `scale`, is its gradient; empty when no gradient is wanted.

    Raises:
        RuntimeError: a transform of torch.func is to differentiate the loss.
    """
    if not gradients:
        return loss
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "vlkd_kernels losses are differentiated by backward() or torch.autograd.grad, not by the transforms of "
            "torch.func; for those use the formula in the op's reference.py."
        )
    return _FusedLoss.apply(loss, scale, len(inputs), *inputs, *gradients)  # type: ignore[return-value]


class _FusedLoss(torch.autograd.Function):
    """The loss, whose gradient for each input is grad_out * scale * gradient."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, scale: Tensor, arity: int, *tensors: Tensor) -> Tensor:
        inputs, gradients = tensors[:arity], tensors[arity:]
        ctx.save_for_backward(scale, *gradients)
        ctx.forms = [(x.dtype, x.shape) for x in inputs]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale, *gradients = ctx.saved_tensors
        needed = ctx.needs_input_grad[3 : 3 + len(gradients)]
        wanted = [gradient for gradient, need in zip(gradients, needed, strict=True) if need]
        if torch.is_grad_enabled():  # create_graph=True: the results must lead to the refusal below
            results = iter(_Rescale.apply(grad_outputs[0], scale.detach().requires_grad_(), *wanted))
        else:
            results = iter(_rescaled(grad_outputs[0], scale, wanted))
        forms = zip(ctx.forms, needed, strict=True)
        grads = [_formed(next(results), *form) if need else None for form, need in forms]
        return (None, None, None, *grads, *(None for _ in gradients))


def _formed(gradient: Tensor, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    if gradient.shape != shape:  # token_nce flattens the leading dimensions
        gradient = gradient.view(shape)
    return gradient.to(dtype)


def _rescaled(grad_out: Tensor, scale: Tensor, gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    factor = grad_out * scale
    if not _last_backward():
        return tuple(gradient * factor for gradient in gradients)
    if _is_one(factor):
        return tuple(gradients)
    return tuple(gradient.mul_(factor) for gradient in gradients)


def _is_one(factor: Tensor) -> bool:
    """Whether a multiplication can be left out; never asked where the host would wait, or where there is no value yet."""
    return factor.is_cpu and type(factor) is Tensor and factor.item() == 1


def _last_backward() -> bool:
    """Whether the graph is given up after this backward, so that what it saved may be overwritten: new memory costs more
    than the multiplication. torch's compiler asks the same question before it reuses saved tensors.
    """
    autograd = torch._C._autograd  # type: ignore[attr-defined]
    keeps_graph = getattr(autograd, "_get_current_graph_task_keep_graph", None)
    return keeps_graph is not None and not torch.compiler.is_compiling() and not keeps_graph()


class _Rescale(torch.autograd.Function):
    """The multiplication as a function of its own, so that a second derivative can be refused."""

    @staticmethod
    def forward(ctx: FunctionCtx, grad_out: Tensor, scale: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
        factor = grad_out * scale
        return tuple(gradient * factor for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        raise RuntimeError(
            "vlkd_kernels losses have no second derivative: their gradient is computed in the forward pass; "
            "for double backward use the formula in the op's reference.py, which autograd differentiates."
        )
