"""What the fused losses are measured against: the same loss as one would write it, eager and through torch.compile.

Every contender is a function of the same tensors that returns the loss; a benchmark times it with its backward.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import vlkd_kernels

CONTENDERS = ("vlkd", "eager", "torch.compile")


def attention_mse(q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor) -> Tensor:
    """Mean square difference of two attention maps, [B, H, L, D] each."""
    p = (q_s @ k_s.mT * q_s.shape[-1] ** -0.5).softmax(-1)
    t = (q_t @ k_t.mT * q_t.shape[-1] ** -0.5).softmax(-1)
    return F.mse_loss(p, t)


def token_nce(h_s: Tensor, h_t: Tensor, negatives: Tensor) -> Tensor:
    """Cross entropy of each token's teacher against K negatives, h [N, E], negatives [K, E]; temperature 0.07."""
    s, t, q = (F.normalize(x, dim=-1) for x in (h_s, h_t, negatives))
    logits = torch.cat([(s * t).sum(-1, keepdim=True), s @ q.mT], dim=1) / 0.07
    return F.cross_entropy(logits.float(), logits.new_zeros(len(logits), dtype=torch.long))


def contender(op: str, name: str) -> Callable[..., Tensor]:
    """A contender's function for an op."""
    if name == "vlkd":
        return getattr(vlkd_kernels, op)
    eager = {"attention_mse": attention_mse, "token_nce": token_nce}[op]
    return eager if name == "eager" else torch.compile(eager)
