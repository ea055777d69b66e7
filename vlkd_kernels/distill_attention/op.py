"""`distill_attention`: a student's attention output and how far its map is from its teacher's, in one op.

Shapes: B batch, H heads, L queries, M keys, D head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlkd_kernels import backends, checks
from vlkd_kernels.attention import check_keys, check_pair, four_dimensional, scale_of
from vlkd_kernels.dtypes import accumulator, compute_dtype, without_autocast
from vlkd_kernels.fused_loss import refuse_transforms

_OP = "distill_attention"


def distill_attention(
    q_s: Tensor,
    k_s: Tensor,
    v_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    *,
    dropout_p: float = 0.0,
    scale_s: float | None = None,
    scale_t: float | None = None,
    attn_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    is_causal: bool = False,
    distance: str = "mse",
    reduction: str = "mean",
    lse_t: Tensor | None = None,
    return_lse: bool = False,
    return_count: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    r"""The student's attention output and the distance of its attention map to the teacher's.

    ::

        out = F.scaled_dot_product_attention(q_s, k_s, v_s, attn_mask, dropout_p, is_causal, scale=scale_s)
        loss = attention_mse(q_s, k_s, q_t, k_t, ...)

    Both are differentiable for q_s, k_s and v_s; one backward serves them. With P and T the two maps, Z the dropout mask
    over 1 - dropout_p, D_i = Σ_j out_ij ∂out_ij and, for ``distance="mse"``, c_i = 2 ∂loss / (rows m_i) for a counted
    row that sees m_i keys (0 for others) and δ_i = Σ_j P_ij (P_ij - T_ij)::

        ∂scores = P ∘ (Z ∘ ∂out v_sᵀ + c (P - T) - (D + c δ))

    A NaN or an infinity is treated as in `attention_mse`; `out` is NaN in the rows that it reaches, and a row of `out` whose
    incoming gradient is 0 passes none on. With "triton" one in `v_s` also reaches rows near those that see it.

    Args:
        q_s: the student's queries [B, H, L, D_s].
        k_s: the student's keys [B, H_k, M, D_s]; H_k divides H (grouped queries).
        v_s: the student's values [B, H_k, M, D_v], in the dtype of q_s.
        q_t: the teacher's queries [B, H, L, D_t], of any width and dtype; no gradient goes to the teacher's tensors.
        k_t: the teacher's keys [B, H_k', M, D_t]; H_k' divides H.
        dropout_p: probability in [0, 1) with which an entry of the student's map is left out of `out`; the loss sees the
            map before dropout. Random numbers come from the device's default generator.
        scale_s, scale_t: factors on the scores, 1/sqrt(D_s) and 1/sqrt(D_t) if None.
        attn_mask: bool, broadcastable to [B, H, L, M]; True may attend. Two dimensions are [L, M] and three [H, L, M]; where
            B = L, or B = H, they might be meant as [B, M] or [B, L, M], and are refused: pass all four.
        query_mask: bool [B, L]; True counts for the loss. The output does not depend on it.
        is_causal: query i sees keys 0..i (aligned top-left), together with `attn_mask`.
        distance: "mse" or "kl", as in `attention_mse`.
        reduction: "mean" over the counted rows, or their "sum".
        lse_t: the natural log-sum-exp of the teacher's visible scaled scores, [B, H, L], where the teacher's attention
            has left it. It saves "triton" a part of the work; the other backends do not need it.
        return_lse: also return the student's.
        return_count: also return how many rows count.
        backend: "reference", "cpu" (torch's attention beside `attention_mse`) or "triton"; None picks.

    Returns:
        `out` [B, H, L, D_v] in the dtype of the student (autocast's, if it is on), 0 in rows that see no key; `loss`, a
        float32 scalar (float64 for float64 inputs); with `return_lse` the student's log-sum-exp [B, H, L] in the
        loss's dtype, -inf in rows that see no key, not differentiable; with `return_count` the count, a scalar.
        Differentiable once.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or value.
        BackendError: the named backend cannot run this call.
    """
    check_pair(_OP, q_s, k_s, q_t, k_t, attn_mask, query_mask, distance, reduction)
    _check(q_s, k_s, v_s, lse_t, dropout_p)
    refuse_transforms(q_s, k_s, v_s, q_t, k_t, lse_t)
    attn_mask = four_dimensional(attn_mask)
    dtype = compute_dtype(q_s)
    keys, *widths = (backends.size_class(size) for size in (k_s.shape[2], q_s.shape[3], q_t.shape[3], v_s.shape[3]))
    chosen = backends.choose(_OP, backend, q_s.device.type, dtype, keys, tuple(widths))
    forward = _nothing if 0 in (*q_s.shape, *v_s.shape) else _forward(chosen)
    with without_autocast(q_s):
        out, loss, count, lse = forward(
            q_s.to(dtype),
            k_s.to(dtype),
            v_s.to(dtype),
            q_t.detach(),
            k_t.detach(),
            float(dropout_p),
            scale_of(_OP, "scale_s", scale_s, q_s),
            scale_of(_OP, "scale_t", scale_t, q_t),
            attn_mask,
            query_mask,
            is_causal,
            distance,
            None if lse_t is None else lse_t.detach(),
            return_lse,
        )
        if reduction == "mean":
            loss = loss / count.clamp(min=1)
    return out, loss, *((lse,) if lse is not None and return_lse else ()), *((count,) if return_count else ())


def _forward(backend: str) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """The backend's forward, differentiable; all have the signature of `reference.forward`."""
    if backend == "triton":
        from vlkd_kernels.distill_attention.triton import forward
    elif backend == "cpu":
        from vlkd_kernels.distill_attention.native import forward
    else:
        from vlkd_kernels.distill_attention.reference import forward
    return forward


def _nothing(q_s: Tensor, k_s: Tensor, v_s: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """No row, no key or no value: outputs of 0 on which the inputs still have a gradient of 0."""
    zero = q_s[..., :0].sum() + k_s[..., :0].sum() + v_s[..., :0].sum()
    out = zero.expand(*q_s.shape[:3], v_s.shape[3])
    loss = zero.to(accumulator(q_s.dtype))
    return out, loss, torch.zeros_like(loss), torch.full(q_s.shape[:3], -torch.inf, dtype=loss.dtype, device=q_s.device)


def _check(q_s: Tensor, k_s: Tensor, v_s: Tensor, lse_t: Tensor | None, dropout_p: float) -> None:
    checks.check_float_tensors(_OP, {"q_s": q_s, "v_s": v_s}, dims=4)
    checks.check_same_dtype(_OP, "v_s", v_s, "q_s", q_s)
    shape = (*k_s.shape[:3], v_s.shape[3])
    checks.check_shape(_OP, "v_s", v_s, shape, "[B, H_k, M, D_v] with the heads and keys of k_s")
    check_keys(_OP, "v_s", v_s, q_s, k_s.shape[2], v_s.shape[3])
    if lse_t is not None:
        checks.check_float_tensors(_OP, {"q_s": q_s, "lse_t": lse_t})
        checks.check_shape(_OP, "lse_t", lse_t, q_s.shape[:3], "[B, H, L]")
    checks.check_finite(_OP, "dropout_p", dropout_p)
    if not 0 <= dropout_p < 1:
        raise ValueError(f"{_OP}: dropout_p must be at least 0 and below 1, got {dropout_p}.")
