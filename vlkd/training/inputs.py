"""What a stage reads: its samples, their collator, and the sizes that its models must have."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlkd.data import AnswerVocabulary, CaptioningSet, Corpus, PretrainingSet, RegionStore, VQASet
from vlkd.recipes import Recipe
from vlkd.training.stages import Stage
from vlkd.training.stream import EpochSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class StageInputs:
    """The data of one stage, ready to train on.

    Attributes:
        samples: one epoch of them.
        collate: list of samples → batch.
        region_dims: ``student`` and ``teacher`` → width of their region features.
        vocab_size: of the tokenizer.
        num_answers: of the answer vocabulary, 0 without questions.
        fingerprint: names all of it, for :class:`vlkd.runs.Run`.
        answer_log_odds: [A], of each answer among the training questions; where a VQA head's bias starts.
    """

    samples: EpochSet
    collate: Callable[[list[Any]], dict[str, Tensor]]
    region_dims: Mapping[str, int]
    vocab_size: int
    num_answers: int
    fingerprint: str
    answer_log_odds: Tensor | None = None


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
        num_answers, log_odds = 0, None
        if stage.task == "vqa":
            answers = AnswerVocabulary.of_corpus(self.corpora["train"])
            num_answers = len(answers)
            samples = VQASet(*common, seed=self.seed, answers=answers)
            log_odds = torch.from_numpy(answers.log_odds(self.corpora["train"]))
        else:
            kind = {"pretraining": PretrainingSet, "captioning": CaptioningSet}[stage.task]
            samples = kind(*common, seed=self.seed)
        return StageInputs(
            samples,
            samples.collator,
            {"student": self.store.student_dim, "teacher": self.store.teacher_dim},
            len(self.tokenizer),
            num_answers,
            self.fingerprint,
            log_odds,
        )

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
