"""`token_nce`: noise-contrastive loss of a student's tokens against a teacher's, with a queue of negatives.

Shapes: N tokens (all leading dimensions of h together), E embedding width, K negatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vlkd_kernels import backends, checks
from vlkd_kernels.dtypes import accumulator, compute_dtype, without_autocast
from vlkd_kernels.fused_loss import fused_loss, reduced, refuse_transforms, wants_gradient
from vlkd_kernels.ring_queue import RingQueue

_OP = "token_nce"


class TokenNCEStats(NamedTuple):
    """Means over the counted tokens (0 if none counts); similarities are taken before the temperature."""

    positive_similarity: Tensor  # of a token with its teacher
    negative_similarity: Tensor  # of a token with its negatives, 0 for a token without any
    accuracy: Tensor  # share of tokens closer to their teacher than to every negative


def token_nce(
    h_s: Tensor,
    h_t: Tensor,
    negatives: Tensor | RingQueue,
    *,
    temperature: float | Tensor = 0.07,
    token_mask: Tensor | None = None,
    token_ids: Tensor | None = None,
    normalize: bool = True,
    in_batch: bool = False,
    reduction: str = "mean",
    backend: str | None = None,
    return_count: bool = False,
    return_stats: bool = False,
    return_losses: bool = False,
) -> Tensor | tuple[Tensor | TokenNCEStats, ...]:
    r"""How well each of a student's tokens picks its teacher's token out of a set of negatives.

    With ŝ, t̂, q̂ the L2-normalised rows of h_s, h_t and the negatives, a token's value is
    -log( exp(ŝ·t̂/τ) / (exp(ŝ·t̂/τ) + Σ_k exp(ŝ·q̂_k/τ)) ) (DistillVLM, arXiv 2104.02096, eq. 5). Without masks::

        s, t, q = (F.normalize(x, dim=-1) for x in (h_s, h_t, negatives))
        logits = torch.cat([(s * t).sum(-1, keepdim=True), s @ q.mT], dim=1) / temperature
        loss = F.cross_entropy(logits, torch.zeros(len(s), dtype=torch.long))

    A NaN or an infinity in a token that counts, or in one of its negatives, makes its value and gradient NaN, as does a row that is
    to be normalised and whose squared length overflows. It leaves no trace in tokens that do not count, in
    rows of a queue that are not filled, and for a token in negatives with the token's id.

    Args:
        h_s: the student's tokens [..., E].
        h_t: the teacher's tokens, of the same shape and any dtype. No gradient goes to them, nor to the negatives.
        negatives: a `RingQueue`, or a tensor [K, E] of rows.
        temperature: a finite number greater than 0, or a scalar tensor, which may require a gradient and whose value is not
            checked: the loss is NaN where it is not a finite number greater than 0.
        token_mask: bool [...]; True counts. A token that does not count gives exactly 0 and is nobody's negative.
        token_ids: int64 [...]: a negative with the token's own id is left out; -1 equals nothing. Needs negatives that
            carry ids: a RingQueue, or none at all.
        normalize: L2-normalise the rows. A RingQueue must have been made with the same setting; its rows are not
            normalised again.
        in_batch: the other counted tokens of h_t are negatives too, except those with the token's id.
        reduction: "mean" over the counted tokens, or their "sum". A token without negatives counts, with value 0.
        backend: "reference", "cpu", "triton" or "cuda"; None picks (see `explain_backend`).
        return_count: also return how many tokens count.
        return_stats: also return `TokenNCEStats`.
        return_losses: also return every token's value [...], 0 where it does not count; no gradient flows through it.

    Returns:
        A float32 scalar (float64 for float64 inputs), differentiable once for h_s and the temperature; then the count,
        the statistics and the tokens' values, where asked for. Products are taken in the student's dtype (autocast's, if it is on) and
        summed in float32.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or value.
        BackendError: the named backend cannot run this call.
    """
    queue = negatives if isinstance(negatives, RingQueue) else None
    dtype = h_s.dtype if isinstance(h_s, Tensor) else torch.float32
    rows = negatives.values(dtype) if isinstance(negatives, RingQueue) else negatives
    _check_tensors(h_s, h_t, rows, token_mask, token_ids)
    _check_negatives(rows, queue, token_ids, normalize, in_batch)
    _check_temperature(temperature, h_s)
    checks.check_reduction(_OP, reduction)
    refuse_transforms(h_s, h_t, rows, temperature)
    dtype = compute_dtype(h_s)
    chosen = backends.choose(_OP, backend, h_s.device.type, dtype)
    learned = temperature if isinstance(temperature, Tensor) else None
    with_grad = wants_gradient(h_s, temperature)
    forward = _nothing if 0 in h_s.shape else _forward(chosen)
    with torch.no_grad(), without_autocast(h_s):
        loss_sum, count, *gradients, values = forward(
            h_s.detach().to(dtype).flatten(0, -2),
            h_t.detach().flatten(0, -2),
            rows.detach(),
            queue.fill if queue is not None else None,
            queue.ids if queue is not None and token_ids is not None else None,
            token_mask.flatten().contiguous() if token_mask is not None else None,
            token_ids.flatten().contiguous() if token_ids is not None else None,
            None if learned is not None else float(temperature),
            learned.detach() if learned is not None else None,
            normalize,
            normalize and queue is None,
            in_batch,
            with_grad,
        )
        loss, count, scale = reduced(loss_sum, count, reduction == "mean")
    inputs = (h_s,) if learned is None else (h_s, learned)
    loss = fused_loss(loss, scale, inputs, tuple(gradients[: len(inputs)]) if with_grad else ())
    extras = (count,) if return_count else ()
    if return_stats:
        extras = (*extras, TokenNCEStats(*(values[1:].sum(1) / count.clamp(min=1)).float().unbind()))
    if return_losses:
        extras = (*extras, values[0].view(h_s.shape[:-1]))
    return (loss, *extras) if extras else loss


def _forward(backend: str) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """The backend's forward; all have the signature of `reference.forward`."""
    if backend == "reference":
        from vlkd_kernels.token_nce.reference import forward

        return forward
    if backend == "triton":
        from vlkd_kernels.token_nce.triton import forward

        return forward
    from vlkd_kernels.token_nce.native import forward

    return forward


def _nothing(h_s: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """No token: loss 0, count 0, zero gradients, no values."""
    zero = torch.zeros((), dtype=accumulator(h_s.dtype), device=h_s.device)
    return zero, zero.clone(), torch.zeros_like(h_s, dtype=zero.dtype), zero.clone(), zero.new_empty(4, 0)


def _check_tensors(h_s: Tensor, h_t: Tensor, rows: Tensor, token_mask: Tensor | None, token_ids: Tensor | None) -> None:
    checks.check_float_tensors(_OP, {"h_s": h_s, "h_t": h_t, "negatives": rows})
    if h_s.ndim < 2 or h_s.shape[-1] == 0:
        raise ValueError(f"{_OP}: h_s must have shape [..., E] with E at least 1, got {checks.shape_of(h_s)}.")
    checks.check_shape(_OP, "h_t", h_t, h_s.shape, "that of h_s")
    if rows.ndim != 2 or rows.shape[1] != h_s.shape[-1]:
        raise ValueError(
            f"{_OP}: negatives must have shape [K, E] with E = {h_s.shape[-1]}, got {checks.shape_of(rows)}."
        )
    for name, x, dtype in (("token_mask", token_mask, torch.bool), ("token_ids", token_ids, torch.int64)):
        if x is not None:
            checks.check_dtype(_OP, name, x, dtype)
            checks.check_device(_OP, name, x, "h_s", h_s)
            checks.check_shape(_OP, name, x, h_s.shape[:-1], "that of h_s without E")


def _check_negatives(
    rows: Tensor, queue: RingQueue | None, token_ids: Tensor | None, normalize: bool, in_batch: bool
) -> None:
    if rows.shape[0] == 0 and not in_batch:
        raise ValueError(
            f"{_OP}: negatives must have at least one row, got {checks.shape_of(rows)}; "
            "without a queue, use in_batch=True."
        )
    if queue is not None and queue.normalize != normalize:
        raise ValueError(
            f"{_OP}: the queue was made with normalize={queue.normalize} but the call says normalize={normalize}; "
            "they must agree."
        )
    if queue is None and token_ids is not None and rows.shape[0]:
        raise ValueError(
            f"{_OP}: token_ids need negatives that carry ids, got a plain tensor; pass a RingQueue or leave token_ids out."
        )


def _check_temperature(temperature: float | Tensor, h_s: Tensor) -> None:
    if not isinstance(temperature, Tensor):
        checks.check_positive(_OP, "temperature", temperature)
        return
    checks.check_float_tensors(_OP, {"h_s": h_s, "temperature": temperature})
    checks.check_shape(_OP, "temperature", temperature, (), "a scalar tensor")
