"""An exported model put to use on pictures of one's own, with the detector that its regions came from."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from vlkd.data import AnswerVocabulary, CaptioningSet, Corpus, RegionMemory, VQASet, load_tokenizer
from vlkd.data.corpus import ANSWERS
from vlkd.data.tokenizer import TOKENIZER_FILE, tokenizer_fingerprint
from vlkd.errors import VlkdError
from vlkd.evaluation import answer_questions, generate_captions
from vlkd.evaluation.model import MODELS
from vlkd.models import DataIdentity, ModelCard, load_model, read_card
from vlkd.models.card import Task, check_answers, check_is, check_words
from vlkd.regions import read_picture
from vlkd.regions.detectors import to_tensors
from vlkd.regions.extraction import with_geometry
from vlkd.regions.paired import RegionRecord
from vlkd.regions.two_stage import TwoStageDetector
from vlkd.regions.zoo import RANDOM, load_detector
from vlkd.scenes import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportedModel:
    """A folder that ``vlkd export`` wrote, and the detector that the model was trained on.

    Attributes:
        folder: the model and its tokenizer.
        card: what the model is.
        detector: whose boxes, features and tags it was trained on.
        score_threshold: least probability of a region's class.
        max_regions: most regions of a picture.
    """

    folder: Path
    card: ModelCard
    detector: TwoStageDetector
    score_threshold: float
    max_regions: int

    @classmethod
    def open(
        cls, folder: Path, detector: TwoStageDetector | None = None, score_threshold: float | None = None
    ) -> ExportedModel:
        """Open ``folder``.

        Args:
            folder: that ``vlkd export`` wrote.
            detector: must be the one that the model was trained on; None loads that one.
            score_threshold: must be the one of training; None takes that one.

        Raises:
            VlkdError: no exported model is there, it reads the regions of two detectors, the detector or the threshold is not that
                of its training, or it does not know its detector and none is given.
        """
        folder = Path(folder)
        card = exported_card(folder)
        known = card.features
        if detector is None:
            detector = load_detector_of(card, folder)
        if known is None:
            if score_threshold is None or card.regions is None:
                raise VlkdError(
                    f"{_unknown(folder)} name the detector, the least score of a region (--score-threshold), and with `vlkd card "
                    f"{folder} --data DATA` how many regions a picture has."
                )
            return cls(folder, card, detector, score_threshold, card.regions)
        threshold = known.score_threshold if score_threshold is None else score_threshold
        different = known.difference(detector.identity(threshold, known.max_regions))
        if different is not None:
            raise VlkdError(
                f"The model in '{folder}' was trained on regions of the detector {different[0]}, but this is {different[1]}: leave the "
                "detector's options out, and it is found by itself."
            )
        return cls(folder, card, detector, threshold, known.max_regions)

    def caption(self, picture: Path | str) -> str:
        """The model's caption of a picture file.

        Raises:
            VlkdError: the picture cannot be read, or the model or the detector is another than it takes.
        """
        source, corpus = self.regions(picture, "captioning")
        recipe = self.card.recipe(self.folder)
        dataset = CaptioningSet(corpus, source, self._tokenizer(), recipe.text, "paired")
        model = load_model(MODELS["captioning"], self.folder)
        settings = recipe.evaluation
        captions = generate_captions(model, dataset, "student", beam=settings.beam, max_tokens=settings.max_tokens)
        return captions[corpus.keys[0]]

    def answer(self, picture: Path | str, question: str) -> str:
        """The model's answer to a question about a picture file; what of the question it cannot read is a warning.

        Raises:
            VlkdError: as :meth:`caption`, or the question is empty.
        """
        if not question.strip():
            raise VlkdError("The question is empty: ask something, such as 'what colour is the star ?'.")
        source, corpus = self.regions(picture, "vqa", (Question("", question, ""),))
        answers = AnswerVocabulary.load(self.folder / ANSWERS)
        check_answers(self.card, self.folder, DataIdentity(answers=answers.fingerprint))
        text = self.card.recipe(self.folder).text
        dataset = VQASet(corpus, source, self._tokenizer(), text, "paired", answers=answers)
        for note in dataset.unread(0):
            _logger.warning(note)
        return answer_questions(load_model(MODELS["vqa"], self.folder), dataset, "student")[0]

    def regions(
        self, picture: Path | str, task: Task, questions: tuple[Question, ...] = ()
    ) -> tuple[RegionMemory, Corpus]:
        """A picture file's regions and what is asked about it, for a model of ``task``.

        Raises:
            VlkdError: as :meth:`caption`.
        """
        check_is(self.card, self.folder, task=task)
        key = str(picture)
        record = self._regions(key, read_picture(picture))
        width = record.student_features.shape[1]
        if width != self.card.region_dim:
            raise VlkdError(
                f"The model in '{self.folder}' reads regions of {self.card.region_dim} numbers, but this detector gives {width}: "
                "take the detector that its training data were made with."
            )
        return RegionMemory([record]), Corpus("photographs", (key,), ((),), (questions,))

    def _regions(self, key: str, pixels: np.ndarray) -> RegionRecord:
        """As ``vlkd regions`` finds them. One model looks at them, so both sides are this detector's."""
        detector, (height, width) = self.detector, pixels.shape[:2]
        try:
            detector.input_size(height, width)
        except VlkdError as error:
            raise VlkdError(f"The picture '{key}' cannot be looked at: {error}") from None
        with torch.inference_mode():
            maps = detector.maps(to_tensors([pixels], detector.device))
            (found,) = detector.detections(maps, self.max_regions, self.score_threshold)
            (features,) = detector.features(maps, [found.boxes])
        boxes, rows = found.boxes.cpu().numpy(), with_geometry(features, found.boxes, width, height)
        tags = tuple(detector.classes[index] for index in found.classes.tolist())
        return RegionRecord(key, width, height, boxes, rows, rows, tags, boxes, rows, tags)

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = load_tokenizer(self.folder)
        words = DataIdentity(tokenizer=tokenizer_fingerprint(tokenizer), vocabulary=len(tokenizer))
        check_words(self.card, self.folder, words)
        return tokenizer


def exported_card(folder: Path) -> ModelCard:
    """The card of an exported model that one detector is enough for.

    Raises:
        VlkdError: no exported model is there, or it takes its boxes from one detector and their features from another.
    """
    for name in ("config.json", TOKENIZER_FILE):
        if not (folder / name).is_file():
            raise VlkdError(f"'{folder}' holds no exported model (no {name}): give a folder that `vlkd export` wrote.")
    card = read_card(folder)
    if card.role == "teacher" and card.view == "paired":
        raise VlkdError(
            f"The model in '{folder}' is an adapted teacher, which reads another detector's features of the student's boxes, and one "
            "picture goes through one detector here: export the student, or evaluate this one with `vlkd evaluate`."
        )
    return card


def load_detector_of(
    card: ModelCard, folder: Path, name: str | None = None, weights: str | None = None, classes: Path | None = None
) -> TwoStageDetector:
    """The detector that a model was trained on.

    Args:
        card: of the model in ``folder``.
        folder: for messages.
        name: as in :func:`~vlkd.regions.zoo.load_detector`; needed only where the card does not know it.
        weights, classes: as there, where its files are no longer where they were.

    Raises:
        VlkdError: the card knows no detector and none is named, or another one; or its weights are not to be had.
    """
    known = card.features
    if known is None:
        if name is None:
            raise VlkdError(f"{_unknown(folder)} name it (--detector).")
        return load_detector(name, weights, classes)
    if name not in (None, known.name):
        raise VlkdError(
            f"The model in '{folder}' was trained on regions of the detector '{known.name}', but '{name}' is named: leave that out."
        )
    files = {"weights": weights or known.weights, "classes": classes or known.classes}
    for option, file in files.items():
        if file not in (None, RANDOM) and not Path(file).is_file():
            raise VlkdError(
                f"The {option} of the detector '{known.name}' are not in '{file}', where they were when the model in '{folder}' was trained: give "
                f"their file with --{option}."
            )
    return load_detector(known.name, files["weights"], Path(files["classes"]) if files["classes"] else None)


def _unknown(folder: Path) -> str:
    return f"The data that the model in '{folder}' was trained on do not say which detector made their regions:"
