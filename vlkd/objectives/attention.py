"""L_ATT: the student's attention follows the teacher's (arXiv 2104.02096)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from vlkd.objectives.term import Term
from vlkd_kernels import attention_mse


def attention_transfer(
    student: tuple[Tensor, Tensor, float],
    teacher: tuple[Tensor, Tensor, float],
    *,
    attention_mask: Tensor,
    query_mask: Tensor,
    distance: Literal["mse", "kl"] = "mse",
    backend: str | None = None,
) -> Term:
    """Distance between the two attention distributions, before dropout, counted by (head, query).

    Equivalent to ``mse(softmax(q_s k_sᵀ · scale_s), softmax(q_t k_tᵀ · scale_t))`` over the visible keys of the counted
    queries; heads are compared one to one and no map is ever stored.

    Args:
        student, teacher: (query, key, scale) of one layer each: query and key [B, H, L, D], the teacher's D may differ.
        attention_mask: [B, L, L] or [B, 1, L] bool, True = may attend.
        query_mask: [B, L] bool, the queries that count.
        backend: that computes it, see :func:`vlkd_kernels.explain_backend`; None picks.
    """
    query_s, key_s, scale_s = student
    query_t, key_t, scale_t = teacher
    total, count = attention_mse(
        query_s,
        key_s,
        query_t,
        key_t,
        scale_s=scale_s,
        scale_t=scale_t,
        attn_mask=attention_mask.unsqueeze(1),  # [B, 1, L or 1, L]
        query_mask=query_mask,
        distance=distance,
        reduction="sum",
        backend=backend,
        return_count=True,
    )
    return Term(total, count)
