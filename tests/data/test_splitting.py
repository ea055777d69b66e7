"""Pictures held out of the training texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlkd.data import Corpus
from vlkd.data.splitting import hold_out
from vlkd.errors import VlkdError
from vlkd.scenes import Question


def corpus(count: int) -> Corpus:
    keys = tuple(f"picture {number}" for number in range(count))
    questions = tuple((Question("", f"what is {key} ?", "it"),) for key in keys)
    return Corpus("train", keys, tuple((f"this is {key}",) for key in keys), questions)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    corpus(40).save(tmp_path / "train.json")
    return tmp_path


def texts(part: Corpus) -> dict[str, tuple]:
    return dict(zip(part.keys, zip(part.captions, part.questions, strict=True), strict=True))


def test_every_picture_is_on_one_side_with_all_its_texts(folder: Path) -> None:
    train, test = hold_out(folder, "test", 0.25)
    assert (Corpus.load(folder / "train.json"), Corpus.load(folder / "test.json")) == (train, test)
    assert (len(train), len(test), train.split, test.split) == (30, 10, "train", "test")
    assert not texts(train).keys() & texts(test).keys()
    assert texts(train) | texts(test) == texts(corpus(40))


def test_a_picture_stays_on_its_side_when_others_come(folder: Path, tmp_path: Path) -> None:
    _, few = hold_out(folder, "test", 0.25)
    (tmp_path / "more").mkdir()
    corpus(80).save(tmp_path / "more" / "train.json")
    _, many = hold_out(tmp_path / "more", "test", 0.25)
    assert len(set(few.keys) & set(many.keys)) >= 7


def test_a_call_that_was_stopped_is_completed(folder: Path) -> None:
    whole = corpus(40)
    _, test = hold_out(folder, "test", 0.25)
    whole.save(folder / "train.json")  # as it was before the last write
    train, again = hold_out(folder, "test", 0.25)
    assert again == test and len(train) == 30


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.01, 0), (1.0, 40)])
def test_no_side_is_left_empty(folder: Path, share: float, count: int) -> None:
    with pytest.raises(VlkdError, match=f"holds out {count} of the 40 pictures"):
        hold_out(folder, "test", share)
    assert not (folder / "test.json").exists()


def test_a_split_that_exists_is_left_alone(folder: Path) -> None:
    _, test = hold_out(folder, "test", 0.25)
    with pytest.raises(VlkdError, match="exists already"):
        hold_out(folder, "test", 0.25)
    assert Corpus.load(folder / "test.json") == test
