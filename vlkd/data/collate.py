"""Samples to tensors: Oscar's sequence layout and its masks.

Legend: B samples, C caption or question tokens (the budget), G tag tokens (the budget), T words, R regions, L places of a
sequence, A answers, Fs and Ft the detectors' feature widths.

A sample has one of three views: both models read the student's boxes and tags (``paired``), the teacher reads its own
(``own``), or each model reads its own and the two are compared all the same (``misaligned``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
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
Padding = Literal["longest", "max_length"]
Batch = dict[str, Tensor]

MULTIPLE = 8
"""Lengths of batches are multiples of this, so that kernels and compilers meet few shapes."""


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
    """Joins samples to a batch: reads their regions, lays out their sequences, and builds the masks.

    Each row holds ``[CLS] text [SEP] tags [SEP] regions`` and then its padding. A batch is as long as its longest row.

    A batch, all on the CPU (absent where a task has no use for it). T and R are the most words and regions of a row,
    L is the longest row; all three are rounded up, see ``padding``:

    ======================================== ====================================================================
    input_ids, token_type_ids, position_ids  int64 [B, T], text and then tags; type 0 text, 1 tags
    student_regions                          float32 [B, R, Fs], not in the view ``own``
    teacher_regions                          float32 [B, R, Ft], of the student's boxes in the view ``paired``, else
                                             of the teacher's own
    sequence_index                           int64 [B, L], which row of [words ; regions] stands at each place
    token_index                              int64 [n], the places b·L + i that some model reads a token at
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
    of the two sequences are paired by their index: the shorter list has padding behind it. ``distill_mask`` is true where
    both have a token.

    Tags have the same position ids in all tasks, though questions and captions have different budgets: they start
    after the longer of the two. Regions have none.

    Args:
        tokenizer: of text and tags.
        text: the budgets.
        view: whose tags and regions a row holds.
        source: of the regions.
        task: what is learned.
        padding: ``longest`` makes T, R and L as large as the batch needs, rounded up to a multiple of 8 so that few
            shapes occur. ``max_length`` makes them C + G, ``source.max_regions`` and their sum in every batch, and text,
            tags and regions start at the same places in every row; there is no ``sequence_index`` and no ``token_index`` then. The losses and
            gradients are the same.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        text: Text,
        view: SampleView,
        source: RegionSource,
        task: Task,
        padding: Padding = "longest",
    ) -> None:
        self.tokens = TokenIds.of(tokenizer)
        self.view: SampleView = view
        self.source = source
        self.task: Task = task
        self.padding: Padding = padding
        self.text_budget = text.question if task == "vqa" else text.caption
        self.tags_budget = text.tags
        self.tags_start = max(text.caption, text.question)

    @property
    def max_length(self) -> int:
        """The longest sequence that a batch can hold: C + G + the source's ``max_regions``."""
        return self.text_budget + self.tags_budget + self.source.max_regions

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        own = self.view == "misaligned"
        tags = [sample.tags for sample in samples]
        own_tags = [sample.own_tags for sample in samples if sample.own_tags is not None]
        counts = self._counts(samples, stored_view(self.view))
        own_counts = self._counts(samples, "own") if own else counts
        layout = self._layout(samples, (tags, own_tags) if own else (tags,), np.maximum(counts, own_counts))

        batch = self._words(samples, tags, layout)
        batch |= self._regions(samples, stored_view(self.view), layout)
        valid = layout.valid(samples, tags, counts)
        batch["valid"] = valid
        batch["attention_mask"] = self._attention(valid, layout)
        matched = torch.tensor([sample.matched is not False for sample in samples])
        batch["distill_mask"] = valid & matched[:, None]
        batch["picture_ids"] = torch.tensor([picture_id(sample.key) for sample in samples])
        if samples[0].text_labels is not None:
            batch["mlm_labels"] = self._labels(samples, layout)
        if samples[0].matched is not None:
            batch["matched"] = matched.long()
        answers = [sample.answers for sample in samples if sample.answers is not None]
        if answers:
            batch["answers"] = torch.from_numpy(np.stack(answers))
        if own:
            of_teacher = layout.valid(samples, own_tags, own_counts)
            attention = self._attention(of_teacher, layout)
            batch |= self._regions(samples, "own", layout)
            batch["teacher_input_ids"] = self._ids(samples, own_tags, layout)
            batch["teacher_attention_mask"] = attention
            batch["compared_attention_mask"] = batch["attention_mask"] & attention
            batch["distill_mask"] = batch["distill_mask"] & of_teacher
            valid = valid | of_teacher
        if self.padding == "longest":
            batch["sequence_index"] = layout.sequence_index()
            batch["token_index"] = valid.flatten().nonzero().flatten()
        return batch

    def _counts(self, samples: Sequence[Sample], view: View) -> np.ndarray:
        """[B], the regions that each sample shows."""
        counts = np.array(self.source.counts([sample.key for sample in samples], view), dtype=np.int64)
        return np.where([sample.hide_picture for sample in samples], 0, counts)

    def _layout(self, samples: Sequence[Sample], tags: Sequence[Sequence[np.ndarray]], counts: np.ndarray) -> _Layout:
        """Where everything stands. ``tags`` are those of every sequence that is laid out alike, ``counts`` the most regions."""
        budget = self.text_budget + self.tags_budget
        if self.padding == "max_length":
            text, words = (np.full(len(samples), start) for start in (self.text_budget, budget))
            return _Layout(text, words, budget, self.source.max_regions, self.max_length)
        text = np.array([len(sample.text) for sample in samples])
        shown = np.array([not sample.hide_picture for sample in samples])
        words = text + shown * np.max([[len(of) for of in side] for side in tags], axis=0)
        return _Layout(
            text,
            words,
            _rounded(words.max(), budget),
            _rounded(counts.max(), self.source.max_regions),
            _rounded((words + counts).max(), self.max_length),
        )

    def _regions(self, samples: Sequence[Sample], view: View, layout: _Layout) -> Batch:
        """The features of ``view``, under the names of the models that read them."""
        source = self.source
        regions = RegionBatch.empty(len(samples), layout.regions, source.student_dim, source.teacher_dim, view)
        shown = [not sample.hide_picture for sample in samples]
        if all(shown):
            source.read_into([sample.key for sample in samples], view, regions)
        elif any(shown):
            raise ValueError("a batch shows the pictures of all its samples, or of none")
        else:
            for side in regions.features:
                side.zero_()
        roles = ("student_regions", "teacher_regions") if view == "paired" else ("teacher_regions",)
        return dict(zip(roles, regions.features, strict=True))

    def _ids(self, samples: Sequence[Sample], tags: Sequence[np.ndarray], layout: _Layout) -> Tensor:
        return layout.words(self.tokens.pad, [sample.text for sample in samples], layout.shown(samples, tags))

    def _words(self, samples: Sequence[Sample], tags: Sequence[np.ndarray], layout: _Layout) -> Batch:
        place = np.arange(layout.width)
        is_tag = place >= layout.tags_start[:, None]
        positions = np.where(is_tag, self.tags_start + place - layout.tags_start[:, None], place)
        # Behind the words there is nothing to place; the last position is as good as any.
        positions = np.minimum(positions, self.tags_start + self.tags_budget - 1)
        return {
            "input_ids": self._ids(samples, tags, layout),
            "token_type_ids": torch.from_numpy(is_tag.astype(np.int64)),
            "position_ids": torch.from_numpy(positions),
        }

    def _labels(self, samples: Sequence[Sample], layout: _Layout) -> Tensor:
        nothing = np.zeros(0, dtype=np.int64)
        text = [nothing if sample.text_labels is None else sample.text_labels for sample in samples]
        tags = [nothing if sample.tags_labels is None else sample.tags_labels for sample in samples]
        return layout.words(IGNORED, text, layout.shown(samples, tags))

    def _attention(self, valid: Tensor, layout: _Layout) -> Tensor:
        if self.task != "captioning":
            return valid[:, None, :]
        structure = captioning_mask(torch.from_numpy(layout.tags_start), valid.shape[1])
        return structure & valid[:, None, :] & valid[:, :, None]


@dataclass(frozen=True)
class _Layout:
    """Where text, tags and regions stand in each row of a batch, and how long the batch is.

    Attributes:
        tags_start, regions_start: [B], the place of a row's first tag and of its first region.
        width: T, columns of words.
        regions: R, rows of regions.
        length: L.
    """

    tags_start: np.ndarray
    regions_start: np.ndarray
    width: int
    regions: int
    length: int

    @staticmethod
    def shown(samples: Sequence[Sample], tags: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The tags of those samples whose picture may be seen."""
        return [words[: 0 if sample.hide_picture else None] for sample, words in zip(samples, tags, strict=True)]

    def words(self, nothing: int, text: Sequence[np.ndarray], tags: Sequence[np.ndarray]) -> Tensor:
        """int64 [B, T]: text and tags at their places, ``nothing`` elsewhere."""
        filled = np.full((len(text), self.width), nothing, dtype=np.int64)
        for row, (start, words, behind) in enumerate(zip(self.tags_start, text, tags, strict=True)):
            filled[row, : len(words)] = words
            filled[row, start : start + len(behind)] = behind
        return torch.from_numpy(filled)

    def valid(self, samples: Sequence[Sample], tags: Sequence[np.ndarray], counts: np.ndarray) -> Tensor:
        """bool [B, L]: where a row with these tags and so many regions has a token."""
        place = np.arange(self.length)
        parts = (
            (np.zeros(len(samples), dtype=np.int64), [len(sample.text) for sample in samples]),
            (self.tags_start, [len(words) for words in self.shown(samples, tags)]),
            (self.regions_start, counts),
        )
        valid = np.zeros((len(samples), self.length), dtype=bool)
        for start, count in parts:
            valid |= (place >= start[:, None]) & (place < (start + count)[:, None])
        return torch.from_numpy(valid)

    def sequence_index(self) -> Tensor:
        """int64 [B, L]: words first, then regions; what is behind a row's regions stands for nothing."""
        place, start = np.arange(self.length), self.regions_start[:, None]
        last = self.width + self.regions - 1
        return torch.from_numpy(np.where(place < start, place, np.minimum(self.width + place - start, last)))


def _rounded(count: int, most: int) -> int:
    """``count`` rounded up to a multiple of :data:`MULTIPLE`, but not above ``most``."""
    return min(-(-int(count) // MULTIPLE) * MULTIPLE, most)


def model_inputs(batch: Batch, role: Literal["teacher", "student"]) -> Batch:
    """What the forward pass of a model takes: text, masks, and the regions of its own detector.

    What a batch holds under the role's own name, such as ``teacher_input_ids``, takes the place of what both share.
    """
    shared = ("input_ids", "token_type_ids", "position_ids", "attention_mask", "sequence_index", "token_index")
    inputs = {name: batch.get(f"{role}_{name}", batch[name]) for name in shared if name in batch}
    return inputs | {"regions": batch[f"{role}_regions"]}


def stored_view(view: SampleView) -> View:
    """The view of the store that gives a sequence's tags and regions: the student's where the two read different ones."""
    return "own" if view == "own" else "paired"


def captioning_mask(caption: Tensor, length: int) -> Tensor:
    """Who may attend to whom in captioning, bool [B, length, length].

    The caption sees its past and itself, and all tags and regions; these see each other and never the caption.

    Args:
        caption: int64 [B], the first place of a row that is no longer its caption's.
        length: places of a row.
    """
    place = torch.arange(length, device=caption.device)
    of_caption = place < caption[:, None]  # [B, L]
    past = place[:, None] >= place  # [L, L]
    return ~of_caption[:, None, :] | (of_caption[:, :, None] & past)


def picture_id(key: str) -> int:
    """A number >= 0 for a picture's key, the same in every process, split and store."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
