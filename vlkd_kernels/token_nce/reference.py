"""Token-wise noise-contrastive loss in plain PyTorch.

Shapes: N tokens, E embedding width, K negatives.

`loss` is the formula, differentiated by autograd; it computes in the dtype of its inputs, so in float64 it is the truth
that every backend is held to, and in bfloat16 it is what a user would have written by hand. `forward` is what
`backend="reference"` runs: the same numbers in the form that does not cancel, with the gradient written out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vlkd_kernels.dtypes import accumulator, exact, finite

EPS = 1e-12  # the smallest norm that a row is divided by


def loss(
    h_s: Tensor,  # [N, E]
    h_t: Tensor,  # [N, E]
    negatives: Tensor,  # [K, E]
    temperature: float | Tensor,
    *,
    fill: Tensor | None = None,  # int64 scalar: negatives from this row on are empty
    negative_ids: Tensor | None = None,  # int64 [K]
    token_mask: Tensor | None = None,  # bool [N]; True counts
    token_ids: Tensor | None = None,  # int64 [N]; -1 equals nothing
    normalize: bool = True,
    normalize_negatives: bool = True,
    in_batch: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sum over the counted tokens of log(exp(l_0) + sum_k exp(l_k)) - l_0, and how many tokens count."""
    h_t, negatives = h_t.detach().to(h_s.dtype), negatives.detach().to(h_s.dtype)
    counted = _counted(h_s, token_mask)
    h_s, h_t = (x.masked_fill(~counted[:, None], 0) for x in (h_s, h_t))  # a NaN there would reach the gradient
    if normalize:
        h_s, h_t = F.normalize(h_s, dim=-1, eps=EPS), F.normalize(h_t, dim=-1, eps=EPS)
    if normalize_negatives:
        negatives = F.normalize(negatives, dim=-1, eps=EPS)
    candidates, valid = _candidates(h_t, negatives, fill, negative_ids, counted, token_ids, in_batch)
    candidates = candidates.masked_fill(~valid.any(0)[:, None], 0)  # of nobody
    positive = (h_s * h_t).sum(-1) / temperature  # [N]
    logits = (h_s @ candidates.mT / temperature).masked_fill(~valid, -torch.inf)  # [N, K (+ N)]
    logits = torch.cat([positive[:, None], logits], dim=1)
    token_values = logits.logsumexp(-1) - positive
    return token_values.masked_fill(~counted, 0).sum(), counted.sum().to(token_values.dtype)


def forward(
    h_s: Tensor,
    h_t: Tensor,
    negatives: Tensor,
    fill: Tensor | None,
    negative_ids: Tensor | None,
    token_mask: Tensor | None,
    token_ids: Tensor | None,
    temperature: float | None,
    temperature_tensor: Tensor | None,
    normalize: bool,
    normalize_negatives: bool,
    in_batch: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss sum, count, its gradients for h_s and the temperature, and every token's values [4, N] (see `_values`)."""
    dtype = accumulator(h_s.dtype)
    h_s, h_t, negatives = h_s.to(dtype), h_t.to(dtype), negatives.to(dtype)
    tau = temperature_scalar(temperature, temperature_tensor, h_s)
    norm = _norm(h_s)  # [N, 1]
    student = h_s / norm.clamp(min=EPS) if normalize else h_s
    teacher = h_t / _norm(h_t).clamp(min=EPS) if normalize else h_t
    queue = negatives / _norm(negatives).clamp(min=EPS) if normalize_negatives else negatives
    counted = _counted(h_s, token_mask)
    candidates, valid = _candidates(teacher, queue, fill, negative_ids, counted, token_ids, in_batch)
    positive = exact((student * teacher).sum(-1))  # similarities, before the temperature
    negative = exact(student @ candidates.mT)  # [N, K (+ N)]
    # loss = softplus(x), x = log(sum_k exp(l_k)) - l_0; no negative gives x = -inf and loss 0
    log_odds = ((negative - positive[:, None]) / tau).masked_fill(~valid, -torch.inf)
    x = log_odds.logsumexp(-1) if valid.shape[1] else torch.full_like(positive, -torch.inf)
    losses = x.clamp(min=0) + x.abs().neg().exp().log1p() + 0 * (tau + positive)  # NaN also where there is no negative
    values = _values(losses, positive, negative, valid, counted)
    loss_sum = values[0].sum()
    if not with_grad:
        empty = h_s.new_empty(0)
        return loss_sum, counted.sum().to(dtype), empty, empty.clone(), values
    # softmax weight of every negative: exp(l_k - log Z), with log Z - l_0 = the token's loss
    used = valid & counted[:, None]
    weights = (log_odds - losses[:, None]).exp().masked_fill(~used, 0)  # [N, K (+ N)]
    grad = (weights @ finite(candidates) - weights.sum(-1, keepdim=True) * teacher) / tau
    if normalize:
        grad = (grad - student * (student * grad).sum(-1, keepdim=True) * (norm > EPS)) / norm.clamp(min=EPS)
    grad = (grad + losses[:, None] * 0).masked_fill(~counted[:, None], 0)
    grad_tau = -(weights * (negative - positive[:, None]).masked_fill(~used, 0)).sum() / (tau * tau)
    return loss_sum, counted.sum().to(dtype), grad, grad_tau, values


def temperature_scalar(temperature: float | None, temperature_tensor: Tensor | None, like: Tensor) -> Tensor:
    """Whichever of the two is given, as a scalar tensor of the accumulator's dtype; NaN where it has no meaning."""
    dtype = accumulator(like.dtype)
    if temperature_tensor is not None:
        tau = temperature_tensor.to(dtype)
        return tau.masked_fill(~((tau > 0) & tau.isfinite()), torch.nan)
    if temperature is None:
        raise ValueError("token_nce: one of temperature and temperature_tensor must be given, got neither.")
    return torch.full((), temperature, dtype=dtype, device=like.device)


def _norm(x: Tensor) -> Tensor:
    """The length of every row, [N, 1]; NaN where its square overflows, for a row over infinity would be 0."""
    return exact(x.norm(dim=-1, keepdim=True))


def _counted(h_s: Tensor, token_mask: Tensor | None) -> Tensor:
    return h_s.new_ones(h_s.shape[0], dtype=torch.bool) if token_mask is None else token_mask


def _candidates(
    teacher: Tensor,  # [N, E]
    negatives: Tensor,  # [K, E]
    fill: Tensor | None,
    negative_ids: Tensor | None,
    counted: Tensor,
    token_ids: Tensor | None,
    in_batch: bool,
) -> tuple[Tensor, Tensor]:
    """The rows that may serve as negatives and, for each token, which of them do: [K (+ N), E], bool [N, K (+ N)]."""
    tokens, rows = teacher.shape[0], negatives.shape[0]
    valid = torch.ones(tokens, rows, dtype=torch.bool, device=teacher.device)
    if fill is not None:
        valid = valid & (torch.arange(rows, device=teacher.device) < fill)
    if token_ids is not None and negative_ids is not None:
        valid = valid & ~_same(token_ids, negative_ids)
    if not in_batch:
        return negatives, valid
    others = counted[None, :] & ~torch.eye(tokens, dtype=torch.bool, device=teacher.device)
    if token_ids is not None:
        others = others & ~_same(token_ids, token_ids)
    return torch.cat([negatives, teacher]), torch.cat([valid, others], dim=1)


def _same(ids: Tensor, others: Tensor) -> Tensor:
    """Which pairs of ids name the same thing, [N, K]; -1 equals nothing."""
    return (ids[:, None] == others[None, :]) & (ids[:, None] != -1)


def _values(losses: Tensor, positive: Tensor, negative: Tensor, valid: Tensor, counted: Tensor) -> Tensor:
    """Of every token: loss, positive similarity, mean negative similarity, whether the positive is at the top; [4, N].

    A token without negatives has mean negative similarity 0 and its positive at the top; a tie goes to the positive.
    Tokens that do not count have 0 throughout, and one whose loss is NaN is at the top or not by NaN.
    """
    mean = negative.masked_fill(~valid, 0).sum(-1) / valid.sum(-1).clamp(min=1)
    hit = (~(valid & (negative > positive[:, None])).any(-1)).to(positive.dtype) + 0 * losses
    return torch.stack([losses, positive, mean, hit]).masked_fill(~counted, 0)
