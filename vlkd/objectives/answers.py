"""Visual question answering as multi-label classification."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.objectives.term import Term


def answer_classification(logits: Tensor, answers: Tensor) -> Term:
    """Binary cross-entropy against soft scores, counted by question.

    The mean over questions of the sum over answers, which is Oscar's "mean binary cross-entropy times the number of
    labels".

    Args:
        logits: [B, A], any float dtype.
        answers: [B, A] in [0, 1], the soft score of every answer.
    """
    total = F.binary_cross_entropy_with_logits(logits.float(), answers.float(), reduction="sum")
    return Term(total, torch.tensor(logits.shape[0], device=logits.device))
