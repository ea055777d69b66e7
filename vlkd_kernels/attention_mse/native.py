"""`attention_mse` in the compiled extension: C++ for CPU tensors of every floating-point dtype the op takes.

Each thread takes tiles of at most 64 query rows through scores, loss and gradients while they are in its cache; besides
inputs and gradients it holds some rows of the maps (at most 128 KiB each) and copies of one head's keys.
bfloat16 inputs are multiplied in bfloat16 where the processor can (AVX-512 BF16), with sums in float32; the gradient of
the logits is then rounded to bfloat16 once. Everything else is computed in float32, float64 for float64.
Shapes: B batch, H heads, L queries, M keys, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def forward(
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    scale_s: float,
    scale_t: float,
    attn_mask: Tensor | None,
    query_mask: Tensor | None,
    is_causal: bool,
    distance: str,
    mean: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `reference.forward`; on the CPU the rows are counted first, so that the scale is 1."""
    return torch.ops.vlkd.attention_mse(
        q_s, k_s, q_t, k_t, scale_s, scale_t, attn_mask, query_mask, is_causal, distance, mean, with_grad
    )


def register_fake() -> None:
    """Tell torch.compile the operator's output shapes; called once, when the extension is loaded."""
    torch.library.register_fake("vlkd::attention_mse", _fake)


def _fake(
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    scale_s: float,
    scale_t: float,
    attn_mask: Tensor | None,
    query_mask: Tensor | None,
    is_causal: bool,
    distance: str,
    mean: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.float64 if q_s.dtype == torch.float64 else torch.float32
    grad_q = q_s.new_empty(q_s.shape if with_grad else 0, dtype=dtype)
    grad_k = k_s.new_empty(k_s.shape if with_grad else 0, dtype=dtype)
    loss, count, scale = (q_s.new_empty((), dtype=dtype) for _ in range(3))
    return loss, count, scale, grad_q, grad_k
