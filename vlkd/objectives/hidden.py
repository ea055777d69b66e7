"""L_HID: every hidden state of the student finds its teacher's among a queue of others (arXiv 2104.02096)."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from vlkd.objectives.term import Term
from vlkd_kernels import RingQueue, token_nce


def hidden_nce(
    projected_s: Tensor,
    hidden_t: Tensor,
    queue: RingQueue,
    *,
    token_mask: Tensor,
    picture_ids: Tensor,
    temperature: float = 0.07,
    in_batch: bool = False,
    backend: str | None = None,
) -> Term:
    """Token-wise noise-contrastive loss, counted by token.

    −log [e^{φ(h_s)·h_t/τ} / (e^{φ(h_s)·h_t/τ} + Σ_k e^{φ(h_s)·q_k/τ})] with all vectors L2-normalised. Rows of the
    queue that come from the token's own picture are no negatives.

    Args:
        projected_s: [B, L, E], the student's last hidden states after the projection φ to the teacher's width.
        hidden_t: [B, L, E], the teacher's last hidden states; gets no gradient.
        queue: teacher hidden states of earlier steps.
        token_mask: [B, L] bool, the tokens that count.
        picture_ids: [B] int64.
        temperature: the paper's τ.
        in_batch: the other counted tokens of the batch are negatives too.
        backend: that computes it, see :func:`vlkd_kernels.explain_backend`; None picks.
    """
    token_ids = picture_ids.unsqueeze(1).expand(token_mask.shape)  # [B, L]
    answer = token_nce(
        projected_s,
        hidden_t.detach(),
        queue,
        temperature=temperature,
        token_mask=token_mask,
        token_ids=token_ids,
        in_batch=in_batch,
        reduction="sum",
        backend=backend,
        return_count=True,
    )
    return Term(*cast(tuple[Tensor, Tensor], answer))
