"""A finished run put to use: captions and answers for pictures of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlkd.data import AnswerVocabulary, CaptioningSet, Corpus, RegionMemory, VQASet, load_tokenizer
from vlkd.errors import VlkdError
from vlkd.evaluation import answer_questions, generate_captions
from vlkd.models import VLForCaptioning, VLForVQA, load_model
from vlkd.pipeline.method import Role
from vlkd.pipeline.prepare import detectors_of
from vlkd.recipes import Recipe
from vlkd.regions import extract, read_picture
from vlkd.runs import Run
from vlkd.scenes import Picture, Question

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
                f"The run in '{folder}' is of imported regions and knows no detector: `vlkd regions` and `vlkd evaluate` "
                "take its models to other pictures."
            )
        return cls(Path(folder), Recipe.model_validate(settings))

    def caption(self, picture: Path | str, model: str = "distilled") -> str:
        """The caption that a model of the run gives a picture file.

        Raises:
            VlkdError: the picture cannot be read, or there is no such model.
        """
        folder, role = self._model(model)
        key, source = self._regions(picture)
        corpus = Corpus("photographs", (key,), ((),), ((),))
        dataset = CaptioningSet(corpus, source, self._tokenizer(), self.recipe.text, "paired")
        captioner = load_model(VLForCaptioning, folder / "captioning" / "model")
        settings = self.recipe.evaluation
        return generate_captions(captioner, dataset, role, beam=settings.beam, max_tokens=settings.max_tokens)[key]

    def answer(self, picture: Path | str, question: str, model: str = "distilled") -> str:
        """A model's answer to a question about a picture file.

        Raises:
            VlkdError: the picture cannot be read, the question is empty, or there is no such model.
        """
        if not question.strip():
            raise VlkdError("The question is empty: ask something, such as 'what colour is the star ?'.")
        folder, role = self._model(model)
        key, source = self._regions(picture)
        corpus = Corpus("photographs", (key,), ((),), ((Question("", question, ""),),))
        answers = AnswerVocabulary.load(self.folder / "answers.json")
        dataset = VQASet(corpus, source, self._tokenizer(), self.recipe.text, "paired", answers=answers)
        answerer = load_model(VLForVQA, folder / "vqa" / "model")
        return answer_questions(answerer, dataset, role)[0]

    def _model(self, name: str) -> tuple[Path, Role]:
        if name not in MODELS:
            raise VlkdError(f"There is no model '{name}': choose one of {', '.join(MODELS)}.")
        folder, role = MODELS[name]
        return self.folder / folder, role

    def _tokenizer(self):
        return load_tokenizer(self.folder / "tokenizer")

    def _regions(self, path: Path | str) -> tuple[str, RegionMemory]:
        """The picture's key and its regions, extracted as training's were."""
        nothing = np.zeros(0, dtype=np.int64)
        picture = Picture(str(path), read_picture(path), np.zeros((0, 4), dtype=np.float32), nothing, {}, (), ())
        settings = self.recipe.detectors
        student, teacher = detectors_of(self.recipe, self.folder)
        records = extract([picture], student, teacher, settings.max_regions, settings.score_threshold)
        return picture.key, RegionMemory(list(records))
