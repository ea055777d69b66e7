"""The encoder with a head for each task.

Legend: B batch, T text and tag tokens, R regions, L places of a sequence (its words come first), D hidden width, V vocabulary,
A answers, m places whose last state a head reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertOnlyMLMHead, BertPredictionHeadTransform, BertPreTrainingHeads
from transformers.utils.generic import ModelOutput

from vlkd.models.configuration import VLConfig
from vlkd.models.encoder import VLModel, VLPreTrainedModel, pick_rows

_TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


@dataclass
class VLOutput(ModelOutput):
    """What a model with a head returns.

    Attributes:
        hidden: [B, L, D], the last hidden state. Without ``all_hidden``, it is 0 where the head does not read it, and has no
            gradient.
        logits: [B, T, V] or [n, V] (language), [B, A] (answers).
        matching_logits: [B, 2], class 1 = the picture and its text belong together; pre-training only.
    """

    hidden: Tensor | None = None
    logits: Tensor | None = None
    matching_logits: Tensor | None = None


class _HeadedModel(VLPreTrainedModel):
    """An encoder whose head reads some places of the last hidden state."""

    bert: VLModel

    def _encode(
        self, read: Tensor, all_hidden: bool, mask_shape: torch.Size, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The last hidden state, [B, L, D], and its rows at the places ``read`` (int64 [m], b·L + i), [m, D].

        Without ``all_hidden`` there is nothing but these in the former, see :class:`VLOutput`. ``inputs`` are the arguments of
        :meth:`VLModel.forward` in its order, and ``mask_shape`` is that of the attention mask.
        """
        if all_hidden:
            hidden = self.bert(*inputs)
            return hidden, pick_rows(hidden, read)
        rows = self.bert(*inputs, read=read)
        batch, _, length = mask_shape
        hidden = rows.new_zeros(batch * length, rows.shape[1]).index_copy_(0, read, rows.detach())
        return hidden.unflatten(0, (batch, length)), rows


class _LanguageModel(_HeadedModel):
    """A model whose ``cls.predictions`` shares its decoder with the word embeddings."""

    _tied_weights_keys = _TIED
    cls: BertPreTrainingHeads | BertOnlyMLMHead

    def post_init(self) -> None:
        super().post_init()
        if not self.config.tie_word_embeddings:
            # The decoder then has a bias of its own and nobody reads this one, for which DistributedDataParallel would wait.
            self.cls.predictions.register_parameter("bias", None)

    def _text_logits(self, hidden: Tensor, input_ids: Tensor) -> Tensor:
        """[B, T, V]: of all text and tags."""
        return self.cls.predictions(hidden[:, : input_ids.shape[1]])


class VLForPreTraining(_LanguageModel):
    """Masked language modelling and image-text matching (L_VLP)."""

    cls: BertPreTrainingHeads

    def __init__(self, config: VLConfig) -> None:
        super().__init__(config)
        self.bert = VLModel(config)
        self.cls = BertPreTrainingHeads(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        regions: Tensor,
        attention_mask: Tensor,
        sequence_index: Tensor | None = None,
        token_index: Tensor | None = None,
        logit_positions: Tensor | None = None,
        all_hidden: bool = True,
    ) -> VLOutput:
        """Inputs as in :meth:`VLModel.forward`.

        ``logit_positions`` (bool [B, T]) asks for the vocabulary logits of these n tokens only, in row-major order:
        ``logits`` is then [n, V] instead of [B, T, V], the same numbers at a fraction of the cost. Without ``all_hidden`` the
        last layer may compute nothing but what these and [CLS] need.
        """
        inputs = (input_ids, token_type_ids, position_ids, regions, attention_mask, sequence_index, token_index)
        if logit_positions is None:
            hidden = self.bert(*inputs)
            return VLOutput(
                hidden, self._text_logits(hidden, input_ids), self.cls.seq_relationship(self.bert.pool(hidden))
            )
        first = _first_places(attention_mask)  # [B], of [CLS]
        read = torch.cat((first, _word_places(logit_positions, first)))
        hidden, rows = self._encode(read, all_hidden, attention_mask.shape, *inputs)
        of_first, of_words = rows.split((len(first), len(rows) - len(first)))
        matching = self.cls.seq_relationship(self.bert.pool(of_first.unsqueeze(1)))
        return VLOutput(hidden, self.cls.predictions(of_words), matching)


class VLForCaptioning(_LanguageModel):
    """The masked language head over a caption that sees only its past; the collator's mask makes it so."""

    def __init__(self, config: VLConfig) -> None:
        super().__init__(config)
        self.bert = VLModel(config, add_pooling_layer=False)
        self.cls = BertOnlyMLMHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        regions: Tensor,
        attention_mask: Tensor,
        sequence_index: Tensor | None = None,
        token_index: Tensor | None = None,
        logit_positions: Tensor | None = None,
        all_hidden: bool = True,
    ) -> VLOutput:
        """As :meth:`VLForPreTraining.forward`, without matching."""
        inputs = (input_ids, token_type_ids, position_ids, regions, attention_mask, sequence_index, token_index)
        if logit_positions is None:
            hidden = self.bert(*inputs)
            return VLOutput(hidden, self._text_logits(hidden, input_ids))
        hidden, rows = self._encode(
            _word_places(logit_positions, _first_places(attention_mask)), all_hidden, attention_mask.shape, *inputs
        )
        return VLOutput(hidden, self.cls.predictions(rows))


def _first_places(attention_mask: Tensor) -> Tensor:
    """int64 [B], the place b·L of the first token of each sequence."""
    return attention_mask.shape[-1] * torch.arange(len(attention_mask), device=attention_mask.device)


def _word_places(chosen: Tensor, first: Tensor) -> Tensor:
    """int64 [n], the places b·L + i of chosen words (bool [B, T]), in row-major order; ``first`` [B] are the places b·L."""
    sequence, word = chosen.nonzero(as_tuple=True)
    return first[sequence] + word


class _MaskTransform(nn.Module):
    """The transform of the masked language head without its decoder, named as there, so that its weights are found."""

    def __init__(self, config: VLConfig) -> None:
        super().__init__()
        self.predictions = nn.ModuleDict({"transform": BertPredictionHeadTransform(config)})

    def forward(self, hidden: Tensor) -> Tensor:
        """``hidden`` [..., D] -> [..., D]."""
        return self.predictions["transform"](hidden)


class VLForVQA(_HeadedModel):
    """A token's state -> dropout -> linear over the answer vocabulary.

    The token is [CLS], through the pooler, as in Oscar; or, with ``config.answer_mask_id``, the last [MASK] of the text,
    through the transform of the masked language head, as in VL-BERT (arXiv 1908.08530). The latter starts from
    pre-trained weights all the way, the former from a pooler that has only seen image-text matching.
    """

    def __init__(self, config: VLConfig) -> None:
        super().__init__(config)
        if config.num_answers < 1:
            raise ValueError(f"VLForVQA needs num_answers >= 1, but the configuration has {config.num_answers}")
        answers_from_mask = config.answer_mask_id is not None
        self.bert = VLModel(config, add_pooling_layer=not answers_from_mask)
        if answers_from_mask:
            self.cls = _MaskTransform(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_answers)
        self.post_init()

    @torch.no_grad()
    def start_answers(self, log_odds: Tensor, words: Sequence[Sequence[int]]) -> None:
        """Start a new classifier as a guesser.

        Its bias becomes the answers' log-odds [A]. Where a [MASK] answers, each answer's weights become the mean of the
        word embeddings of its token ids ``words[a]``: the masked language head, whose decoder is these embeddings,
        then predicts the answers as words.
        """
        self.classifier.bias.copy_(log_odds)
        if self.config.answer_mask_id is not None:
            embeddings = self.bert.get_input_embeddings().weight
            rows = [embeddings[torch.tensor(ids, device=embeddings.device)].mean(dim=0) for ids in words]
            self.classifier.weight.copy_(torch.stack(rows))

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        regions: Tensor,
        attention_mask: Tensor,
        sequence_index: Tensor | None = None,
        token_index: Tensor | None = None,
        all_hidden: bool = True,
    ) -> VLOutput:
        """Inputs as in :meth:`VLModel.forward`; ``logits`` is [B, A], one independent score an answer.

        Without ``all_hidden`` the last layer may compute nothing but the state that answers.
        """
        inputs = (input_ids, token_type_ids, position_ids, regions, attention_mask, sequence_index, token_index)
        places = _first_places(attention_mask) + self._answering(input_ids)
        hidden, rows = self._encode(places, all_hidden, attention_mask.shape, *inputs)  # [B, L, D], [B, D]
        summary = self.bert.pool(rows.unsqueeze(1)) if self.config.answer_mask_id is None else self.cls(rows)
        return VLOutput(hidden, self.classifier(self.dropout(summary)))

    def _answering(self, input_ids: Tensor) -> Tensor:
        """int64 [B], the word of each sequence whose state answers; the first one where there is no [MASK]."""
        if self.config.answer_mask_id is None:
            return input_ids.new_zeros(len(input_ids))
        word = torch.arange(input_ids.shape[1], device=input_ids.device)
        return ((input_ids == self.config.answer_mask_id) * word).argmax(dim=1)
