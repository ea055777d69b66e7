"""An exported model put to use on pictures of one's own, with the detector that its regions came from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlkd.data import AnswerVocabulary, CaptioningSet, Corpus, RegionMemory, VQASet, load_tokenizer
from vlkd.errors import VlkdError
from vlkd.evaluation import answer_questions, generate_captions
from vlkd.evaluation.export import INPUTS
from vlkd.evaluation.model import MODELS
from vlkd.models import load_model
from vlkd.recipes.schema import Text
from vlkd.regions import read_picture
from vlkd.regions.detectors import to_tensors
from vlkd.regions.extraction import with_geometry
from vlkd.regions.paired import RegionRecord
from vlkd.regions.two_stage import TwoStageDetector
from vlkd.scenes import Question


@dataclass(frozen=True)
class ExportedModel:
    """A folder that ``vlkd export`` wrote, and a detector.

    Attributes:
        folder: the model, its tokenizer and the budgets of its inputs.
        inputs: those budgets.
        detector: whose boxes, features and tags the model was trained on.
        score_threshold: least probability of a region's class.
    """

    folder: Path
    inputs: dict[str, Any]
    detector: TwoStageDetector
    score_threshold: float = 0.2

    @classmethod
    def open(cls, folder: Path, detector: TwoStageDetector, score_threshold: float = 0.2) -> ExportedModel:
        """Open ``folder``.

        Raises:
            VlkdError: no exported model is there.
        """
        path = Path(folder) / INPUTS
        if not path.is_file():
            raise VlkdError(
                f"'{folder}' holds no exported model (no {INPUTS}): give a folder that `vlkd export` wrote."
            )
        return cls(Path(folder), json.loads(path.read_text(encoding="utf-8")), detector, score_threshold)

    def caption(self, picture: Path | str) -> str:
        """The model's caption of a picture file.

        Raises:
            VlkdError: the picture cannot be read, or the model or the detector is another than it takes.
        """
        source, corpus = self.regions(picture, "captioning")
        dataset = CaptioningSet(corpus, source, load_tokenizer(self.folder), self._text(), "paired")
        model = load_model(MODELS["captioning"], self.folder)
        beam, most = self.inputs["beam"], self.inputs["most_caption_words"]
        return generate_captions(model, dataset, "student", beam=beam, max_tokens=most)[corpus.keys[0]]

    def answer(self, picture: Path | str, question: str) -> str:
        """The model's answer to a question about a picture file.

        Raises:
            VlkdError: as :meth:`caption`, or the question is empty.
        """
        if not question.strip():
            raise VlkdError("The question is empty: ask something, such as 'what colour is the star ?'.")
        source, corpus = self.regions(picture, "vqa", (Question("", question, ""),))
        answers = AnswerVocabulary.load(self.folder / "answers.json")
        tokenizer = load_tokenizer(self.folder)
        dataset = VQASet(corpus, source, tokenizer, self._text(), "paired", answers=answers)
        return answer_questions(load_model(MODELS["vqa"], self.folder), dataset, "student")[0]

    def regions(
        self, picture: Path | str, task: str, questions: tuple[Question, ...] = ()
    ) -> tuple[RegionMemory, Corpus]:
        """A picture file's regions and what is asked about it, for a model of ``task``.

        Raises:
            VlkdError: as :meth:`caption`.
        """
        if self.inputs["task"] != task:
            does = {"captioning": "captions pictures", "vqa": "answers questions"}[self.inputs["task"]]
            raise VlkdError(
                f"The model in '{self.folder}' {does} and does nothing else: export one that was trained for {task}."
            )
        key = str(picture)
        record = self._regions(key, read_picture(picture))
        width = record.student_features.shape[1]
        if width != self.inputs["region_dim"]:
            raise VlkdError(
                f"The model in '{self.folder}' reads regions of {self.inputs['region_dim']} numbers, but this detector gives {width}: "
                "take the detector that its training data were made with."
            )
        return RegionMemory([record]), Corpus("photographs", (key,), ((),), (questions,))

    def _regions(self, key: str, pixels: np.ndarray) -> RegionRecord:
        """As ``vlkd regions`` finds them. One model looks at them, so both sides are this detector's."""
        detector = self.detector
        with torch.inference_mode():
            maps = detector.maps(to_tensors([pixels], detector.device))
            (found,) = detector.detections(maps, self.inputs["most_regions"], self.score_threshold)
            (features,) = detector.features(maps, [found.boxes])
        height, width = pixels.shape[:2]
        boxes, rows = found.boxes.cpu().numpy(), with_geometry(features, found.boxes, width, height)
        tags = tuple(detector.classes[index] for index in found.classes.tolist())
        return RegionRecord(key, width, height, boxes, rows, rows, tags, boxes, rows, tags)

    def _text(self) -> Text:
        given = self.inputs
        return Text(
            caption=given["caption_tokens"], question=given["question_tokens"], tags=given["tag_tokens"],
            answer_from=given["answers_from"],
        )  # fmt: skip
