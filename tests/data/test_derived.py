"""What is made of the training texts is made anew, or refused, when they change; what was put there stays."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from vlkd.data import AnswerVocabulary, load_tokenizer, save_tokenizer, tokenizer_fingerprint, train_tokenizer
from vlkd.data.derived import folder_answers, folder_tokenizer, save_frequent_answers
from vlkd.errors import VlkdError


def test_a_tokenizer_is_made_once(corpus, tmp_path: Path) -> None:
    made = folder_tokenizer(tmp_path, corpus, 300)
    assert tokenizer_fingerprint(made) == tokenizer_fingerprint(train_tokenizer(corpus.texts(), 300))
    before = (tmp_path / "tokenizer" / "tokenizer.json").stat().st_mtime_ns
    assert tokenizer_fingerprint(folder_tokenizer(tmp_path, corpus, 300)) == tokenizer_fingerprint(made)
    assert (tmp_path / "tokenizer" / "tokenizer.json").stat().st_mtime_ns == before


def test_a_tokenizer_of_other_texts_or_size_is_refused(corpus, tmp_path: Path) -> None:
    folder_tokenizer(tmp_path, corpus, 300)
    other = replace(corpus, captions=(("zebras graze",), *corpus.captions[1:]))
    with pytest.raises(
        VlkdError, match=r"tokenizer' was made of other training texts than '.*train.json' has now: delete"
    ):
        folder_tokenizer(tmp_path, other, 300)
    with pytest.raises(VlkdError, match=r"was made with text.vocabulary = 300, but the recipe says 200: set it"):
        folder_tokenizer(tmp_path, corpus, 200)
    shutil.rmtree(tmp_path / "tokenizer")  # as the sentence says
    assert "zebras" in folder_tokenizer(tmp_path, other, 300).decode(
        folder_tokenizer(tmp_path, other, 300)("zebras")["input_ids"]
    )


def test_a_tokenizer_that_was_put_there_is_kept(corpus, tmp_path: Path) -> None:
    own = train_tokenizer(["entirely other words"], 100)
    save_tokenizer(own, tmp_path / "tokenizer")
    other = replace(corpus, captions=(("zebras graze",), *corpus.captions[1:]))
    for texts in (corpus, other):
        assert tokenizer_fingerprint(folder_tokenizer(tmp_path, texts, 300)) == tokenizer_fingerprint(own)
    with pytest.raises(
        VlkdError, match=r"was not made here, has .* WordPieces, but the recipe says text.vocabulary = 10: set"
    ):
        folder_tokenizer(tmp_path, corpus, 10)


def test_a_tokenizer_that_replaced_ours_is_kept(corpus, tmp_path: Path) -> None:
    folder_tokenizer(tmp_path, corpus, 300)
    shutil.rmtree(tmp_path / "tokenizer")
    save_tokenizer(train_tokenizer(["entirely other words"], 100), tmp_path / "tokenizer")
    other = replace(corpus, captions=(("zebras graze",), *corpus.captions[1:]))
    assert folder_tokenizer(tmp_path, other, 300).get_vocab() == load_tokenizer(tmp_path / "tokenizer").get_vocab()


def test_answers_of_other_questions_are_refused(corpus, tmp_path: Path) -> None:
    assert folder_answers(tmp_path, corpus) is None
    answers = AnswerVocabulary.of_corpus(corpus)
    save_frequent_answers(tmp_path, corpus, answers, 1)
    found = folder_answers(tmp_path, corpus)
    assert found is not None and found.answers == answers.answers and found.fingerprint == answers.fingerprint
    other = replace(corpus, questions=(corpus.questions[0][:1], *corpus.questions[1:]))
    with pytest.raises(
        VlkdError, match=r"answers.json' was made of other training questions than '.*train.json' has now"
    ):
        folder_answers(tmp_path, other)
    AnswerVocabulary(["mine"]).save(tmp_path / "answers.json")
    kept = folder_answers(tmp_path, other)
    assert kept is not None and kept.answers == ("mine",)


def test_a_vocabulary_without_its_tokenizer_is_a_sentence(corpus, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(VlkdError, match=r"tokenizer' holds no tokenizer\.json: transformers' `AutoTokenizer"):
        folder_tokenizer(tmp_path, corpus, 300)
    (tmp_path / "tokenizer" / "vocab.txt").unlink()
    assert len(folder_tokenizer(tmp_path, corpus, 300)) > 5
