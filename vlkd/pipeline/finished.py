"""A finished run put to use: captions and answers for pictures of one's own."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlkd.data import AnswerVocabulary, CaptioningSet, Corpus, RegionMemory, VQASet, load_tokenizer
from vlkd.data.corpus import ANSWERS
from vlkd.data.tokenizer import tokenizer_fingerprint
from vlkd.errors import VlkdError
from vlkd.evaluation import answer_questions, generate_captions
from vlkd.models import DataIdentity, Layout, VLForCaptioning, VLForVQA, load_model, read_card
from vlkd.models.card import check_is, check_reads
from vlkd.pipeline.method import Role, Task
from vlkd.pipeline.prepare import detectors_of, identities
from vlkd.recipes import Recipe
from vlkd.regions import FasterRCNNWithAttributes, extract, read_picture
from vlkd.runs import Run
from vlkd.scenes import Picture, Question
from vlkd.training import MODEL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_logger = logging.getLogger(__name__)

# Name on the command line -> folder of the run, and whose features it reads.
MODELS: dict[str, tuple[str, Role]] = {
    "student": ("student", "student"),
    "distilled": ("distilled", "student"),
    "teacher": ("adapted", "teacher"),
}


@dataclass(frozen=True)
class FinishedRun:
    """The detectors, the tokenizer and the models of a folder that :func:`run_method` finished."""

    folder: Path
    recipe: Recipe

    @classmethod
    def open(cls, folder: Path | str) -> FinishedRun:
        """Open ``folder``.

        Raises:
            VlkdError: no finished run is there.
        """
        settings = Run.open(folder).settings()
        if settings.pop("data_fingerprint"):
            raise VlkdError(
                f"The run in '{folder}' is of imported regions: `vlkd export` its models, which know their detectors, and "
                "give one with --exported."
            )
        return cls(Path(folder), Recipe.model_validate(settings))

    def caption(self, picture: Path | str, model: str = "distilled") -> str:
        """The caption that a model of the run gives a picture file.

        Raises:
            VlkdError: the picture cannot be read, or there is no such model.
        """
        tokenizer = load_tokenizer(self.folder / "tokenizer")
        folder, role = self._model(model, "captioning", tokenizer)
        key, source = self._regions(picture)
        corpus = Corpus("photographs", (key,), ((),), ((),))
        dataset = CaptioningSet(corpus, source, tokenizer, self.recipe.text, "paired")
        captioner = load_model(VLForCaptioning, folder)
        settings = self.recipe.evaluation
        return generate_captions(captioner, dataset, role, beam=settings.beam, max_tokens=settings.max_tokens)[key]

    def answer(self, picture: Path | str, question: str, model: str = "distilled") -> str:
        """A model's answer to a question about a picture file; what of the question it cannot read is a warning.

        Raises:
            VlkdError: the picture cannot be read, the question is empty, or there is no such model.
        """
        if not question.strip():
            raise VlkdError("The question is empty: ask something, such as 'what colour is the star ?'.")
        tokenizer, answers = load_tokenizer(self.folder / "tokenizer"), AnswerVocabulary.load(self.folder / ANSWERS)
        folder, role = self._model(model, "vqa", tokenizer, answers)
        key, source = self._regions(picture)
        corpus = Corpus("photographs", (key,), ((),), ((Question("", question, ""),),))
        dataset = VQASet(corpus, source, tokenizer, self.recipe.text, "paired", answers=answers)
        for note in dataset.unread(0):
            _logger.warning(note)
        answerer = load_model(VLForVQA, folder)
        return answer_questions(answerer, dataset, role)[0]

    def _model(
        self, name: str, task: Task, tokenizer: PreTrainedTokenizerFast, answers: AnswerVocabulary | None = None
    ) -> tuple[Path, Role]:
        """The model's folder, and whose features it reads.

        Raises:
            VlkdError: there is no such model, or one that another run trained is in its place.
        """
        if name not in MODELS:
            raise VlkdError(f"There is no model '{name}': choose one of {', '.join(MODELS)}.")
        of, role = MODELS[name]
        folder = self.folder / of / task / MODEL
        card = read_card(folder)
        check_is(card, folder, task=task, role=role, view="paired")
        identity = DataIdentity(
            tokenizer=tokenizer_fingerprint(tokenizer),
            vocabulary=len(tokenizer),
            answers=answers.fingerprint if answers else None,
            detectors=identities(self.recipe, self.folder, *self._detectors),
        )
        check_reads(card, folder, identity, Layout.of(self.recipe.text))
        return folder, role

    @cached_property
    def _detectors(self) -> tuple[FasterRCNNWithAttributes, FasterRCNNWithAttributes]:
        return detectors_of(self.recipe, self.folder)

    def _regions(self, path: Path | str) -> tuple[str, RegionMemory]:
        """The picture's key and its regions, extracted as training's were."""
        nothing = np.zeros(0, dtype=np.int64)
        picture = Picture(str(path), read_picture(path), np.zeros((0, 4), dtype=np.float32), nothing, {}, (), ())
        settings = self.recipe.detectors
        records = extract([picture], *self._detectors, settings.max_regions, settings.score_threshold)
        return picture.key, RegionMemory(list(records))
