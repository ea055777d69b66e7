"""The method: which losses a step has, and how each is computed from the two forward passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vlkd.objectives import (
    Term,
    answer_classification,
    attention_transfer,
    class_distillation,
    hidden_mse,
    hidden_nce,
    image_text_matching,
    masked_language,
    mean_over_tokens,
    rows_counted,
)
from vlkd.recipes import Distillation
from vlkd.training.trained import Forward
from vlkd_kernels import RingQueue


@dataclass(frozen=True)
class Method:
    """The losses of a stage.

    L = L_task + α L_ATT + β L_HID + γ L_CLS, where L_task is masked language + image-text matching in pre-training, and
    the part that distils needs a teacher.

    Attributes:
        weights: name → weight of every term that takes part.
        heads: attention heads of the compared layers.
        distillation: settings of L_ATT, L_HID and L_CLS.
        queue: the negatives of L_HID, when it takes part and contrasts.
        layers: how many of the student's layers have their attention compared. The ledger, which measures gradients at
            the input of the last one, sees of L_ATT that layer's part alone.
    """

    weights: Mapping[str, float]
    heads: int
    distillation: Distillation
    queue: RingQueue | None = None
    layers: int = 1

    @property
    def fused(self) -> tuple[str, ...]:
        """The terms that a fused operator computes."""
        names = ("attention", "hidden") if self.distillation.hidden == "nce" else ("attention",)
        return tuple(name for name in names if name in self.weights)

    def rows_counted(self, batch: Mapping[str, Tensor]) -> Tensor:
        """[terms], the ``count`` that :meth:`terms` will give each term of this batch."""
        pooled = self.distillation.pooling == "mean"
        return rows_counted(batch, tuple(self.weights), self.heads, layers=self.layers, pooled=pooled)

    def hidden_rows(self, hidden: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What L_HID compares of hidden states [B, L, E], and which of it counts: [B, N, E] and bool [B, N].

        N is L, or 1 when each sequence is one row, the mean over its tokens.
        """
        counted = batch["distill_mask"]
        return (hidden, counted) if self.distillation.pooling == "token" else mean_over_tokens(hidden, counted)

    def terms(self, student: Forward, teacher: Forward | None, batch: Mapping[str, Tensor]) -> dict[str, Term]:
        """Every term of the loss, in the order of ``weights``."""
        return {name: getattr(self, f"_{name}")(student, teacher, batch) for name in self.weights}

    def fused_term(
        self, name: str, student: Forward, teacher: Forward, batch: Mapping[str, Tensor], backend: str | None = None
    ) -> Term:
        """A term of :attr:`fused` by itself, computed by ``backend``; None picks as in :meth:`terms`."""
        return getattr(self, f"_{name}")(student, teacher, batch, backend=backend)

    # One method a term, named like it; the terms that need a teacher take part only where there is one.

    def _language(self, student: Forward, teacher: Forward | None, batch: Mapping[str, Tensor]) -> Term:
        return masked_language(student.logits, batch["mlm_labels"])

    _captioning = _language

    def _matching(self, student: Forward, teacher: Forward | None, batch: Mapping[str, Tensor]) -> Term:
        return image_text_matching(student.matching_logits, batch["matched"])

    def _answers(self, student: Forward, teacher: Forward | None, batch: Mapping[str, Tensor]) -> Term:
        return answer_classification(student.logits, batch["answers"])

    def _attention(
        self, student: Forward, teacher: Forward, batch: Mapping[str, Tensor], backend: str | None = None
    ) -> Term:
        layers = [
            attention_transfer(
                of_student,
                of_teacher,
                attention_mask=batch.get("compared_attention_mask", batch["attention_mask"]),
                query_mask=batch["distill_mask"],
                distance=self.distillation.distance,
                backend=backend,
            )
            for of_student, of_teacher in zip(student.compared_attention, teacher.compared_attention, strict=True)
        ]
        total, count = (
            torch.stack(parts).sum() for parts in zip(*((each.sum, each.count) for each in layers), strict=True)
        )
        return Term(total, count)

    def _hidden(
        self, student: Forward, teacher: Forward, batch: Mapping[str, Tensor], backend: str | None = None
    ) -> Term:
        projected, counted = self.hidden_rows(student.projected, batch)
        hidden, _ = self.hidden_rows(teacher.hidden, batch)
        if self.distillation.hidden == "mse":
            return hidden_mse(projected, hidden, token_mask=counted)
        assert self.queue is not None
        return hidden_nce(
            projected,
            hidden,
            self.queue,
            token_mask=counted,
            picture_ids=batch["picture_ids"],
            temperature=self.distillation.temperature,
            in_batch=self.distillation.in_batch,
            backend=backend,
        )

    def _classes(self, student: Forward, teacher: Forward, batch: Mapping[str, Tensor]) -> Term:
        return class_distillation(student.logits, teacher.logits, self.distillation.class_temperature)
