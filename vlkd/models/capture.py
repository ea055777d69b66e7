"""Attention queries and keys of chosen layers, taken where transformers dispatches its attention functions.

The maps are never asked for: the model keeps its fused attention, and whoever compares maps recomputes what he needs
from ``softmax(query @ key^T * scale)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import BertSelfAttention, eager_attention_forward

from vlkd.errors import VlkdError

_PREFIX = "vlkd_capture_"


class QueryKey(NamedTuple):
    """One layer's projected queries and keys, before dropout, mask and any repetition of grouped heads.

    Attributes:
        query: [B, H, L, Dh], part of the graph when gradients are recorded.
        key: [B, H, L, Dh].
        scale: factor on ``query @ key^T``.
    """

    query: Tensor
    key: Tensor
    scale: float


class CapturedAttention:
    """What the latest forward pass left: ``captured[layer]``, by the layer numbers that were asked for.

    Iterating gives the layers of which something was captured.
    """

    def __init__(self, modules: dict[int, nn.Module]) -> None:
        self._modules = modules
        self._records: dict[nn.Module, QueryKey] = {}

    def __getitem__(self, layer: int) -> QueryKey:
        return self._records[self._modules[layer]]

    def __iter__(self) -> Iterator[int]:
        return (layer for layer, module in self._modules.items() if module in self._records)

    def __contains__(self, layer: int) -> bool:
        return layer in set(self)

    def record(self, module: nn.Module, query: Tensor, key: Tensor, scale: float | None) -> None:
        """Keep the queries and keys of ``module`` if its layer was asked for."""
        if module in self._modules.values():
            self._records[module] = QueryKey(query, key, query.shape[-1] ** -0.5 if scale is None else scale)


_active: list[CapturedAttention] = []


@contextmanager
def capture_attention(model: nn.Module, layers: Sequence[int] = (-1,)) -> Iterator[CapturedAttention]:
    """Record queries and keys of the self-attention layers ``layers`` in every forward pass of ``model`` inside.

    ::

        with capture_attention(teacher) as of_teacher, capture_attention(student) as of_student:
            ...
        query, key, scale = of_student[-1]

    Outputs are bit for bit those without capture. Captures of several models, or of one model, may nest; a second
    forward pass replaces what the first one left. What was captured stays valid after the block.

    Args:
        model: a model of transformers built of BERT layers, possibly wrapped (DistributedDataParallel, ...).
        layers: indices into the model's self-attention layers; negative ones count from the last.

    Raises:
        VlkdError: a layer that the model does not have.
    """
    if not layers:  # no module is looked at in vain, step after step
        yield CapturedAttention({})
        return
    attentions = [module for module in model.modules() if isinstance(module, BertSelfAttention)]
    outside = [layer for layer in layers if not -len(attentions) <= layer < len(attentions)]
    if outside:
        raise VlkdError(
            f"The model has {len(attentions)} self-attention layers, but layer {outside[0]} was asked for: "
            f"name layers from {-len(attentions)} to {len(attentions) - 1}."
        )
    captured = CapturedAttention({layer: attentions[layer] for layer in layers})
    configs = {id(module.config): module.config for module in model.modules() if isinstance(module, PreTrainedModel)}
    original = {key: config._attn_implementation for key, config in configs.items()}
    _active.append(captured)
    try:
        for config in configs.values():
            config._attn_implementation = _capturing(config._attn_implementation or "eager")
        yield captured
    finally:
        for key, config in configs.items():
            config._attn_implementation = original[key]
        _active.remove(captured)


def is_captured(config: PretrainedConfig) -> bool:
    """Whether queries and keys of modules with this configuration are recorded."""
    return (config._attn_implementation or "").startswith(_PREFIX)


def _capturing(implementation: str) -> str:
    """The registered name of ``implementation`` with recording around it."""
    if implementation.startswith(_PREFIX):
        return implementation
    name = _PREFIX + implementation
    if name not in ALL_ATTENTION_FUNCTIONS:
        inner = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        ALL_ATTENTION_FUNCTIONS.register(name, partial(_record_and_attend, inner))
        if implementation in ALL_MASK_ATTENTION_FUNCTIONS:
            # Without a mask function of its own, transformers would drop the 2-d masks of this implementation.
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    return name


def _record_and_attend(
    inner: Callable[..., tuple[Tensor, Tensor | None]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: object,
) -> tuple[Tensor, Tensor | None]:
    for captured in _active:
        captured.record(module, query, key, scaling)
    return inner(module, query, key, value, attention_mask, scaling=scaling, **options)
