"""L_HID without a contrast: every hidden state of the student is drawn to its teacher's."""

from __future__ import annotations

import torch
from torch import Tensor

from vlkd.objectives.term import Term


def hidden_mse(projected_s: Tensor, hidden_t: Tensor, *, token_mask: Tensor) -> Term:
    """Mean squared difference over the teacher's width, counted by token.

    1/E Σ_e (φ(h_s)_e − h_t,e)², of vectors as they are: their length counts too, unlike in
    :func:`~vlkd.objectives.hidden_nce`. Equivalent to ``F.mse_loss(projected_s[token_mask], hidden_t[token_mask])`` once
    the sum is divided by the count.

    Args:
        projected_s: [B, L, E], any float dtype: the student's last hidden states after the projection φ to the teacher's
            width.
        hidden_t: [B, L, E], any float dtype: the teacher's last hidden states; gets no gradient.
        token_mask: [B, L] bool, the tokens that count.
    """
    dtype = torch.promote_types(projected_s.dtype, torch.float32)
    difference = projected_s.to(dtype) - hidden_t.detach().to(dtype)
    # Masked before it is squared: no gradient comes from a row that does not count, whatever it holds.
    difference = torch.where(token_mask.unsqueeze(-1), difference, 0)
    return Term(difference.square().mean(-1).sum(), token_mask.sum())
