"""The ring queue's write in the compiled extension: C++ on the CPU, CUDA on the GPU. K rows, E width, N new rows.

The CUDA write is one launch, behind the clearing of one word, that asks the host nothing, so that it can be captured in a graph.
"""

from __future__ import annotations

import torch
from torch import Tensor


def enqueue_(
    rows: Tensor,
    ids: Tensor,
    head: Tensor,
    fill: Tensor,
    new_rows: Tensor,
    mask: Tensor | None,
    new_ids: Tensor | None,
    normalize: bool,
    scales: Tensor | None = None,
    new_scales: Tensor | None = None,
) -> None:
    """Write the masked new rows in order from `head` on, around the end; of more than K, the last K stay."""
    torch.ops.vlkd.ring_enqueue_(rows, ids, head, fill, new_rows, mask, new_ids, normalize, scales, new_scales)


def register_fake() -> None:
    """Tell torch.compile that the operator changes its arguments and returns nothing."""
    torch.library.register_fake("vlkd::ring_enqueue_", _fake)


def _fake(
    rows: Tensor,
    ids: Tensor,
    head: Tensor,
    fill: Tensor,
    new_rows: Tensor,
    mask: Tensor | None,
    new_ids: Tensor | None,
    normalize: bool,
    scales: Tensor | None = None,
    new_scales: Tensor | None = None,
) -> None:
    return None
