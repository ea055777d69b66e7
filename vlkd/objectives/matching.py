"""Image-text matching: does this caption belong to this picture?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.objectives.term import Term


def image_text_matching(logits: Tensor, matched: Tensor) -> Term:
    """Cross-entropy of matched (1) against mismatched (0), counted by pair.

    Args:
        logits: [B, 2], any float dtype.
        matched: [B] int64.
    """
    total = F.cross_entropy(logits.float(), matched, reduction="sum")
    return Term(total, torch.tensor(matched.numel(), device=matched.device))
