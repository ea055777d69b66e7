"""`token_nce` in the compiled extension: C++ for CPU tensors of every floating-point dtype the op takes, CUDA for half precision.

On a CPU it compares 64 tokens with 512 negatives at a time, reads the fill count and leaves out the tokens that do not count.
bfloat16 rows of even width are multiplied in bfloat16 where the processor can (AVX-512 BF16), with sums in float32; the
weights in the gradient are then rounded to bfloat16 once. On a GPU 128 tokens meet 128 negatives at a time on the tensor
cores, and the host waits for nothing. A temperature that is not finite and above 0 gives NaN.
Shapes: N tokens, E embedding width, K negatives.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    """Loss sum, count, its gradients for h_s and the temperature, and the tokens' values as in `reference`."""
    return torch.ops.vlkd.token_nce(
        h_s,
        h_t,
        negatives,
        fill,
        negative_ids,
        token_mask,
        token_ids,
        temperature,
        temperature_tensor,
        normalize,
        normalize_negatives,
        in_batch,
        with_grad,
    )


def register_fake() -> None:
    """Tell torch.compile the operator's output shapes; called once, when the extension is loaded."""
    torch.library.register_fake("vlkd::token_nce", _fake)


def _fake(
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
    dtype = torch.float64 if h_s.dtype == torch.float64 else torch.float32
    grad_h = h_s.new_empty(h_s.shape if with_grad else 0, dtype=dtype)
    loss_sum, count, grad_temperature = (h_s.new_empty((), dtype=dtype) for _ in range(3))
    return loss_sum, count, grad_h, grad_temperature, h_s.new_empty(4, h_s.shape[0], dtype=dtype)
