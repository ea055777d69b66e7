"""The configuration of the visual-linguistic encoder: BERT's, plus what regions and answers need."""

from __future__ import annotations

from typing import Any

from transformers import BertConfig


class VLConfig(BertConfig):
    """Settings of a :class:`~vlkd.models.VLModel`; everything not listed here is :class:`transformers.BertConfig`'s.

    Attributes:
        region_dim: width F of a region feature, box geometry included (Oscar: 2048 + 6 = 2054).
        num_answers: size A of the answer vocabulary of :class:`~vlkd.models.VLForVQA`; 0 for the other models.
        answer_mask_id: token id of the [MASK] behind a question, from whose state ``VLForVQA`` answers; None answers
            from [CLS] through the pooler.
        region_layer_norm: whether a LayerNorm follows the projection of region features (Oscar: ``use_img_layernorm``).
        region_layer_norm_eps: its epsilon; None takes ``layer_norm_eps``.
        card: what the model is, as :class:`~vlkd.models.ModelCard` has it; None of one that no stage has trained.
    """

    model_type = "vlkd"

    region_dim: int = 2054
    num_answers: int = 0
    answer_mask_id: int | None = None
    region_layer_norm: bool = True
    region_layer_norm_eps: float | None = None
    card: dict[str, Any] | None = None
