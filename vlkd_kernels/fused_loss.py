"""The one autograd wrapper of the fused losses.

A fused loss is a scalar. Its gradient is known once its forward has the probabilities. So every backend's forward returns the
loss and, when it is wanted, the gradient up to a factor. The backward only multiplies that gradient by the factor and by
grad_out. It does so in float32, because a float16 gradient of a mean over many entries would underflow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import FunctionCtx

_ONCE = "vlkd_kernels losses are differentiated once, by backward() or torch.autograd.grad, not"
_ELSE = (
    "use the formula in the op's reference.py, in plain PyTorch: `from vlkd_kernels.attention_mse.reference import loss`, "
    "`from vlkd_kernels.token_nce.reference import loss`, `from vlkd_kernels.distill_attention.reference import attend`"
)
NO_SECOND_DERIVATIVE = (
    "vlkd_kernels losses have no second derivative, because their gradient is not computed by operations of torch; "
    f"for double backward {_ELSE}."
)


def refuse_transforms(*inputs: object) -> None:
    """Refuse the ways to a derivative that the ops do not know: each of them would take a loss for a constant.

    A loss and its gradient are computed without a graph, so that a transform finds nothing to follow. Inputs that no transform
    follows are let through, also inside of one.

    Raises:
        RuntimeError: a transform of torch.func, or forward-mode differentiation, follows one of the inputs.
    """
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    if torch.compiler.is_compiling():
        followed = torch._C._are_functorch_transforms_active()
    else:
        followed = any(map(_is_followed, tensors))
    if followed:
        raise RuntimeError(f"{_ONCE} by the transforms of torch.func; for those {_ELSE}.")
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise RuntimeError(f"{_ONCE} in forward mode; for that {_ELSE}.")


def _is_followed(x: Tensor) -> bool:
    """Whether a transform has wrapped the tensor; `is_grads_batched=True` wraps as torch.vmap did before torch.func."""
    functorch = torch._C._functorch  # type: ignore[attr-defined]
    return functorch.is_functorch_wrapped_tensor(x) or functorch.is_legacy_batchedtensor(x)


def wants_gradient(*inputs: object) -> bool:
    """Whether any of the tensors among the inputs needs a gradient now."""
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)


def reduced(loss_sum: Tensor, count: Tensor, mean: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, count, and the factor from the gradient of the loss sum to that of the loss; a count of 0 gives a mean of 0."""
    scale = count.clamp(min=1).reciprocal() if mean else torch.ones_like(count)
    return loss_sum * scale, count, scale


def fused_loss(loss: Tensor, scale: Tensor, inputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> Tensor:
    """The loss with its known gradients attached.

    Args:
        loss: scalar, float32 (float64 for float64 inputs), not part of a graph.
        scale: scalar of the same dtype.
        inputs: the tensors that a gradient goes to, where they require one.
        gradients: one tensor for each input; times `scale` it is the input's gradient. Empty when no gradient is wanted.
    """
    if not gradients:
        return loss
    # AOTAutograd refuses a second derivative itself.
    origin = loss.new_empty(0) if torch.compiler.is_compiling() else _Origin.apply(*inputs)
    return _FusedLoss.apply(loss, scale, origin, len(inputs), *inputs, *gradients)  # type: ignore[return-value]


class _FusedLoss(torch.autograd.Function):
    """The loss, whose gradient for each input is grad_out * scale * gradient."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, scale: Tensor, origin: Tensor, arity: int, *tensors: Tensor) -> Tensor:
        inputs, gradients = tensors[:arity], tensors[arity:]
        ctx.save_for_backward(scale, origin, *gradients)
        ctx.forms = [(x.dtype, x.shape) for x in inputs]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale, origin, *gradients = ctx.saved_tensors
        needed = ctx.needs_input_grad[4 : 4 + len(gradients)]
        wanted = [gradient for gradient, need in zip(gradients, needed, strict=True) if need]
        if torch.is_grad_enabled():  # create_graph=True: the results must lead to the refusal below
            results = iter(_Rescale.apply(grad_outputs[0], scale, origin, *wanted))
        else:
            results = iter(_rescaled(grad_outputs[0], scale, wanted))
        forms = zip(ctx.forms, needed, strict=True)
        grads = [_formed(next(results), *form) if need else None for form, need in forms]
        return (None, None, None, None, *grads, *(None for _ in gradients))


def _formed(gradient: Tensor, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    if gradient.shape != shape:  # token_nce flattens the leading dimensions
        gradient = gradient.view(shape)
    return gradient.to(dtype)


def _rescaled(grad_out: Tensor, scale: Tensor, gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    factor = grad_out * scale
    if not _last_backward() or _is_followed(factor):  # by many incoming gradients at once
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


class _Origin(torch.autograd.Function):
    """An empty tensor whose graph leads back to the inputs, so that a second derivative reaches them and is refused.

    Without it a gradient would not depend on the inputs, and torch.autograd.functional.hessian would be 0.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, *inputs: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return inputs[0].new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[None, ...]:
        return tuple(None for _ in ctx.needs_input_grad)


class _Rescale(torch.autograd.Function):
    """The multiplication as a separate function, so that a second derivative can be refused."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, grad_out: Tensor, scale: Tensor, origin: Tensor, *gradients: Tensor
    ) -> tuple[Tensor, ...]:
        factor = grad_out * scale
        return tuple(gradient * factor for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        raise RuntimeError(NO_SECOND_DERIVATIVE)
