"""Hand-made pictures: six with two captions and two questions each, and regions of known values."""

from __future__ import annotations

import numpy as np
import pytest

from vlkd.data import Corpus, RegionStore, train_tokenizer, write_store
from vlkd.recipes.schema import Text
from vlkd.regions.paired import RegionRecord, geometry
from vlkd.scenes import Question

STUDENT_DIM, TEACHER_DIM = 5 + 6, 7 + 6
COLOURS = ("red", "green", "blue", "pink", "black", "white")
SHAPES = ("star", "ring", "letter a", "moon", "heart", "tree")


def make_record(number: int, *, student: int | None = None, own: int | None = None) -> RegionRecord:
    """Picture ``number`` of 100 x 50 pixels, with 1 + number % 4 student and 2 + number % 3 own regions."""
    rng = np.random.default_rng(number)

    def boxes(count: int) -> np.ndarray:
        corner = rng.uniform(0, 20, (count, 2))
        return np.concatenate([corner, corner + rng.uniform(5, 25, (count, 2))], axis=1).astype(np.float32)

    def features(of: np.ndarray, width: int) -> np.ndarray:
        made_up = rng.standard_normal((len(of), width - 6)).astype(np.float32)
        return np.concatenate([made_up, geometry(of, 100, 50)], axis=1)

    student_boxes = boxes(1 + number % 4 if student is None else student)
    own_boxes = boxes(2 + number % 3 if own is None else own)
    return RegionRecord(
        key=f"test-{number:06d}",
        width=100,
        height=50,
        student_boxes=student_boxes,
        student_features=features(student_boxes, STUDENT_DIM),
        teacher_features=features(student_boxes, TEACHER_DIM),
        tags=tuple(SHAPES[(number + i) % 6] for i in range(len(student_boxes))),
        own_boxes=own_boxes,
        own_features=features(own_boxes, TEACHER_DIM),
        own_tags=tuple(SHAPES[(number + 2 * i) % 6] for i in range(len(own_boxes))),
    )


@pytest.fixture(scope="session")
def records() -> list[RegionRecord]:
    return [make_record(number) for number in range(6)]


@pytest.fixture(scope="session")
def store(records, tmp_path_factory) -> RegionStore:
    return write_store(tmp_path_factory.mktemp("store") / "regions", records)


@pytest.fixture(scope="session")
def corpus(records) -> Corpus:
    return Corpus(
        split="test",
        keys=tuple(record.key for record in records),
        captions=tuple(
            (f"a {colour} {shape}", f"one {shape} that is {colour} and more words than anybody needs here")
            for colour, shape in zip(COLOURS, SHAPES, strict=True)
        ),
        questions=tuple(
            (Question("colour", f"what colour is the {shape} ?", colour), Question("count", "how many ?", "one"))
            for colour, shape in zip(COLOURS, SHAPES, strict=True)
        ),
    )


@pytest.fixture(scope="session")
def tokenizer(corpus):
    return train_tokenizer(corpus.texts(), 300)


@pytest.fixture(scope="session")
def text() -> Text:
    return Text(caption=12, question=10, tags=5)
