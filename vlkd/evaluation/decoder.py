"""The captioner as a next-word scorer, one step at a time, with cached keys and values.

The masked-token captioner predicts word t by reading [MASK] at position t, which sees the words before it, the
tags and the regions. Neither these nor earlier words ever see [MASK] or a later word, so their keys and values
are computed once: a step passes the latest word, whose states are kept, and [MASK], whose states are dropped.

Letters: P pictures, C places behind [CLS] (tags and regions), N hypotheses, t words so far, D hidden width, V vocabulary.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.bert.modeling_bert import BertEncoder

from vlkd.data import Batch
from vlkd.models import VLForCaptioning

# The encoder's argument for cached keys and values: `cache`, which transformers before 5.24 called `past_key_values`.
_CACHE = "cache" if "cache" in inspect.signature(BertEncoder.forward).parameters else "past_key_values"


class CachedDecoder:
    """Next-token log probabilities of one batch of pictures; what ``beam_search`` calls.

    Args:
        model: the captioner, in eval mode.
        batch: model inputs of prompts, whose text is [CLS] alone.
        start: [CLS].
        mask: [MASK].
        forbidden: ids that are never generated.
    """

    def __init__(
        self,
        model: VLForCaptioning,
        batch: Batch,
        *,
        start: int,
        mask: int,
        forbidden: Tensor,
    ) -> None:
        self._model = model
        self._start, self._mask, self._forbidden = start, mask, forbidden
        self._cache = DynamicCache()
        # What [CLS] sees behind itself: padding and a picture that is kept from the model stay hidden.
        self._visible = batch["attention_mask"][:, 0, 1:]  # [P, C]
        self._read_context(batch)

    def _read_context(self, batch: Batch) -> None:
        """Fill the cache with the keys and values of tags and regions, which see each other and no caption."""
        bert = self._model.bert
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("attention_mask", "token_index")}
        context = bert.embed(**inputs)[:, 1:]  # [P, C, D]
        seen = self._visible[:, None, :] | torch.eye(context.shape[1], dtype=torch.bool, device=context.device)
        bert.encoder(context, attention_mask=_bias(seen, context.dtype), **{_CACHE: self._cache})

    def __call__(self, tokens: Tensor, pictures: Tensor, parents: Tensor) -> Tensor:
        """``tokens`` [N, t], ``pictures`` [N], ``parents`` [N] -> log probabilities [N, V], fp32."""
        bert, count, length = self._model.bert, tokens.shape[0], tokens.shape[1]
        self._cache.batch_select_indices(parents)
        latest = tokens[:, -1] if length else tokens.new_full((count,), self._start)
        pair = torch.stack([latest, torch.full_like(latest, self._mask)], dim=1)  # [N, 2]
        positions = torch.arange(length, length + 2, device=tokens.device).expand(count, 2)
        states = bert.embeddings(pair, token_type_ids=torch.zeros_like(pair), position_ids=positions)
        hidden = bert.encoder(
            states, attention_mask=self._step_bias(pictures, length, states.dtype), **{_CACHE: self._cache}
        ).last_hidden_state  # [N, 2, D]
        self._cache.crop(-1)
        logits = self._model.cls.predictions(hidden[:, 1]).float()  # [N, V]
        return logits.index_fill(1, self._forbidden, -torch.inf).log_softmax(dim=1)

    def _step_bias(self, pictures: Tensor, length: int, dtype: torch.dtype) -> Tensor:
        """[N, 1, 2, C + t + 2]: both tokens see context and earlier words; the word does not see [MASK]."""
        context = self._visible[pictures][:, None, :].expand(-1, 2, -1)  # [N, 2, C]
        caption = context.new_ones(context.shape[0], 2, length + 2)
        caption[:, 0, -1] = False
        return _bias(torch.cat([context, caption], dim=2), dtype)


def _bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, Q, K] of ``visible`` [B, Q, K]."""
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill_(~visible, -torch.inf).unsqueeze(1)
