"""The data sets of the three tasks: index -> :class:`~vlkd.data.collate.Sample`.

Whatever is drawn at random comes from (seed, task, epoch, index) alone, so a resumed run sees what an uninterrupted one
would have seen, in whatever order samples are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch.utils.data import Dataset

from vlkd.data.collate import Batch, Collator, Padding, Sample, SampleView, Task, stored_view
from vlkd.data.corpus import AnswerVocabulary, Corpus
from vlkd.data.masking import TokenIds, mask_caption, mask_tokens
from vlkd.data.store import RegionSource
from vlkd.data.tokenizer import unread
from vlkd.errors import VlkdError
from vlkd.recipes.schema import Text
from vlkd.scenes import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Condition = Literal["picture", "none", "other"]
"""What a model is given: the picture itself, no tags and regions, or another picture's tags and regions."""

_STREAMS: dict[Task, int] = {"pretraining": 0, "captioning": 1, "vqa": 2}
_OTHER_PICTURE_SEED = 0


class _TaskSet(Dataset[Sample]):
    """What the three have in common: tags as token ids, epochs, the condition, the collator.

    Attributes:
        cut_texts, cut_tags: how many captions or questions, and how many pictures' tags, are longer than their budget.
    """

    task: Task

    def __init__(
        self,
        corpus: Corpus,
        source: RegionSource,
        tokenizer: PreTrainedTokenizerFast,
        text: Text,
        view: SampleView,
        *,
        seed: int = 0,
        condition: Condition = "picture",
        padding: Padding = "longest",
    ) -> None:
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.seed = seed
        self.epoch = 0
        self.condition: Condition = condition
        self.collator = Collator(tokenizer, text, view, source, self.task, padding)
        self._tokens = TokenIds.of(tokenizer)
        self._text = text
        self.cut_texts = self.cut_tags = 0
        shown = another_picture(len(corpus)) if condition == "other" else np.arange(len(corpus))
        self._shown = [corpus.keys[index] for index in shown]
        self._tags = self._tag_ids(source.tags(self._shown, stored_view(view)))
        self._own_tags = self._tag_ids(source.tags(self._shown, "own")) if view == "misaligned" else None
        self._picture_tokens = self._count_picture_tokens(source)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew from now on."""
        self.epoch = epoch

    def length(self, index: int) -> int:
        """Tokens of sample ``index`` in this epoch, regions included, without making it."""
        raise NotImplementedError

    def _count_picture_tokens(self, source: RegionSource) -> np.ndarray:
        """[pictures], the places that tags and regions take in a sequence."""
        if self.condition == "none":
            return np.zeros(len(self._shown), dtype=np.int64)
        view = stored_view(self.collator.view)
        sides = [(self._tags, source.counts(self._shown, view))]
        if self._own_tags is not None:  # laid out alike, so each list is as long as the longer of the two
            sides.append((self._own_tags, source.counts(self._shown, "own")))
        tags, regions = zip(*(([len(words) for words in tags], counts) for tags, counts in sides), strict=True)
        return np.max(tags, axis=0) + np.max(regions, axis=0)

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, _STREAMS[self.task], self.epoch, index))

    def _encode(self, texts: Sequence[str], end: Sequence[int] = ()) -> list[np.ndarray]:
        """[CLS] text end [SEP] of each text; the text is cut to the budget."""
        if not texts:
            return []
        words = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        self._most_words = self.collator.text_budget - 2 - len(end)
        self.cut_texts = sum(len(ids) > self._most_words for ids in words)
        return [np.array([self._tokens.cls, *ids[: self._most_words], *end, self._tokens.sep]) for ids in words]

    def _tag_ids(self, tags: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """tags [SEP] of each picture, cut to the budget."""
        words = sorted({word for row in tags for word in row})
        pieces = self.tokenizer(words, add_special_tokens=False)["input_ids"] if words else []
        ids_of = dict(zip(words, pieces, strict=True))
        most = self.collator.tags_budget - 1
        rows = [[piece for word in row for piece in ids_of[word]] for row in tags]
        self.cut_tags = max(self.cut_tags, sum(len(row) > most for row in rows))
        return [np.array([*row[:most], self._tokens.sep]) for row in rows]

    def _picture(self, index: int) -> dict:
        """The part of a sample that the picture gives."""
        return {
            "key": self._shown[index],
            "tags": self._tags[index],
            "own_tags": self._own_tags[index] if self._own_tags else None,
            "hide_picture": self.condition == "none",
        }


class PretrainingSet(_TaskSet):
    """One sample a picture and epoch: one of its captions, or, half of the time by default, one of another picture's.

    As in Oscar, caption tokens and tags are both masked, and a mismatched caption is masked and modelled like any
    other: language stays worth learning where the picture is of no help. Only distillation leaves such pairs out.
    """

    task = "pretraining"

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        if self._text.mismatched > 0 and len(self.corpus) < 2:
            raise VlkdError("Image-text matching needs captions of at least 2 pictures, but the corpus has 1.")
        self._captions = _by_picture(self._encode, self.corpus.captions)

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, index: int) -> Sample:
        rng = self._rng(index)
        matched, caption = self._draw(index, rng)
        text, text_labels = mask_tokens(caption, rng, self._tokens, self._text.masking)
        picture = self._picture(index)
        picture["tags"], tags_labels = mask_tokens(picture["tags"], rng, self._tokens, self._text.tags_masking)
        if picture["own_tags"] is not None:  # drawn last, so that all else is drawn as in the view "paired"
            picture["own_tags"], _ = mask_tokens(picture["own_tags"], rng, self._tokens, self._text.tags_masking)
        return Sample(**picture, text=text, text_labels=text_labels, tags_labels=tags_labels, matched=matched)

    def length(self, index: int) -> int:
        _, caption = self._draw(index, self._rng(index))
        return len(caption) + int(self._picture_tokens[index])

    def _draw(self, index: int, rng: np.random.Generator) -> tuple[bool, np.ndarray]:
        """Whether the pair matches, and the caption."""
        matched = bool(rng.random() >= self._text.mismatched)
        source = index if matched else (index + int(rng.integers(1, len(self)))) % len(self)
        captions = self._captions[source]
        return matched, captions[rng.integers(len(captions))]


class CaptioningSet(_TaskSet):
    """One sample a picture and epoch: one of its captions, up to three of its tokens masked."""

    task = "captioning"

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self._captions = _by_picture(self._encode, self.corpus.captions)

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, index: int) -> Sample:
        rng = self._rng(index)
        caption = self._draw(index, rng)
        text, labels = mask_caption(caption, rng, self._tokens, self._text.masking, self._text.caption_masked)
        return Sample(**self._picture(index), text=text, text_labels=labels)

    def length(self, index: int) -> int:
        return len(self._draw(index, self._rng(index))) + int(self._picture_tokens[index])

    def _draw(self, index: int, rng: np.random.Generator) -> np.ndarray:
        captions = self._captions[index]
        return captions[rng.integers(len(captions))]

    def prompt_length(self, index: int) -> int:
        """Tokens of a row of :meth:`prompts`."""
        return 1 + int(self._picture_tokens[index])

    def prompts(self, indices: Sequence[int]) -> Batch:
        """A batch to generate from: [CLS], tags and regions."""
        start = np.array([self._tokens.cls])
        return self.collator([Sample(**self._picture(index), text=start) for index in indices])


class VQASet(_TaskSet):
    """One sample a question, with a [MASK] behind it where the recipe's ``text.answer_from`` is "mask"; nothing is random.

    Attributes:
        questions: what sample i asks.
        keys: the picture about which it asks.
    """

    task = "vqa"

    def __init__(self, *args, answers: AnswerVocabulary, **options) -> None:
        super().__init__(*args, **options)
        self.answers = answers
        asked = [(index, question) for index, row in enumerate(self.corpus.questions) for question in row]
        self._pictures = [index for index, _ in asked]
        self.questions: list[Question] = [question for _, question in asked]
        self.keys = [self.corpus.keys[index] for index in self._pictures]
        end = (self._tokens.mask,) if self._text.answer_from == "mask" else ()
        self._texts = self._encode([question.text for question in self.questions], end)

    def __len__(self) -> int:
        return len(self.questions)

    def unread(self, index: int) -> list[str]:
        """What of question ``index`` a model cannot read, in sentences: words unknown to the tokenizer, and what is cut off."""
        return unread(self.tokenizer, self.questions[index].text, self._most_words)

    def __getitem__(self, index: int) -> Sample:
        target = self.answers.target(self.questions[index])
        return Sample(**self._picture(self._pictures[index]), text=self._texts[index], answers=target)

    def length(self, index: int) -> int:
        return len(self._texts[index]) + int(self._picture_tokens[self._pictures[index]])


def another_picture(count: int) -> np.ndarray:
    """A fixed derangement of ``count`` pictures, int64 [count]: no picture is its own other, each is one's other.

    Raises:
        VlkdError: there is no other picture.
    """
    if count < 2:
        raise VlkdError(f"The condition 'other' needs at least 2 pictures, but the split has {count}.")
    cycle = np.random.default_rng(_OTHER_PICTURE_SEED).permutation(count)
    other = np.empty(count, dtype=np.int64)
    other[cycle] = np.roll(cycle, 1)
    return other


def _by_picture(encode, texts: Sequence[Sequence[str]]) -> list[list[np.ndarray]]:
    """Encode all texts in one call, then hand each picture its own."""
    flat = iter(encode([text for row in texts for text in row]))
    return [[next(flat) for _ in row] for row in texts]
