"""L_CLS: the student's class distribution follows the teacher's (arXiv 2104.02096; fine-tuning only)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.objectives.term import Term


def class_distillation(logits_s: Tensor, logits_t: Tensor, temperature: float = 1.0) -> Term:
    """KL(softmax(z_t / temperature) ‖ softmax(z_s / temperature)), counted by row.

    The paper writes the cross-entropy. The two differ by the teacher's entropy, which has no gradient; the divergence
    is 0 where the student agrees. There is no factor of temperature².

    Args:
        logits_s: [n, C] of the student: vocabulary scores at the masked caption positions, or answer scores.
        logits_t: [n, C] of the teacher, same rows; gets no gradient.
        temperature: the paper's τ_d.
    """
    log_p = F.log_softmax(logits_s.float() / temperature, dim=-1)  # [n, C]
    log_t = F.log_softmax(logits_t.detach().float() / temperature, dim=-1)  # [n, C]
    total = F.kl_div(log_p, log_t, reduction="sum", log_target=True)
    return Term(total, torch.tensor(logits_s.shape[0], device=logits_s.device))
