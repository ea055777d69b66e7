"""L_ATT: the student's attention follows the teacher's (arXiv 2104.02096)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from vlkd.objectives.term import Term
from vlkd_kernels import attention_mse


def paired_layers(student: int, teacher: int) -> tuple[int, ...]:
    """The teacher's layer of the same relative depth for each of the student's, as indices from 0.

    Layer i of S, counted from 1, has layer round(i T / S) of T, ties upward: the last has the last, and a student that
    is less deep skips layers of its teacher. A teacher that is less deep has layers that serve several times, its first
    one wherever the formula says 0.

    Args:
        student, teacher: S and T, how many layers each has.
    """
    return tuple(max((2 * i * teacher + student) // (2 * student), 1) - 1 for i in range(1, student + 1))


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
