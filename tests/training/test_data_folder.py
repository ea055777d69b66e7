"""A data folder whose parts no longer belong together is refused before anything is trained on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_store import make_data, make_recipe

from vlkd.data import AnswerVocabulary, Corpus, tokenizer_fingerprint
from vlkd.data.merging import NewTexts, add_texts
from vlkd.data.splitting import hold_out
from vlkd.errors import VlkdError
from vlkd.training import StageData


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = make_data(tmp_path / "store", 8)
    add_texts(tmp_path, NewTexts(data.corpora["train"], least=1))
    return tmp_path


def opened(folder: Path) -> StageData:
    return StageData.open(folder, make_recipe())


def test_a_folder_opens_again_as_it_was(folder: Path) -> None:
    first, second = opened(folder), opened(folder)
    assert first.fingerprint == second.fingerprint and first.corpora.keys() == {"train"}
    assert first.answers is not None and first.answers.answers == ("blue", "green", "pink", "red")


def test_replaced_texts_need_another_tokenizer(folder: Path) -> None:
    opened(folder)
    corpus = Corpus.load(folder / "train.json")
    zebras = replace(corpus, captions=(("zebras graze",), *corpus.captions[1:]))
    add_texts(folder, NewTexts(zebras))
    with pytest.raises(VlkdError, match="tokenizer' was made of other training texts"):
        opened(folder)
    (folder / "tokenizer").rename(folder / "old")
    anew = opened(folder).tokenizer
    assert "[UNK]" not in anew.tokenize("zebras graze")


def test_another_vocabulary_size_is_not_recorded_in_vain(folder: Path) -> None:
    opened(folder)
    recipe = make_recipe()
    larger = recipe.model_copy(update={"text": recipe.text.model_copy(update={"vocabulary": 128})})
    with pytest.raises(VlkdError, match=r"was made with text\.vocabulary = 96, but the recipe says 128"):
        StageData.open(folder, larger)


def test_a_split_takes_the_tokenizer_with_it(folder: Path) -> None:
    hold_out(folder, "test", 0.25)
    data = opened(folder)
    assert {name: len(of) for name, of in data.corpora.items()} == {"train": 6, "test": 2}
    assert tokenizer_fingerprint(data.tokenizer) == tokenizer_fingerprint(opened(folder).tokenizer)
    whole = replace(data.corpora["train"], keys=(*data.corpora["train"].keys[:5], data.corpora["test"].keys[0]))
    whole.save(folder / "train.json")
    with pytest.raises(VlkdError, match=r"has pictures 'train-.*' of 2 of '.*test.json', which were held out of it"):
        opened(folder)


def test_answers_of_other_annotations_are_refused(folder: Path) -> None:
    opened(folder)
    corpus = Corpus.load(folder / "train.json")
    replace(corpus, questions=(corpus.questions[1], *corpus.questions[1:])).save(folder / "train.json")
    (folder / "tokenizer").rename(folder / "old")
    with pytest.raises(VlkdError, match=r"answers.json' was made of other training questions"):
        opened(folder)
    add_texts(folder, NewTexts(Corpus.load(folder / "train.json"), least=1))  # as the sentence says
    assert opened(folder).answers is not None
    AnswerVocabulary(["red", "green"]).save(folder / "answers.json")  # one's own
    answers = opened(folder).answers
    assert answers is not None and answers.answers == ("red", "green")


def test_texts_of_pictures_that_the_store_has_not_are_named(folder: Path) -> None:
    corpus = Corpus.load(folder / "train.json")
    replace(corpus, keys=("stranger", *corpus.keys[1:]), split="test").save(folder / "test.json")
    with pytest.raises(
        VlkdError, match=r"test.json' has texts of 'stranger' of 8 pictures that '.*store' has no regions of"
    ):
        opened(folder)


def test_a_nan_score_never_reaches_training(folder: Path) -> None:
    content = json.loads((folder / "train.json").read_text())
    content["questions"][2][0]["scores"] = [["red", float("nan")]]
    (folder / "train.json").write_text(json.dumps(content))
    with pytest.raises(VlkdError, match=r"A score of nan in '.*train.json', picture 'train-000002'"):
        opened(folder)
