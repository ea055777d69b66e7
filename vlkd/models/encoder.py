"""The visual-linguistic encoder: BERT over [text ; tags ; regions], as in Oscar (arXiv 2004.06165).

Legend: B batch, T text and tag tokens, R regions, L places of a sequence, D hidden width, F region feature width, n tokens that are
no padding, m places whose last state is read.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import (
    BertEmbeddings,
    BertEncoder,
    BertLayer,
    BertPooler,
    BertPreTrainedModel,
    eager_attention_forward,
)

from vlkd.models.capture import is_captured
from vlkd.models.configuration import VLConfig
from vlkd.models.packing import Packing, Reading, packed_attention


class RegionEmbeddings(nn.Module):
    """Linear(F -> D), LayerNorm, dropout. Regions get neither position nor segment: their boxes are in the feature.

    Without ``config.region_layer_norm`` there is no LayerNorm, as in Oscar without ``use_img_layernorm``.
    """

    def __init__(self, config: VLConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(config.region_dim, config.hidden_size)
        eps = config.layer_norm_eps if config.region_layer_norm_eps is None else config.region_layer_norm_eps
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=eps) if config.region_layer_norm else nn.Identity()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, regions: Tensor) -> Tensor:
        """``regions`` [B, R, F] -> [B, R, D]."""
        return self.dropout(self.LayerNorm(self.projection(regions.to(self.projection.weight.dtype))))


class VLLayer(BertLayer):
    """A layer of BERT that can leave out what nobody reads of its output."""

    def forward(self, hidden_states: Tensor, *arguments: Any, reading: Reading | None = None, **options: Any) -> Tensor:
        """As BERT's. With ``reading``, of packed tokens [1, n, D] those that are read alone, [1, m, D]."""
        if reading is None:
            return super().forward(hidden_states, *arguments, **options)
        read = reading.pick(hidden_states)  # [1, m, D]
        attended = self._attend(read, hidden_states, *arguments, reading=reading, **options)
        return self.feed_forward_chunk(self.attention.output(attended, read))

    def _attend(self, read: Tensor, tokens: Tensor, bias: Tensor, **options: Any) -> Tensor:
        """What queries of ``read`` [1, m, D] find among ``tokens`` [1, n, D]: [1, m, D]."""
        attention = self.attention.self
        parts = ((attention.query, read), (attention.key, tokens), (attention.value, tokens))
        shape = (attention.num_attention_heads, attention.attention_head_size)
        heads = (projection(x).unflatten(-1, shape).transpose(1, 2) for projection, x in parts)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
        dropout = attention.dropout.p if self.training else 0.0
        output, _ = attend(attention, *heads, bias, dropout=dropout, scaling=attention.scaling, **options)
        return output.flatten(2)


class VLEncoder(BertEncoder):
    """BERT's, of layers that can leave out what nobody reads."""

    def __init__(self, config: VLConfig) -> None:
        nn.Module.__init__(self)  # BERT's own would draw the weights of layers that are thrown away
        self.config = config
        self.layer = nn.ModuleList(VLLayer(config, layer_idx=number) for number in range(config.num_hidden_layers))


class VLPreTrainedModel(BertPreTrainedModel):
    """What all models here share: the configuration class, the ``bert.`` prefix, BERT's initialisation."""

    config_class = VLConfig
    base_model_prefix = "bert"


class VLModel(VLPreTrainedModel):
    """The encoder without a head."""

    def __init__(self, config: VLConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = BertEmbeddings(config)
        self.region_embeddings = RegionEmbeddings(config)
        self.encoder = VLEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    def embed(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        regions: Tensor,
        sequence_index: Tensor | None = None,
        token_index: Tensor | None = None,
    ) -> Tensor:
        """What the first layer reads, float [B, L, D] or, of the places ``token_index``, [n, D]; arguments as in :meth:`forward`."""
        text = self.embeddings(input_ids, token_type_ids=token_type_ids, position_ids=position_ids)  # [B, T, D]
        parts = torch.cat((text, self.region_embeddings(regions)), dim=1)  # [B, T + R, D]
        rows = token_index
        if sequence_index is not None:
            # [B], a sequence's first row of all
            first = parts.shape[1] * torch.arange(parts.shape[0], device=parts.device)
            rows = sequence_index + first[:, None]  # [B, L]
            rows = rows if token_index is None else rows.flatten()[token_index]
        # An embedding of rows is gathered fast, and its backward is deterministic on a GPU too.
        return parts if rows is None else functional.embedding(rows, parts.flatten(0, 1))

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        regions: Tensor,
        attention_mask: Tensor,
        sequence_index: Tensor | None = None,
        token_index: Tensor | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        """The last hidden state.

        On a CPU, layers that are not compiled and keep their activations compute the tokens of ``token_index`` alone. Of the
        last one, whose attention is not captured, they then compute what ``read`` asks for.

        Args:
            input_ids: int64 [B, T], text then tags.
            token_type_ids: int64 [B, T], 0 for text and 1 for tags.
            position_ids: int64 [B, T].
            regions: float [B, R, F].
            attention_mask: bool [B, L, L] or [B, 1, L], True = may attend.
            sequence_index: int64 [B, L], which row of [text ; regions], from 0 to T + R - 1, stands at each place of the
                sequence. None: they stand as they are, L = T + R.
            token_index: int64 [n], the places b·L + i that are no padding, ascending; None: not told.
            read: int64 [m], the places b·L + i whose state is asked for, none of them padding; None: all.

        Returns:
            float [B, L, D], whose rows of padding are finite and mean nothing; with ``read`` its m rows, [m, D].
        """
        packed_index = token_index if self._packs(input_ids.device) else None
        hidden = self.embed(input_ids, token_type_ids, position_ids, regions, sequence_index, packed_index)
        bias = attention_bias(attention_mask, hidden.dtype)
        if packed_index is None:
            hidden = self.encoder(hidden, attention_mask=bias).last_hidden_state
            return hidden if read is None else pick_rows(hidden, read)
        packing = Packing.of(packed_index, len(attention_mask), attention_mask.shape[-1])
        reading = None
        if read is not None and len(read) and not is_captured(self.config):
            reading = Reading.of(read, packing)
        *layers, last = self.encoder.layer
        with packed_attention(self.config):
            packed = hidden.unsqueeze(0)  # [1, n, D]
            for layer in layers:
                packed = layer(packed, bias, packing=packing)
            packed = last(packed, bias, packing=packing, reading=reading)
        if reading is not None:
            return reading.as_asked(packed)
        hidden = packing.spread(packed)
        return hidden if read is None else pick_rows(hidden, read)

    def _packs(self, device: torch.device) -> bool:
        """Whether padding is taken out of the layers.

        Compilers and CUDA graphs want few shapes. Activations that are recomputed in the backward would meet another
        attention function there.
        """
        last = cast(BertLayer, self.encoder.layer[-1])
        recomputes = self.training and getattr(last, "gradient_checkpointing", False)
        return device.type == "cpu" and not recomputes and last.output._compiled_call_impl is None

    def pool(self, hidden: Tensor) -> Tensor:
        """tanh(W h_[CLS] + b): ``hidden`` [B, L, D], or its first row alone, [B, 1, D] -> [B, D]."""
        if self.pooler is None:
            raise ValueError("this VLModel was built with add_pooling_layer=False and has no pooler")
        return self.pooler(hidden)


def pick_rows(hidden: Tensor, read: Tensor) -> Tensor:
    """The rows of hidden states [B, L, D] at the places ``read`` (int64 [m], b·L + i): [m, D]."""
    return functional.embedding(read, hidden.flatten(0, 1))


def attention_bias(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask of ``softmax(QK^T * scale + bias)``: 0 where a query may attend, -inf elsewhere.

    Every token sees itself even where ``attention_mask`` hides it, so that the softmax of a padding row stays finite.
    For the others this changes nothing: they see themselves anyway. One form serves every attention implementation
    of transformers that takes a 4-d mask, and spares the fused ones a conversion in each layer.

    Args:
        attention_mask: bool [B, L, L] or [B, 1, L], True = may attend.
        dtype: of the hidden states.

    Returns:
        ``dtype`` [B, 1, L, L].
    """
    length = attention_mask.shape[-1]
    visible = attention_mask | torch.eye(length, dtype=torch.bool, device=attention_mask.device)  # [B, L, L]
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill_(~visible, float("-inf")).unsqueeze(1)
