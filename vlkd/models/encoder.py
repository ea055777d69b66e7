"""The visual-linguistic encoder: BERT over [text ; tags ; regions], as in Oscar (arXiv 2004.06165).

Legend: B batch, T text and tag tokens, R regions, L places of a sequence, D hidden width, F region feature width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.bert.modeling_bert import (
    BertEmbeddings,
    BertEncoder,
    BertLayer,
    BertPooler,
    BertPreTrainedModel,
)

from vlkd.models.configuration import VLConfig
from vlkd.models.packing import Packing, packed_attention


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
        self.encoder = BertEncoder(config)
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
    ) -> Tensor:
        """What the first layer reads, float [B, L, D]; arguments as in :meth:`forward`."""
        text = self.embeddings(input_ids, token_type_ids=token_type_ids, position_ids=position_ids)  # [B, T, D]
        parts = torch.cat((text, self.region_embeddings(regions)), dim=1)  # [B, T + R, D]
        if sequence_index is None:
            return parts
        first = parts.shape[1] * torch.arange(parts.shape[0], device=parts.device)  # [B], a sequence's first row of all
        # An embedding of rows is gathered fast, and its backward is deterministic on a GPU too.
        return functional.embedding(sequence_index + first[:, None], parts.flatten(0, 1))

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        regions: Tensor,
        attention_mask: Tensor,
        sequence_index: Tensor | None = None,
        token_index: Tensor | None = None,
    ) -> Tensor:
        """The last hidden state.

        On a CPU, layers that are not compiled and keep their activations compute the tokens of ``token_index`` alone.

        Args:
            input_ids: int64 [B, T], text then tags.
            token_type_ids: int64 [B, T], 0 for text and 1 for tags.
            position_ids: int64 [B, T].
            regions: float [B, R, F].
            attention_mask: bool [B, L, L] or [B, 1, L], True = may attend.
            sequence_index: int64 [B, L], which row of [text ; regions], from 0 to T + R - 1, stands at each place of the
                sequence. None: they stand as they are, L = T + R.
            token_index: int64 [n], the places b·L + i that are no padding, ascending; None: not told.

        Returns:
            float [B, L, D]. Rows of padding are finite and mean nothing.
        """
        hidden = self.embed(input_ids, token_type_ids, position_ids, regions, sequence_index)
        bias = attention_bias(attention_mask, hidden.dtype)
        if token_index is None or not self._packs(hidden.device):
            return self.encoder(hidden, attention_mask=bias).last_hidden_state
        packing = Packing.of(token_index, *hidden.shape[:2])
        with packed_attention(self.config):
            packed = self.encoder(packing.pack(hidden), attention_mask=bias, packing=packing).last_hidden_state
        return packing.spread(packed)

    def _packs(self, device: torch.device) -> bool:
        """Whether padding is taken out of the layers.

        Compilers and CUDA graphs want few shapes. Activations that are recomputed in the backward would meet another
        attention function there.
        """
        last = cast(BertLayer, self.encoder.layer[-1])
        recomputes = self.training and getattr(last, "gradient_checkpointing", False)
        return device.type == "cpu" and not recomputes and last.output._compiled_call_impl is None

    def pool(self, hidden: Tensor) -> Tensor:
        """tanh(W h_[CLS] + b): ``hidden`` [B, L, D] -> [B, D]."""
        if self.pooler is None:
            raise ValueError("this VLModel was built with add_pooling_layer=False and has no pooler")
        return self.pooler(hidden)


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
