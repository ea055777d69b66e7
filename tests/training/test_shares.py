"""A stage that learns from a part of the training pictures."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
import torch
from tiny_store import COLOURS, make_data, make_recipe

from vlkd.data import AnswerVocabulary, Corpus
from vlkd.errors import VlkdError
from vlkd.training import Stage, StageData, distill, finetune, pretrain
from vlkd.training.run import stage_settings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StageData:
    return make_data(tmp_path_factory.mktemp("regions") / "store", pictures=30)


def _corpus(pictures: int) -> Corpus:
    nothing = ((),) * pictures
    return Corpus("train", tuple(f"picture {number}" for number in range(pictures)), nothing, nothing)


def test_a_share_is_the_first_pictures_by_hash_in_their_order() -> None:
    corpus = _corpus(200)
    by_hash = sorted(corpus.keys, key=lambda key: hashlib.sha256(key.encode()).hexdigest())
    previous: set[str] = set()
    for share, count in ((0.001, 2), (0.01, 2), (0.013, 3), (0.1, 20), (0.5, 100), (0.997, 199)):
        kept = corpus.share(share).keys
        assert kept == tuple(key for key in corpus.keys if key in by_hash[:count])
        assert previous <= set(kept)
        previous = set(kept)
    assert corpus.share(1.0) is corpus
    assert _corpus(1).share(0.01).keys == ("picture 0",)


@pytest.mark.parametrize("task", ["pretraining", "captioning", "vqa"])
def test_a_stage_reads_its_share_only(data: StageData, tmp_path: Path, task: str) -> None:
    recipe = make_recipe()
    whole = distill(recipe, tmp_path) if task == "pretraining" else finetune(recipe, task, "student", tmp_path)
    part = dataclasses.replace(whole, share=0.2)
    everything, inputs = data.inputs(recipe, whole), data.inputs(recipe, part)
    kept = data.corpora["train"].share(0.2)
    assert len(everything.samples) == 30 and len(kept) == 6
    assert [inputs.samples[index].key for index in range(len(inputs.samples))] == [*kept.keys]
    assert inputs.fingerprint == everything.fingerprint


def test_answers_start_as_often_as_the_share_gives_them(data: StageData, tmp_path: Path) -> None:
    """All answers of the training data can be given, also those that the share lacks."""
    recipe, vocabulary = make_recipe(), data.answer_vocabulary()
    stage = finetune(recipe, "vqa", "student", tmp_path)
    for share in (1.0, 0.07):
        answers = data.inputs(recipe, dataclasses.replace(stage, share=share)).answers
        assert answers is not None and len(answers.words) == len(COLOURS)
        asked = data.corpora["train"].share(share)
        assert torch.equal(answers.log_odds, torch.from_numpy(vocabulary.log_odds(asked)))
    assert len(AnswerVocabulary.of_corpus(asked)) < len(COLOURS)


def test_only_a_share_below_one_is_told(tmp_path: Path) -> None:
    recipe = make_recipe()
    whole = stage_settings(recipe, pretrain(recipe, "student"), seed=0)
    assert "share" not in whole
    assert stage_settings(recipe, pretrain(recipe, "student", share=0.1), seed=0) == whole | {"share": 0.1}
    assert distill(recipe, tmp_path, share=0.01).share == pretrain(recipe, "teacher", share=0.01).share == 0.01


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan")])
def test_no_other_share(share: float) -> None:
    recipe = make_recipe()
    with pytest.raises(VlkdError, match="must be above 0 and at most 1, but 'some' has"):
        Stage("some", "pretraining", "student", "paired", recipe.schedules.student, share=share)
