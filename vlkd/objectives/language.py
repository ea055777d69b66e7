"""Masked language modelling, for pre-training and for captioning."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vlkd.data import IGNORED
from vlkd.objectives.term import Term


def masked_language(logits: Tensor, labels: Tensor) -> Term:
    """Cross-entropy of the words that the masked positions held.

    Args:
        logits: [n, V], any float dtype: vocabulary scores at the masked positions, in the order in which
            ``labels[labels != IGNORED]`` lists them.
        labels: [B, T] int64, ``IGNORED`` where a position was not masked.

    Returns:
        The sum over the n masked positions, counted by position.
    """
    masked = labels != IGNORED  # [B, T]
    total = F.cross_entropy(logits.float(), labels[masked], reduction="sum")
    return Term(total, masked.sum())
