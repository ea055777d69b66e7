"""What a stage reads: its samples, their collator, and the sizes that its models must have."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlkd.data import (
    AnswerVocabulary,
    CaptioningSet,
    Corpus,
    PretrainingSet,
    RegionStore,
    VQASet,
)
from vlkd.data.collate import picture_id
from vlkd.data.corpus import ANSWERS
from vlkd.data.derived import TOKENIZER, Derived, folder_answers, folder_tokenizer
from vlkd.data.json_rows import first_few
from vlkd.data.masking import TokenIds
from vlkd.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from vlkd.errors import VlkdError
from vlkd.models import DataIdentity
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
        max_length: places of the longest sequence that a batch can hold.
        answers: how a VQA head starts; None without questions.
        keys: of the pictures, for messages.
        identity: what of the data the trained model says that it depends on.
    """

    samples: EpochSet
    collate: Callable[[list[Any]], dict[str, Tensor]]
    region_dims: Mapping[str, int]
    vocab_size: int
    fingerprint: str
    max_length: int
    answers: Answers | None = None
    keys: Sequence[str] = ()
    identity: DataIdentity = field(default_factory=DataIdentity)

    @property
    def num_answers(self) -> int:
        """Size of the answer vocabulary, 0 without questions."""
        return len(self.answers.words) if self.answers else 0

    def name_of(self, picture: int) -> str:
        """The key of the picture with an id, or the id where no key has it."""
        return next((key for key in self.keys if picture_id(key) == picture), str(picture))


@dataclass(frozen=True)
class StageData:
    """What all stages of a run share.

    Attributes:
        store: regions of all pictures.
        corpora: split → its texts; stages train on ``train``.
        tokenizer: for captions, questions and tags.
        seed: of every draw: weights, order, masks, dropout, queue.
        answers: among which questions are answered; those that training gives if None.
    """

    store: RegionStore
    corpora: Mapping[str, Corpus]
    tokenizer: PreTrainedTokenizerFast
    seed: int
    answers: AnswerVocabulary | None = None

    @classmethod
    def open(cls, folder: Path | str, recipe: Recipe | None = None) -> StageData:
        """What ``vlkd data import`` left in ``folder``: ``store/``, ``<split>.json``, ``answers.json``.

        ``tokenizer/`` beside them is used, or made of the training texts and kept there. Without a recipe, for models that are
        trained already, it must be there and is taken as it is.

        Raises:
            VlkdError: one of them is missing or damaged, texts are about pictures that the store has not, pictures that were held
                out are in the training texts, or the tokenizer or the answers were made of other texts than these.
        """
        folder = Path(folder)
        store = RegionStore.open(folder / "store")
        corpora = {path.stem: Corpus.load(path) for path in sorted(folder.glob("*.json")) if path.name != ANSWERS}
        if "train" not in corpora:
            raise VlkdError(
                f"'{folder}' has no texts to train on (no train.json): add them with `vlkd data texts {folder} --split train`."
            )
        _check_corpora(folder, corpora, store)
        if recipe is None:
            tokenizer, seed = load_tokenizer(folder / TOKENIZER), 0
        else:
            tokenizer, seed = folder_tokenizer(folder, corpora["train"], recipe.text.vocabulary), recipe.seed
        return cls(store, corpora, tokenizer, seed, folder_answers(folder, corpora["train"]))

    def answer_vocabulary(self) -> AnswerVocabulary:
        """The answers that a VQA model chooses among."""
        return self.answers or AnswerVocabulary.of_corpus(self.corpora["train"])

    def inputs(self, recipe: Recipe, stage: Stage) -> StageInputs:
        """The training samples of ``stage``: its share of the pictures that have texts for its task.

        Questions without an answer are left out. Tokenizer, answer vocabulary and fingerprint are those of all the data.

        Raises:
            VlkdError: no picture has such texts, or the store lacks the regions of the stage's view.
        """
        corpus = self.corpora["train"]
        corpus = (corpus.with_answers() if stage.task == "vqa" else corpus.with_texts("captions")).share(stage.share)
        common = (corpus, self.store, self.tokenizer, recipe.text, stage.view)
        answers = None
        if stage.task == "vqa":
            vocabulary = self.answer_vocabulary()
            samples = VQASet(*common, seed=self.seed, answers=vocabulary)
            answers = self._answers(vocabulary, corpus, recipe.text)
        else:
            kind = {"pretraining": PretrainingSet, "captioning": CaptioningSet}[stage.task]
            samples = kind(*common, seed=self.seed)
        return StageInputs(
            samples,
            samples.collator,
            {"student": self.store.student_dim, "teacher": self.store.teacher_dim},
            len(self.tokenizer),
            self.fingerprint,
            samples.collator.max_length,
            answers,
            corpus.keys,
            self.identity,
        )

    def left_out(self, task: str) -> str | None:
        """A sentence about the training questions that ``task`` leaves out; None where there are none."""
        corpus = self.corpora["train"]
        count = corpus.unanswered() if task == "vqa" else 0
        return (
            f"Not trained on: {count} of {sum(map(len, corpus.questions))} questions, which have no answer."
            if count
            else None
        )

    def cut(self, recipe: Recipe, task: str) -> list[str]:
        """A sentence for each budget of the recipe that cuts texts or tags of ``task``."""
        view = "paired" if "paired" in self.store.views else "own"
        what, budget = ("questions", recipe.text.question) if task == "vqa" else ("captions", recipe.text.caption)
        told = []
        for split in ("train", "test") if task == "vqa" else ("train",):
            if split not in self.corpora or not any(getattr(self.corpora[split], what)):
                continue
            corpus = self.corpora[split].with_texts(what)
            common = (corpus, self.store, self.tokenizer, recipe.text, view)
            samples = VQASet(*common, answers=self.answer_vocabulary()) if task == "vqa" else CaptioningSet(*common)
            if samples.cut_texts:
                total = sum(map(len, getattr(corpus, what)))
                told.append(
                    f"{samples.cut_texts} of {total} {what} of the split '{split}' are longer than text.{what[:-1]} = {budget} tokens, "
                    "and are cut."
                )
            if samples.cut_tags:
                told.append(
                    f"The tags of {samples.cut_tags} of {len(corpus)} pictures of the split '{split}' are longer than text.tags = "
                    f"{recipe.text.tags} tokens, and are cut."
                )
        return told

    def _answers(self, vocabulary: AnswerVocabulary, corpus: Corpus, text: Text) -> Answers:
        log_odds = torch.from_numpy(vocabulary.log_odds(corpus))
        words = self.tokenizer(list(vocabulary.answers), add_special_tokens=False)["input_ids"]
        mask_id = TokenIds.of(self.tokenizer).mask if text.answer_from == "mask" else None
        return Answers(log_odds, words, mask_id)

    @cached_property
    def identity(self) -> DataIdentity:
        """What of the data a model depends on."""
        vocabulary = self.answer_vocabulary()
        return DataIdentity(
            tokenizer=tokenizer_fingerprint(self.tokenizer),
            vocabulary=len(self.tokenizer),
            answers=vocabulary.fingerprint if len(vocabulary) else None,
            regions=self.store.max_regions,
            detectors=self.store.detectors,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Names the regions, the training texts and the tokenizer."""
        corpus = self.corpora["train"]
        questions = [
            [(question.text, question.answer, *question.scores) for question in asked] for asked in corpus.questions
        ]
        content = json.dumps(
            [
                self.store.fingerprint,
                corpus.keys,
                corpus.captions,
                questions,
                self.tokenizer.backend_tokenizer.to_str(),
                *(self.answers.answers if self.answers else ()),
            ]
        )
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def _check_corpora(folder: Path, corpora: Mapping[str, Corpus], store: RegionStore) -> None:
    """Whether texts are about pictures of the store, and those held out are out of the training texts."""
    there = set(store.keys)
    for name, corpus in corpora.items():
        if lost := set(corpus.keys) - there:
            raise VlkdError(
                f"'{folder / name}.json' has texts of {first_few(lost, len(corpus))} pictures that '{folder / 'store'}' has no regions "
                "of: extract them, or delete that file and add the texts again."
            )
    for name in Derived(folder).held_out:
        if shared := set(corpora["train"].keys) & set(corpora[name].keys):
            raise VlkdError(
                f"'{folder / 'train.json'}' has pictures {first_few(shared, len(corpora[name]))} of '{folder / name}.json', which were "
                f"held out of it: give `vlkd data split {folder} --name {name}` with the same share again."
            )
