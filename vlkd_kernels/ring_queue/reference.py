"""The ring queue's write in plain PyTorch: fixed shapes, no question to the device. K rows, E width, N new rows."""

from __future__ import annotations

import torch
from torch import Tensor

from vlkd_kernels.dtypes import accumulator


def normalized(rows: Tensor) -> Tensor:
    """rows [N, E] over max(‖row‖, 1e-12), in float32 (float64 for float64); NaN where the square of a length overflows."""
    rows = rows.to(accumulator(rows.dtype))
    norm = rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return rows / norm.masked_fill(norm.isinf(), torch.nan)


def enqueue_(
    rows: Tensor,  # [K, E], changed
    ids: Tensor,  # int64 [K], changed
    head: Tensor,  # int64 scalar, the next slot to write, changed
    fill: Tensor,  # int64 scalar, how many rows are filled, changed
    new_rows: Tensor,  # [N, E]
    mask: Tensor | None,  # bool [N]; True is written
    new_ids: Tensor | None,  # int64 [N]
    normalize: bool,
    scales: Tensor | None = None,  # [K], changed
    new_scales: Tensor | None = None,  # [N], where there are scales
) -> None:
    """Write the masked new rows in order from `head` on, around the end; of more than K, the last K stay."""
    size, count = rows.shape[0], new_rows.shape[0]
    if size == 0 or count == 0:
        return
    device = rows.device
    written = torch.ones(count, dtype=torch.bool, device=device) if mask is None else mask
    order = written.cumsum(0) - 1  # the place of each new row among the written ones
    total = written.sum()
    last = written & (order >= total - size)
    slot = torch.where(last, (head + order) % size, size)  # rows that are dropped go to a slot past the end
    # source[k]: which new row slot k receives, or -1; slots of rows that stay are distinct
    source = torch.full((size + 1,), -1, dtype=torch.int64, device=device)
    source = source.scatter(0, slot, torch.arange(count, device=device))[:size]
    changed, source = source >= 0, source.clamp(min=0)
    if normalize:
        new_rows = normalized(new_rows)
    rows.copy_(torch.where(changed[:, None], new_rows.to(rows.dtype)[source], rows))
    if scales is not None and new_scales is not None:
        scales.copy_(torch.where(changed, new_scales[source], scales))
    kept_ids = torch.full_like(source, -1) if new_ids is None else new_ids[source]
    ids.copy_(torch.where(changed, kept_ids, ids))
    head.copy_((head + total) % size)
    fill.copy_((fill.clamp(0, size) + total).clamp(max=size))
