"""The new rows of every process of a group, in the order of the ranks. N rows a process, E width, W processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Every rank's x [N, ...] one after another, [W N, ...]; the same bits on every rank. Shapes must not differ."""
    own = x.contiguous()
    own = own.view(torch.uint8) if own.dtype == torch.bool else own  # which every backend can send
    result = own.new_empty(dist.get_world_size(group) * own.shape[0], *own.shape[1:])
    dist.all_gather_into_tensor(result, own, group=group)
    return result.view(x.dtype)
