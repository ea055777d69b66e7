"""The method: which losses a step has, and how each is computed from the two forward passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from vlkd.objectives import (
    Term,
    answer_classification,
    attention_transfer,
    class_distillation,
    hidden_nce,
    image_text_matching,
    masked_language,
)
from vlkd.recipes import Distillation
from vlkd.training.trained import Forward
from vlkd_kernels import RingQueue

#: The terms that a fused operator computes.
FUSED = ("attention", "hidden")


@dataclass(frozen=True)
class Method:
    """The losses of a stage.

    L = L_task + α L_ATT + β L_HID + γ L_CLS, where L_task is masked language + image-text matching in pre-training, and
    the part that distils needs a teacher.

    Attributes:
        weights: name → weight of every term that takes part.
        heads: attention heads of the compared layers.
        distillation: settings of L_ATT, L_HID and L_CLS.
        queue: the negatives of L_HID, when it takes part.
    """

    weights: Mapping[str, float]
    heads: int
    distillation: Distillation
    queue: RingQueue | None = None

    def terms(self, student: Forward, teacher: Forward | None, batch: Mapping[str, Tensor]) -> dict[str, Term]:
        """Every term of the loss, in the order of ``weights``."""
        return {name: getattr(self, f"_{name}")(student, teacher, batch) for name in self.weights}

    def reference(self, name: str, student: Forward, teacher: Forward, batch: Mapping[str, Tensor]) -> Term:
        """A term of :data:`FUSED` once more, by its reference in plain PyTorch."""
        return getattr(self, f"_{name}")(student, teacher, batch, backend="reference")

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
        return attention_transfer(
            student.attention,
            teacher.attention,
            attention_mask=batch["attention_mask"],
            query_mask=batch["distill_mask"],
            distance=self.distillation.distance,
            backend=backend,
        )

    def _hidden(
        self, student: Forward, teacher: Forward, batch: Mapping[str, Tensor], backend: str | None = None
    ) -> Term:
        assert self.queue is not None
        return hidden_nce(
            student.projected,
            teacher.hidden,
            self.queue,
            token_mask=batch["distill_mask"],
            picture_ids=batch["picture_ids"],
            temperature=self.distillation.temperature,
            in_batch=self.distillation.in_batch,
            backend=backend,
        )

    def _classes(self, student: Forward, teacher: Forward, batch: Mapping[str, Tensor]) -> Term:
        return class_distillation(student.logits, teacher.logits, self.distillation.class_temperature)
