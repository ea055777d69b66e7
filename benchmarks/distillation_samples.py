"""The samples of `distillation_step`: random ones of stated lengths, cut and joined to batches by training's own classes.

Lengths are uniform whole numbers, both ends included, of the paper's budgets of 40 + 30 + 50 tokens:

    caption   10 to 20, [CLS] and [SEP] included: COCO's captions are some 10 to 15 words
    tags      10 to 30, [SEP] included: up to the budget
    regions   10 to 50: bottom-up attention keeps 10 to 100 a picture, cut at 50

so 65 of 120 tokens on average. For other budgets they are scaled in proportion.

Shapes: B samples of a micro-batch, n regions, F a detector's feature width without the geometry.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vlkd.data import RegionMemory
from vlkd.data.collate import Batch, Collator, Padding, Sample
from vlkd.data.masking import TokenIds, mask_tokens
from vlkd.data.tokenizer import SPECIAL_TOKENS
from vlkd.recipes import Recipe
from vlkd.regions.paired import GEOMETRY_DIM, RegionRecord, geometry
from vlkd.training.stream import SampleStream

PAPER = {"caption": (10, 20, 40), "tags": (10, 30, 30), "regions": (10, 50, 50)}  # least, most, budget
SIDE = 100  # pixels of a picture


class StepBatches(NamedTuple):
    """What one optimizer step reads.

    Attributes:
        batches: its micro-batches in the order of use.
        order: int64 [samples], as :meth:`SampleStream.step_order` gives it; None where samples come as they were drawn.
        max_length: places of the longest sequence that a batch can hold.
    """

    batches: tuple[Batch, ...]
    order: Tensor | None
    max_length: int

    @property
    def real(self) -> float:
        """The share of tokens that are no padding."""
        valid = [batch["valid"] for batch in self.batches]
        return sum(int(x.sum()) for x in valid) / sum(x.numel() for x in valid)

    def to(self, device: str) -> StepBatches:
        moved = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in self.batches]
        return self._replace(batches=tuple(moved))


class RandomSamples:
    """A step's samples of pre-training; every pair matches, so that all tokens are distilled.

    Attributes:
        lengths: tokens of each sample, regions included.
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        rng = np.random.default_rng(seed)
        count, text = recipe.schedules.student.batch, recipe.text
        budgets = {"caption": text.caption, "tags": text.tags, "regions": recipe.detectors.max_regions}
        drawn = {name: lengths(name, budget, count, rng) for name, budget in budgets.items()}
        self.lengths: list[int] = np.sum(list(drawn.values()), axis=0).tolist()
        self._recipe, self._seed = recipe, seed
        self._tokenizer = _tokenizer(text.vocabulary)
        tokens = TokenIds.of(self._tokenizer)
        sizes = zip(drawn["caption"].tolist(), drawn["tags"].tolist(), strict=True)
        self._samples = [_sample(str(number), *size, recipe, tokens, rng) for number, size in enumerate(sizes)]
        # A picture that no step shows has as many regions as any may have: a padded batch is as long as the budgets.
        regions = [*drawn["regions"].tolist(), budgets["regions"]]
        self._source = RegionMemory(_record(str(number), n, recipe, rng) for number, n in enumerate(regions))

    def batches(self, padding: Padding, micro_batches: int) -> StepBatches:
        """All samples, cut by length into micro-batches as training does it."""
        count = len(self)
        stream = SampleStream(self, count, self._seed, batch=count, micro_batches=micro_batches)
        used = [stream[position] for position in range(count)]
        size = count // micro_batches
        collate = Collator(self._tokenizer, self._recipe.text, "paired", self._source, "pretraining", padding)
        batches = tuple(collate(used[first : first + size]) for first in range(0, count, size))
        return StepBatches(batches, stream.step_order(0) if stream.is_sorted else None, collate.max_length)

    # A data set of one epoch, see vlkd.training.stream.EpochSet.

    def set_epoch(self, epoch: int) -> None:
        pass

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]

    def length(self, index: int) -> int:
        return self.lengths[index]


def lengths(name: str, budget: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """int64 [count]: what the paper's distribution of captions, tags or regions gives of another budget."""
    least, most, of = PAPER[name]
    return rng.integers(max(1, round(least * budget / of)), round(most * budget / of), count, endpoint=True)


def _sample(key: str, caption: int, tags: int, recipe: Recipe, tokens: TokenIds, rng: np.random.Generator) -> Sample:
    words = rng.choice(tokens.ordinary, caption + tags)
    words[0], words[caption - 1], words[-1] = tokens.cls, tokens.sep, tokens.sep
    text, text_labels = mask_tokens(words[:caption], rng, tokens, recipe.text.masking)
    of_tags, tags_labels = mask_tokens(words[caption:], rng, tokens, recipe.text.tags_masking)
    return Sample(key, text, of_tags, text_labels, tags_labels, matched=True)


def _record(key: str, n: int, recipe: Recipe, rng: np.random.Generator) -> RegionRecord:
    """The student's boxes with features of both detectors; the teacher's own boxes are left out."""
    boxes = np.sort(SIDE * rng.random((n, 2, 2), dtype=np.float32), axis=1).reshape(n, 4)
    place = geometry(boxes, SIDE, SIDE)
    student, teacher = (
        np.concatenate([rng.standard_normal((n, detector.feature_dim), dtype=np.float32), place], axis=1)
        for detector in (recipe.detectors.student, recipe.detectors.teacher)
    )
    nothing = (
        np.zeros((0, 4), np.float32),
        np.zeros((0, recipe.detectors.teacher.feature_dim + GEOMETRY_DIM), np.float32),
    )
    return RegionRecord(key, SIDE, SIDE, boxes, student, teacher, ("thing",) * n, *nothing, ())


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Words that mean nothing; as many as the recipe says."""
    special = list(SPECIAL_TOKENS.values())
    words = [*special, *(f"w{number}" for number in range(vocabulary - len(special)))]
    model = models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **SPECIAL_TOKENS)
