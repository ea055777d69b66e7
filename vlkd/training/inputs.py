"""What a stage reads: its samples, their collator, and the sizes that its models must have."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlkd.data import AnswerVocabulary, CaptioningSet, Corpus, PretrainingSet, RegionStore, VQASet
from vlkd.data.masking import TokenIds
from vlkd.recipes import Recipe
from vlkd.recipes.schema import Text
from vlkd.training.stages import Stage
from vlkd.training.stream import EpochSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Answers:
    """What a new VQA head knows of its answers.

    Attributes:
        log_odds: [A], of each answer among the training questions.
        words: the token ids of each answer.
        mask_id: of the [MASK] behind a question, None where [CLS] answers.
    """

    log_odds: Tensor
    words: Sequence[Sequence[int]]
    mask_id: int | None


@dataclass(frozen=True)
class StageInputs:
    """The data of one stage, ready to train on.

    Attributes:
        samples: one epoch of them.
        collate: list of samples → batch.
        region_dims: ``student`` and ``teacher`` → width of their region features.
        vocab_size: of the tokenizer.
        fingerprint: names all of it, for :class:`vlkd.runs.Run`.
        answers: how a VQA head starts; None without questions.
    """

    samples: EpochSet
    collate: Callable[[list[Any]], dict[str, Tensor]]
    region_dims: Mapping[str, int]
    vocab_size: int
    fingerprint: str
    answers: Answers | None = None

    @property
    def num_answers(self) -> int:
        """Size of the answer vocabulary, 0 without questions."""
        return len(self.answers.words) if self.answers else 0


@dataclass(frozen=True)
class StageData:
    """What all stages of a run share.

    Attributes:
        store: regions of all pictures.
        corpora: split → its texts; stages train on ``train``.
        tokenizer: for captions, questions and tags.
        seed: of every draw: weights, order, masks, dropout, queue.
    """

    store: RegionStore
    corpora: Mapping[str, Corpus]
    tokenizer: PreTrainedTokenizerFast
    seed: int

    def inputs(self, recipe: Recipe, stage: Stage) -> StageInputs:
        """The training samples of ``stage``."""
        common = (self.corpora["train"], self.store, self.tokenizer, recipe.text, stage.view)
        answers = None
        if stage.task == "vqa":
            vocabulary = AnswerVocabulary.of_corpus(self.corpora["train"])
            samples = VQASet(*common, seed=self.seed, answers=vocabulary)
            answers = self._answers(vocabulary, recipe.text)
        else:
            kind = {"pretraining": PretrainingSet, "captioning": CaptioningSet}[stage.task]
            samples = kind(*common, seed=self.seed)
        return StageInputs(
            samples,
            samples.collator,
            {"student": self.store.student_dim, "teacher": self.store.teacher_dim},
            len(self.tokenizer),
            self.fingerprint,
            answers,
        )

    def _answers(self, vocabulary: AnswerVocabulary, text: Text) -> Answers:
        log_odds = torch.from_numpy(vocabulary.log_odds(self.corpora["train"]))
        words = self.tokenizer(list(vocabulary.answers), add_special_tokens=False)["input_ids"]
        mask_id = TokenIds.of(self.tokenizer).mask if text.answer_from == "mask" else None
        return Answers(log_odds, words, mask_id)

    @cached_property
    def fingerprint(self) -> str:
        """Names the regions, the training texts and the tokenizer."""
        corpus = self.corpora["train"]
        questions = [[(question.text, question.answer) for question in asked] for asked in corpus.questions]
        content = json.dumps(
            [
                self.store.fingerprint,
                corpus.keys,
                corpus.captions,
                questions,
                self.tokenizer.backend_tokenizer.to_str(),
            ]
        )
        return hashlib.sha256(content.encode()).hexdigest()[:16]
