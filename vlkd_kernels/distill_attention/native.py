"""`distill_attention` for CPU tensors: torch's own fused attention beside the C++ `attention_mse`.

Shapes: B batch, H heads, L queries, M keys, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vlkd_kernels.attention import log_sum_exp
from vlkd_kernels.attention_mse import attention_mse
from vlkd_kernels.distill_attention.broken_rows import with_broken, without_broken


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
    """Output, loss sum, count, and the student's log-sum-exp if it is wanted; `lse_t` is not needed."""
    finite, mark = without_broken(q_s, k_s, v_s, attn_mask, is_causal)
    out = with_broken(_attend(*finite, dropout_p, scale_s, attn_mask, is_causal), mark)
    loss, count = attention_mse(
        q_s, k_s, q_t, k_t, scale_s=scale_s, scale_t=scale_t, attn_mask=attn_mask, query_mask=query_mask,
        is_causal=is_causal, distance=distance, reduction="sum", backend="cpu", return_count=True,
    )  # fmt: skip
    return out, loss, count, log_sum_exp(q_s, k_s, scale_s, attn_mask, is_causal) if return_lse else None


def _attend(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float, scale: float, attn_mask: Tensor | None, is_causal: bool
) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    if attn_mask is None:
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=grouped
        )
    visible = attn_mask
    if is_causal:  # torch takes one or the other
        visible = visible & torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    sees = visible.any(-1, keepdim=True)
    # A row that sees no key attends everywhere, for its softmax would be NaN, and is cleared afterwards.
    visible = (visible | ~sees).expand(*visible.shape[:2], q.shape[2], k.shape[2])
    out = F.scaled_dot_product_attention(q, k, v, visible, dropout_p, scale=scale, enable_gqa=grouped)
    return out.masked_fill(~sees, 0)
