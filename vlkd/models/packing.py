"""Batches without their padding: all of a layer but its attention computes real tokens alone.

And a last layer without the tokens that nobody reads: keys and values are made of all, the rest of those that are read.

Legend: B sequences, L places of each, n real tokens of all of them, m tokens that are read, Q the most of one sequence, H heads,
Dh head width, D hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

_PREFIX = "vlkd_packed_"


class Packing(NamedTuple):
    """Where the real tokens of a batch are.

    Attributes:
        tokens: int64 [n], their places b·L + i, ascending.
        places: int64 [B, L], which of the n tokens stands at each place. A place of padding names the first one: its row is
            finite, and no loss may read it.
    """

    tokens: Tensor
    places: Tensor

    @classmethod
    def of(cls, tokens: Tensor, sequences: int, length: int) -> Packing:
        """The packing of ``tokens`` in a batch of ``sequences`` x ``length``."""
        places = torch.zeros(sequences * length, dtype=torch.int64, device=tokens.device)
        places[tokens] = torch.arange(len(tokens), device=tokens.device)
        return cls(tokens, places.view(sequences, length))

    def pack(self, rows: Tensor) -> Tensor:
        """[B, L, D] -> [1, n, D]."""
        # Rows are gathered as those of an embedding are, forward and backward.
        return functional.embedding(self.tokens, rows.flatten(0, 1)).unsqueeze(0)

    def spread(self, rows: Tensor) -> Tensor:
        """[1, n, D] -> [B, L, D]."""
        return cast(Tensor, _Spread.apply(rows.flatten(0, 1), self.tokens, self.places))


class _Spread(torch.autograd.Function):
    """Rows [n, D] to their places [B, L, D]. Back come the gradients of the tokens' places alone, for no loss reads padding.

    They are then gathered, each once, which takes a third of adding them up as the backward of an embedding does.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        return functional.embedding(places, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (tokens,) = ctx.saved_tensors
        return gradients[0].flatten(0, 1).index_select(0, tokens), None, None


class Reading(NamedTuple):
    """Which tokens of a packed batch are read.

    Attributes:
        rows: int64 [m], their rows among the n tokens, ascending, each once.
        queries: where they stand among the queries of attention, [B, Q].
        places: int64 [B, Q], the place b·L + i of each query.
        order: int64, which of the m was asked for first, which next, and so on.
    """

    rows: Tensor
    queries: Packing
    places: Tensor
    order: Tensor

    @classmethod
    def of(cls, asked: Tensor, packing: Packing) -> Reading:
        """The reading of the places ``asked`` (int64, b·L + i in any order, at least one) of a batch packed by ``packing``."""
        read = torch.zeros_like(packing.places, dtype=torch.bool)  # [B, L]
        read.view(-1)[asked] = True
        index = read.flatten().nonzero().flatten()  # [m]
        most = int(read.sum(1).max())
        first = most * torch.arange(len(read), device=read.device)  # [B], a sequence's first query
        slots = first[:, None] + read.cumsum(1) - 1  # [B, L]
        queries = Packing.of(slots.flatten()[index], len(read), most)
        order = read.flatten().cumsum(0)[asked] - 1
        return cls(packing.places.flatten()[index], queries, index[queries.places], order)

    def pick(self, rows: Tensor) -> Tensor:
        """[1, n, D] -> [1, m, D]."""
        return functional.embedding(self.rows, rows.flatten(0, 1)).unsqueeze(0)

    def mask(self, bias: Tensor) -> Tensor:
        """What the queries may see: [B, 1, L, L] -> [B, 1, Q, L]."""
        return functional.embedding(self.places, bias.flatten(0, 2)).unsqueeze(1)

    def as_asked(self, rows: Tensor) -> Tensor:
        """[1, m, D] -> the rows in the order in which they were asked for."""
        return functional.embedding(self.order, rows.flatten(0, 1))


@contextmanager
def packed_attention(config: PretrainedConfig) -> Iterator[None]:
    """Attention of modules with this configuration takes the options ``packing`` and ``reading``, as the layers pass them on.

    Their queries, keys and values are then [1, H, n, Dh]. They are laid out as [B, H, L, Dh], with the mask's L, for the attention
    function that was chosen, and whoever records what that reads; its output [B, L, H, Dh] becomes [1, n, H, Dh]. With
    ``reading``, queries and output have m tokens and Q places.
    """
    chosen = config._attn_implementation or "eager"
    config._attn_implementation = _packing(chosen)
    try:
        yield
    finally:
        config._attn_implementation = chosen


def _packing(implementation: str) -> str:
    """The registered name of ``implementation`` for packed tokens."""
    name = _PREFIX + implementation
    if name not in ALL_ATTENTION_FUNCTIONS:
        inner = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        ALL_ATTENTION_FUNCTIONS.register(name, partial(_attend, inner))
        if implementation in ALL_MASK_ATTENTION_FUNCTIONS:
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    return name


def _attend(
    inner: Callable[..., tuple[Tensor, Tensor | None]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    reading: Reading | None = None,
    **options: object,
) -> tuple[Tensor, Tensor | None]:
    queries = packing
    if reading is not None:
        queries = reading.queries
        attention_mask = None if attention_mask is None else reading.mask(attention_mask)
    heads = (_laid_out(where, x) for where, x in ((queries, query), (packing, key), (packing, value)))
    output, weights = inner(module, *heads, attention_mask, **options)  # [B, L, H, Dh]
    return queries.pack(output.flatten(2)).unflatten(2, output.shape[2:]), weights


def _laid_out(packing: Packing, heads: Tensor) -> Tensor:
    """[1, H, n, Dh] -> [B, H, L, Dh]."""
    rows = heads.transpose(1, 2)  # [1, n, H, Dh]
    return packing.spread(rows.flatten(2)).unflatten(2, rows.shape[2:]).transpose(1, 2)
