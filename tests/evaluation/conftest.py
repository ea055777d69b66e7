"""A few rendered pictures' texts, made-up regions for them, and models with random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlkd.data import AnswerVocabulary, Corpus, RegionMemory, train_tokenizer
from vlkd.evaluation import Exam
from vlkd.models import VLForCaptioning, VLForVQA, build_encoder
from vlkd.recipes import Encoder, Recipe, World
from vlkd.regions import RegionRecord, geometry
from vlkd.scenes import CLASSES

PICTURES = 7
STUDENT_DIM, TEACHER_DIM = 10, 14


def _boxes(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    corner = rng.uniform(0, size / 2, size=(count, 2))
    return np.concatenate([corner, corner + rng.uniform(8, size / 2, size=(count, 2))], axis=1).astype(np.float32)


def _features(rng: np.random.Generator, boxes: np.ndarray, width: int, size: int) -> np.ndarray:
    made_up = rng.standard_normal((len(boxes), width - 6)).astype(np.float32)
    return np.concatenate([made_up, geometry(boxes, size, size)], axis=1)


def _record(key: str, number: int, size: int) -> RegionRecord:
    rng = np.random.default_rng(number)
    counts = 2 + number % 4, 3 + number % 3  # of the student's and of the teacher's own boxes
    boxes, own = (_boxes(rng, count, size) for count in counts)
    return RegionRecord(
        key=key,
        width=size,
        height=size,
        student_boxes=boxes,
        student_features=_features(rng, boxes, STUDENT_DIM, size),
        teacher_features=_features(rng, boxes, TEACHER_DIM, size),
        tags=tuple(rng.choice(CLASSES, size=len(boxes))),
        own_boxes=own,
        own_features=_features(rng, own, TEACHER_DIM, size),
        own_tags=tuple(rng.choice(CLASSES, size=len(own))),
    )


@pytest.fixture(scope="session")
def exam() -> Exam:
    recipe = Recipe(name="tiny", world=World(picture_size=64, train=PICTURES, validation=1, test=PICTURES))
    corpus = Corpus.of_world(recipe.world, 0, "test")
    size = recipe.world.picture_size
    return Exam(
        recipe=recipe,
        corpus=corpus,
        source=RegionMemory(_record(key, number, size) for number, key in enumerate(corpus.keys)),
        tokenizer=train_tokenizer(corpus.texts(), 300),
        answers=AnswerVocabulary.of_corpus(corpus),
    )


def _encoder() -> Encoder:
    return Encoder(layers=2, width=32, heads=4, ffn=64)


def _spread(model: torch.nn.Module) -> None:
    """Random weights large enough that neighbouring inputs lead to clearly different outputs."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)


@pytest.fixture
def captioner(exam: Exam) -> VLForCaptioning:
    torch.manual_seed(0)
    model = build_encoder(_encoder(), STUDENT_DIM, len(exam.tokenizer), model_class=VLForCaptioning)
    _spread(model)
    return model.eval()


@pytest.fixture
def answerer(exam: Exam) -> VLForVQA:
    torch.manual_seed(0)
    model = build_encoder(
        _encoder(), STUDENT_DIM, len(exam.tokenizer), model_class=VLForVQA, num_answers=len(exam.answers)
    )
    _spread(model)
    return model.eval()
