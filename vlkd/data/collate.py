"""Samples to tensors: Oscar's sequence layout and its masks.

Legend: B samples, C caption or question tokens (the budget), G tag tokens (the budget), T = C + G, R regions,
L = T + R, A answers, Fs and Ft the detectors' feature widths. The sequence is
``[CLS] text [SEP] pad... | tags [SEP] pad... | regions pad...``.

A sample has one of three views: both models read the student's boxes and tags (``paired``), the teacher reads its own
(``own``), or each model reads its own and the two are compared all the same (``misaligned``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from vlkd.data.masking import IGNORED, TokenIds
from vlkd.data.store import RegionBatch, RegionSource, View
from vlkd.recipes.schema import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Task = Literal["pretraining", "captioning", "vqa"]
SampleView = Literal["paired", "own", "misaligned"]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """One sequence before padding. It names its picture; the collator reads all regions of a batch at once.

    Attributes:
        key: the picture whose tags and regions it has.
        text: int64 [<= C], [CLS] ... [SEP], already masked.
        tags: int64 [<= G], ... [SEP], already masked.
        text_labels, tags_labels: int64, where language is modelled.
        matched: whether text and picture belong together, where that is to be told.
        answers: float32 [A], where there is a question.
        hide_picture: nobody may see tags and regions.
        own_tags: int64 [<= G], what the teacher reads in place of ``tags``, already masked; view ``misaligned`` only.
    """

    key: str
    text: np.ndarray
    tags: np.ndarray
    text_labels: np.ndarray | None = None
    tags_labels: np.ndarray | None = None
    matched: bool | None = None
    answers: np.ndarray | None = None
    hide_picture: bool = False
    own_tags: np.ndarray | None = None


class Collator:
    """Pads samples to the recipe's budgets, reads their regions, and builds the masks.

    A batch, all on the CPU (absent where a task has no use for it):

    ======================================== ====================================================================
    input_ids, token_type_ids, position_ids  int64 [B, T]; type 0 text, 1 tags
    student_regions                          float32 [B, R, Fs], not in the view ``own``
    teacher_regions                          float32 [B, R, Ft], of the student's boxes in the view ``paired``, else
                                             of the teacher's own
    attention_mask                           bool, True = may attend: [B, 1, L], or [B, L, L] in captioning
    valid                                    bool [B, L], no padding
    distill_mask                             bool [B, L], valid and of a matching pair
    picture_ids                              int64 [B], the same for the same picture wherever it comes
    mlm_labels                               int64 [B, T]; pre-training and captioning
    matched                                  int64 [B], 1 = text and picture belong together; pre-training
    answers                                  float32 [B, A], soft targets; VQA
    teacher_input_ids                        int64 [B, T], the same text, the teacher's own tags; ``misaligned``
    teacher_attention_mask                   bool, as ``attention_mask``; ``misaligned``
    compared_attention_mask                  bool, True = both models may attend; ``misaligned``
    ======================================== ====================================================================

    In the view ``misaligned`` everything without ``teacher_`` in its name is of the student's sequence. Tags and regions
    of the two sequences are paired by their index, and ``distill_mask`` is true where both have a token.

    Tags have the same position ids in all tasks, though questions and captions have different budgets: they start
    after the longer of the two. R is the source's ``max_regions``.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, text: Text, view: SampleView, source: RegionSource, task: Task
    ) -> None:
        self.tokens = TokenIds.of(tokenizer)
        self.view: SampleView = view
        self.source = source
        self.task: Task = task
        self.text_budget = text.question if task == "vqa" else text.caption
        self.tags_budget = text.tags
        self.tags_start = max(text.caption, text.question)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        view = stored_view(self.view)
        tags = [sample.tags for sample in samples]
        regions = self._regions(samples, view)
        batch = self._text(samples, tags)
        roles = ("student_regions", "teacher_regions") if view == "paired" else ("teacher_regions",)
        batch |= dict(zip(roles, regions.features, strict=True))
        valid = self._valid(samples, tags, regions.counts.tolist())
        batch["valid"] = valid
        batch["attention_mask"] = self._attention(valid, self.text_budget)
        matched = torch.tensor([sample.matched is not False for sample in samples])
        batch["distill_mask"] = valid & matched[:, None]
        batch["picture_ids"] = torch.tensor([picture_id(sample.key) for sample in samples])
        if samples[0].text_labels is not None:
            batch["mlm_labels"] = self._labels(samples)
        if samples[0].matched is not None:
            batch["matched"] = matched.long()
        answers = [sample.answers for sample in samples if sample.answers is not None]
        if answers:
            batch["answers"] = torch.from_numpy(np.stack(answers))
        if self.view == "misaligned":
            batch |= self._of_the_teacher(samples, batch)
        return batch

    def _of_the_teacher(self, samples: Sequence[Sample], batch: Batch) -> Batch:
        """What differs in a batch where the teacher reads its own tags and regions."""
        tags = [sample.own_tags for sample in samples if sample.own_tags is not None]
        regions = self._regions(samples, "own")
        valid = self._valid(samples, tags, regions.counts.tolist())
        attention = self._attention(valid, self.text_budget)
        return {
            "teacher_input_ids": self._ids(samples, tags),
            "teacher_regions": regions.features[0],
            "teacher_attention_mask": attention,
            "compared_attention_mask": batch["attention_mask"] & attention,
            "distill_mask": batch["distill_mask"] & valid,
        }

    def _regions(self, samples: Sequence[Sample], view: View) -> RegionBatch:
        source = self.source
        regions = RegionBatch.empty(len(samples), source.max_regions, source.student_dim, source.teacher_dim, view)
        source.read_into([sample.key for sample in samples], view, regions)
        return regions

    def _ids(self, samples: Sequence[Sample], tags: Sequence[np.ndarray]) -> Tensor:
        start = self.text_budget
        ids = np.full((len(samples), start + self.tags_budget), self.tokens.pad, dtype=np.int64)
        for row, (sample, words) in enumerate(zip(samples, tags, strict=True)):
            ids[row, : len(sample.text)] = sample.text
            ids[row, start : start + len(words)] = words
        return torch.from_numpy(ids)

    def _text(self, samples: Sequence[Sample], tags: Sequence[np.ndarray]) -> Batch:
        start = self.text_budget
        ids = self._ids(samples, tags)
        types = torch.zeros_like(ids)
        types[:, start:] = 1
        positions = torch.cat((torch.arange(start), self.tags_start + torch.arange(self.tags_budget)))
        return {
            "input_ids": ids,
            "token_type_ids": types,
            "position_ids": positions.repeat(len(samples), 1),
        }

    def _labels(self, samples: Sequence[Sample]) -> Tensor:
        start = self.text_budget
        labels = np.full((len(samples), start + self.tags_budget), IGNORED, dtype=np.int64)
        for row, sample in enumerate(samples):
            if sample.text_labels is not None:
                labels[row, : len(sample.text)] = sample.text_labels
            if sample.tags_labels is not None:
                labels[row, start : start + len(sample.tags)] = sample.tags_labels
        return torch.from_numpy(labels)

    def _valid(self, samples: Sequence[Sample], tags: Sequence[np.ndarray], counts: list[int]) -> Tensor:
        start, end = self.text_budget, self.text_budget + self.tags_budget
        valid = np.zeros((len(samples), end + self.source.max_regions), dtype=bool)
        for row, (sample, words, count) in enumerate(zip(samples, tags, counts, strict=True)):
            valid[row, : len(sample.text)] = True
            if not sample.hide_picture:
                valid[row, start : start + len(words)] = True
                valid[row, end : end + count] = True
        return torch.from_numpy(valid)

    def _attention(self, valid: Tensor, text_length: int) -> Tensor:
        if self.task != "captioning":
            return valid[:, None, :]
        structure = captioning_mask(text_length, valid.shape[1] - text_length).to(valid.device)
        return structure & valid[:, None, :] & valid[:, :, None]


def model_inputs(batch: Batch, role: Literal["teacher", "student"]) -> Batch:
    """What the forward pass of a model takes: text, masks, and the regions of its own detector.

    What a batch holds under the role's own name, such as ``teacher_input_ids``, takes the place of what both share.
    """
    shared = ("input_ids", "token_type_ids", "position_ids", "attention_mask")
    inputs = {name: batch.get(f"{role}_{name}", batch[name]) for name in shared}
    return inputs | {"regions": batch[f"{role}_regions"]}


def stored_view(view: SampleView) -> View:
    """The view of the store that gives a sequence's tags and regions: the student's where the two read different ones."""
    return "own" if view == "own" else "paired"


@lru_cache(maxsize=64)
def captioning_mask(caption: int, rest: int) -> Tensor:
    """Who may attend to whom in captioning, bool [caption + rest, caption + rest].

    The caption sees its past and itself, and all tags and regions; these see each other and never the caption.
    """
    mask = torch.ones(caption + rest, caption + rest, dtype=torch.bool)
    mask[:caption, :caption] = torch.ones(caption, caption, dtype=torch.bool).tril()
    mask[caption:, :caption] = False
    return mask


def picture_id(key: str) -> int:
    """A number >= 0 for a picture's key, the same in every process, split and store."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
