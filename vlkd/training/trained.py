"""The module that the optimizer trains: a model, and with distillation its projection φ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import BertLayer

from vlkd.data import IGNORED, model_inputs
from vlkd.models import QueryKey, capture_attention

# B samples, L tokens, D hidden width, E the teacher's hidden width, V vocabulary, A answers, n masked positions.

Role = Literal["teacher", "student"]

# The default of fields that not every stage fills. They are typed as present: whoever reads one asked for it.
_ABSENT: Any = None


class Forward(NamedTuple):
    """What one forward pass leaves for the losses.

    Attributes:
        hidden: [B, L, D], the last hidden state. Of a student whose hidden states are not distilled, it may be 0 in the rows that its
            head does not read.
        attention: queries and keys of the last layer, when attention is compared.
        earlier_attention: those of the layers before it that are compared too, in their order.
        logits: [n, V] or [B, A], when a loss needs them.
        matching_logits: [B, 2], pre-training only.
        projected: [B, L, E], φ(hidden), when hidden states are distilled.
    """

    hidden: Tensor
    attention: QueryKey = _ABSENT
    logits: Tensor = _ABSENT
    matching_logits: Tensor = _ABSENT
    projected: Tensor = _ABSENT
    earlier_attention: tuple[QueryKey, ...] = ()

    @property
    def compared_attention(self) -> tuple[QueryKey, ...]:
        """Queries and keys of every compared layer, the last one last."""
        return (*self.earlier_attention, self.attention)


class Trained(nn.Module):
    """A model and, when it is distilled on hidden states, the projection to its teacher's width.

    Args:
        model: teacher or student, with the task's head.
        role: whose region features it reads.
        teacher_width: E, the projection's output; None leaves the projection out.
        attends: its attention is compared to a teacher's.
        layers: whose attention that is, the last one last.

    Attributes:
        layer_input: [B, L, D], what the model's last layer read in the latest forward pass, at which the ledger measures
            gradients. Of the attention loss, only the last layer's part passes here, not that of the layers before
            it. It is no output of the forward, because DistributedDataParallel hands out copies of those, through
            which no loss is computed.
    """

    layer_input: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        role: Role,
        teacher_width: int | None = None,
        attends: bool = False,
        layers: tuple[int, ...] = (-1,),
    ) -> None:
        super().__init__()
        self.model = model
        self.role: Role = role
        self.layers = layers if attends else ()
        self.projection = None
        if teacher_width is not None:
            self.projection = nn.Linear(model.config.hidden_size, teacher_width)
        last = [module for module in model.modules() if isinstance(module, BertLayer)][-1]
        last.register_forward_pre_hook(self._keep_layer_input)

    def forward(self, batch: Mapping[str, Tensor]) -> Forward:
        with capture_attention(self.model, self.layers) as captured:
            output = self.model(**inputs_of(batch, self.role), all_hidden=self.projection is not None)
        return Forward(
            hidden=output.hidden,
            attention=captured[self.layers[-1]] if self.layers else _ABSENT,
            logits=output.logits,
            matching_logits=output.matching_logits,
            projected=self.projection(output.hidden) if self.projection is not None else _ABSENT,
            earlier_attention=tuple(captured[layer] for layer in self.layers[:-1]),
        )

    def _keep_layer_input(self, _layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self.layer_input = arguments[0]


def inputs_of(batch: Mapping[str, Tensor], role: Role) -> dict[str, Tensor]:
    """The arguments of a model's forward: its own detector's regions, and logits at the masked positions only."""
    inputs = model_inputs(dict(batch), role)
    if "mlm_labels" in batch:
        inputs["logit_positions"] = batch["mlm_labels"] != IGNORED
    return inputs
