"""A student's attention and the distance of its map to its teacher's in plain PyTorch, differentiated by autograd.

Shapes: B batch, H heads, L queries, M keys, D head width. The key side may have fewer heads than the query side.

`attend` is the formula of the output; that of the loss is `attention_mse.reference.loss`. Both compute in the dtype of their
inputs, so in float64 they are the truth that every backend is held to. `forward` is what `backend="reference"` runs: the
same in float32 (float64 for float64), with the loss in the form that does not cancel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vlkd_kernels.attention import log_sum_exp, seen_keys
from vlkd_kernels.attention_mse import attention_mse
from vlkd_kernels.distill_attention.broken_rows import with_broken, without_broken
from vlkd_kernels.dtypes import accumulator


def attend(
    q: Tensor,  # [B, H, L, D]
    k: Tensor,  # [B, H_k, M, D]
    v: Tensor,  # [B, H_k, M, D_v]
    *,
    scale: float,
    attn_mask: Tensor | None = None,  # bool, broadcastable to [B, H, L, M]; True may attend
    is_causal: bool = False,
    keep: Tensor | None = None,  # [B, H, L, M], the dropout mask over 1 - p, drawn beforehand
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The output [B, H, L, D_v], 0 in rows that see no key, and the log-sum-exp of every row, -inf in such rows."""
    groups = q.shape[1] // k.shape[1]
    visible = torch.ones(*q.shape[:3], k.shape[2], dtype=torch.bool, device=q.device)
    if attn_mask is not None:
        visible = visible & attn_mask
    if is_causal:
        visible = visible.tril()
    sees = visible.any(-1, keepdim=True)
    # A NaN in what nobody sees, and in who sees nothing, would meet a weight of 0, and be one.
    seen = seen_keys(visible, k.shape[1])
    q, k, v = q.masked_fill(~sees, 0), k.masked_fill(~seen, 0), v.masked_fill(~seen, 0)
    logits = q @ k.repeat_interleave(groups, dim=1).mT * scale
    p = logits.masked_fill(~visible & sees, -torch.inf).softmax(-1)  # a row that sees nothing attends everywhere ...
    p = F.dropout(p, dropout_p) if keep is None else p * keep
    out = (p @ v.repeat_interleave(groups, dim=1)).masked_fill(~sees, 0)  # ... and is left out here
    return out, logits.detach().masked_fill(~visible, -torch.inf).logsumexp(-1)


def forward(
    q_s: Tensor,
    k_s: Tensor,
    v_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    dropout_p: float,
    scale_s: float,
    scale_t: float,
    attn_mask: Tensor | None,
    query_mask: Tensor | None,
    is_causal: bool,
    distance: str,
    lse_t: Tensor | None,
    return_lse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Output, loss sum, count, and the student's log-sum-exp if it is wanted."""
    dtype = accumulator(q_s.dtype)
    finite, mark = without_broken(q_s, k_s, v_s, attn_mask, is_causal)
    out, lse = attend(
        *(x.to(dtype) for x in finite),
        scale=scale_s,
        attn_mask=attn_mask,
        is_causal=is_causal,
        dropout_p=dropout_p,
    )
    loss, count = attention_mse(
        q_s, k_s, q_t, k_t, scale_s=scale_s, scale_t=scale_t, attn_mask=attn_mask, query_mask=query_mask,
        is_causal=is_causal, distance=distance, reduction="sum", backend="reference", return_count=True,
    )  # fmt: skip
    if mark is not None and return_lse:
        lse = log_sum_exp(q_s, k_s, scale_s, attn_mask, is_causal)
    return with_broken(out.to(q_s.dtype), mark), loss, count, lse if return_lse else None
