"""`attention_mse`: how far a student's attention maps are from its teacher's, without the maps in memory.

Shapes: B batch, H heads, L queries, M keys, D head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlkd_kernels import backends
from vlkd_kernels.attention import check_pair, four_dimensional, scale_of
from vlkd_kernels.dtypes import accumulator, compute_dtype, without_autocast
from vlkd_kernels.fused_loss import fused_loss, refuse_transforms, wants_gradient

_OP = "attention_mse"


def attention_mse(
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    *,
    scale_s: float | None = None,
    scale_t: float | None = None,
    attn_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    is_causal: bool = False,
    distance: str = "mse",
    reduction: str = "mean",
    backend: str | None = None,
    return_count: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""The distance between the attention maps of a student and a teacher, straight from their queries and keys.

    With p = softmax(scale_s q_s k_sᵀ), t = softmax(scale_t q_t k_tᵀ) and m_i the number of keys that row i sees,
    a row's value is (1/m_i) Σ_j (p_ij - t_ij)² for ``distance="mse"`` (DistillVLM, arXiv 2104.02096, eq. 4) and
    Σ_j t_ij (log t_ij - log p_ij) for ``"kl"`` (MiniLM, arXiv 2002.10957). Without masks this is::

        p = (q_s @ k_s.mT * scale_s).softmax(-1)
        t = (q_t @ k_t.mT * scale_t).softmax(-1)
        loss = F.mse_loss(p, t)

    A row counts if `query_mask` says so and it sees at least one key; other rows give exactly 0. If no row counts
    (an empty batch, a mask that hides everything) the loss and its gradients are 0. A NaN or an infinity in a row that counts,
    or in a key that such a row sees, makes the loss and the gradients that depend on it NaN; elsewhere it leaves no trace.

    Args:
        q_s: the student's queries [B, H, L, D_s].
        k_s: the student's keys [B, H_k, M, D_s]; H_k divides H (grouped queries).
        q_t: the teacher's queries [B, H, L, D_t], of any width and dtype. No gradient goes to the teacher's tensors,
            even where they require one.
        k_t: the teacher's keys [B, H_k', M, D_t]; H_k' divides H and may differ from H_k.
        scale_s: factor on the student's scores, 1/sqrt(D_s) if None.
        scale_t: factor on the teacher's scores, 1/sqrt(D_t) if None.
        attn_mask: bool, broadcastable to [B, H, L, M]; True may attend. Two dimensions are [L, M] and three [H, L, M]; where
            B = L, or B = H, they might be meant as [B, M] or [B, L, M], and are refused: pass all four.
        query_mask: bool [B, L]; True counts.
        is_causal: query i sees keys 0..i (aligned top-left), together with `attn_mask`.
        distance: "mse" or "kl".
        reduction: "mean" over the counted rows, or their "sum".
        backend: "reference", "cpu", "triton" or "cuda"; None picks (see `explain_backend`).
        return_count: also return how many rows count.

    Returns:
        A float32 scalar (float64 for float64 inputs), differentiable once for q_s and k_s; with `return_count` also the
        count, a scalar of the same dtype. Products are taken in the student's dtype (autocast's, if it is on) and
        summed in float32.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or value.
        BackendError: the named backend cannot run this call.
    """
    check_pair(_OP, q_s, k_s, q_t, k_t, attn_mask, query_mask, distance, reduction)
    refuse_transforms(q_s, k_s, q_t, k_t)
    scale_s = scale_of(_OP, "scale_s", scale_s, q_s)
    scale_t = scale_of(_OP, "scale_t", scale_t, q_t)
    attn_mask = four_dimensional(attn_mask)
    dtype = compute_dtype(q_s)
    keys, *widths = (backends.size_class(size) for size in (k_s.shape[2], q_s.shape[3], q_t.shape[3]))
    chosen = backends.choose(_OP, backend, q_s.device.type, dtype, keys, tuple(widths))
    with_grad = wants_gradient(q_s, k_s)
    forward = _nothing if 0 in (*q_s.shape, k_s.shape[2]) else _forward(chosen)
    with torch.no_grad(), without_autocast(q_s):
        loss, count, scale, *gradients = forward(
            q_s.to(dtype),
            k_s.to(dtype),
            q_t,
            k_t,
            scale_s,
            scale_t,
            attn_mask,
            query_mask,
            is_causal,
            distance,
            reduction == "mean",
            with_grad,
        )
    loss = fused_loss(loss, scale, (q_s, k_s), tuple(gradients) if with_grad else ())
    return (loss, count) if return_count else loss


def _forward(backend: str) -> Callable[..., tuple[Tensor, ...]]:
    """The backend's forward; all have the signature of `reference.forward`."""
    if backend == "reference":
        from vlkd_kernels.attention_mse.reference import forward

        return forward
    if backend == "triton":
        from vlkd_kernels.attention_mse.triton import forward

        return forward
    from vlkd_kernels.attention_mse.native import forward

    return forward


def _nothing(q_s: Tensor, k_s: Tensor, *_: object) -> tuple[Tensor, ...]:
    """No row or no key: loss 0, count 0, zero gradients."""
    zero = torch.zeros((), dtype=accumulator(q_s.dtype), device=q_s.device)
    grad_q, grad_k = (torch.zeros_like(x, dtype=zero.dtype) for x in (q_s, k_s))
    return zero, zero.clone(), torch.ones_like(zero), grad_q, grad_k
