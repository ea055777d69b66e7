"""How many rows each objective will count in a batch, known from the batch alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vlkd.data import IGNORED


def rows_counted(
    batch: Mapping[str, Tensor], names: tuple[str, ...], heads: int, *, layers: int = 1, pooled: bool = False
) -> Tensor:
    """The ``count`` of each named term, before any model has run.

    A trainer that accumulates needs the counts of all micro-batches before the first backward.

    Args:
        batch: what the collator gives.
        names: of the terms, see :mod:`vlkd.training.method`.
        heads: attention heads of each compared layer.
        layers: how many layers' attention is compared.
        pooled: hidden states are compared by sequence, each the mean over its counted tokens.

    Returns:
        [len(names)] int64 on the batch's device.
    """
    samples = torch.tensor(batch["input_ids"].shape[0], device=batch["input_ids"].device)

    def masked() -> Tensor:
        return (batch["mlm_labels"] != IGNORED).sum()

    def attending() -> Tensor:
        keys = batch.get("compared_attention_mask", batch["attention_mask"])
        return layers * heads * (batch["distill_mask"] & keys.any(-1)).sum()

    count_of = {
        "language": masked,
        "captioning": masked,
        "matching": lambda: samples,
        "answers": lambda: samples,
        "classes": masked if "mlm_labels" in batch else lambda: samples,
        "attention": attending,
        "hidden": lambda: (batch["distill_mask"].any(-1) if pooled else batch["distill_mask"]).sum(),
    }
    return torch.stack([count_of[name]() for name in names])
