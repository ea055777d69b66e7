"""The frozen teacher of a distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vlkd.models import capture_attention
from vlkd.training.trained import Forward, inputs_of


class Teacher:
    """A model in eval mode without gradients, outside whatever the trainer wraps.

    Args:
        model: moved to ``device`` and frozen.
        with_logits: the losses need the output of its head; else only its encoder runs.
        layers: whose attention is compared, one for each compared layer of the student and in the order of those.
    """

    def __init__(
        self, model: PreTrainedModel, device: torch.device, with_logits: bool, layers: tuple[int, ...] = (-1,)
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        cast(nn.Module, model).to(device)
        self.with_logits = with_logits
        self.layers = layers

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor]) -> Forward:
        inputs = inputs_of(batch, "teacher")
        with capture_attention(self.model, self.layers) as captured:
            if self.with_logits:
                output = self.model(**inputs)
                found = Forward(output.hidden, logits=output.logits)
            else:
                inputs.pop("logit_positions", None)
                found = Forward(self.model.base_model(**inputs))
        *earlier, last = (captured[layer] for layer in self.layers)
        return found._replace(attention=last, earlier_attention=tuple(earlier))
