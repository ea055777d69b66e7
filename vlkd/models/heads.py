"""The encoder with a head for each task.

Legend: B batch, T text and tag tokens, R regions, L places of a sequence (its words come first), D hidden width, V vocabulary,
A answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertOnlyMLMHead, BertPredictionHeadTransform, BertPreTrainingHeads
from transformers.utils.generic import ModelOutput

from vlkd.models.configuration import VLConfig
from vlkd.models.encoder import VLModel, VLPreTrainedModel

_TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


@dataclass
class VLOutput(ModelOutput):
    """What a model with a head returns.

    Attributes:
        hidden: [B, L, D], the last hidden state.
        logits: [B, T, V] or [n, V] (language), [B, A] (answers).
        matching_logits: [B, 2], class 1 = the picture and its text belong together; pre-training only.
    """

    hidden: Tensor | None = None
    logits: Tensor | None = None
    matching_logits: Tensor | None = None


class _LanguageModel(VLPreTrainedModel):
    """A model whose ``cls.predictions`` shares its decoder with the word embeddings."""

    _tied_weights_keys = _TIED
    cls: BertPreTrainingHeads | BertOnlyMLMHead

    def post_init(self) -> None:
        super().post_init()
        if not self.config.tie_word_embeddings:
            # The decoder then has a bias of its own and nobody reads this one, for which DistributedDataParallel would wait.
            self.cls.predictions.register_parameter("bias", None)

    def _language_logits(self, hidden: Tensor, text_length: int, positions: Tensor | None) -> Tensor:
        text = hidden[:, :text_length]  # [B, T, D]
        return self.cls.predictions(text if positions is None else text[positions])


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
    ) -> VLOutput:
        """Inputs as in :meth:`VLModel.forward`.

        ``logit_positions`` (bool [B, T]) asks for the vocabulary logits of these n tokens only, in row-major order:
        ``logits`` is then [n, V] instead of [B, T, V], the same numbers at a fraction of the cost.
        """
        hidden = self.bert(
            input_ids, token_type_ids, position_ids, regions, attention_mask, sequence_index, token_index
        )
        logits = self._language_logits(hidden, input_ids.shape[1], logit_positions)
        return VLOutput(hidden, logits, self.cls.seq_relationship(self.bert.pool(hidden)))


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
    ) -> VLOutput:
        """As :meth:`VLForPreTraining.forward`, without matching."""
        hidden = self.bert(
            input_ids, token_type_ids, position_ids, regions, attention_mask, sequence_index, token_index
        )
        return VLOutput(hidden, self._language_logits(hidden, input_ids.shape[1], logit_positions))


class _MaskTransform(nn.Module):
    """The transform of the masked language head without its decoder, named as there, so that its weights are found."""

    def __init__(self, config: VLConfig) -> None:
        super().__init__()
        self.predictions = nn.ModuleDict({"transform": BertPredictionHeadTransform(config)})

    def forward(self, hidden: Tensor) -> Tensor:
        """``hidden`` [..., D] -> [..., D]."""
        return self.predictions["transform"](hidden)


class VLForVQA(VLPreTrainedModel):
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
    ) -> VLOutput:
        """Inputs as in :meth:`VLModel.forward`; ``logits`` is [B, A], one independent score an answer."""
        hidden = self.bert(
            input_ids, token_type_ids, position_ids, regions, attention_mask, sequence_index, token_index
        )
        return VLOutput(hidden, self.classifier(self.dropout(self._summary(hidden, input_ids))))

    def _summary(self, hidden: Tensor, input_ids: Tensor) -> Tensor:
        """[B, D]: the state that answers."""
        if self.config.answer_mask_id is None:
            return self.bert.pool(hidden)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = ((input_ids == self.config.answer_mask_id) * places).argmax(dim=1)  # [B]
        state = hidden[torch.arange(len(hidden), device=hidden.device), last]
        return self.cls(state)
