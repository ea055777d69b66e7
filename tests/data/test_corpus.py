"""Texts of a split, saved and loaded, and the answers that training knows."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from vlkd.data import AnswerVocabulary, Corpus
from vlkd.errors import VlkdError
from vlkd.recipes.schema import World
from vlkd.scenes import Question, make_picture


def test_a_split_of_the_world_is_that_of_its_pictures() -> None:
    corpus = Corpus.of_world(World(validation=3, picture_size=192), 5, "validation")
    picture = make_picture(5, "validation", 2, size=192)
    assert corpus.keys[2] == picture.key
    assert corpus.captions[2] == picture.captions
    assert corpus.questions[2] == picture.questions
    assert len(corpus) == 3


def test_texts_and_references(corpus) -> None:
    texts = list(corpus.texts())
    assert len(texts) == 6 * 4 and "a red star" in texts and "how many ? one" in texts
    assert corpus.references()["test-000000"][0] == "a red star"


def test_saved_and_loaded(corpus, tmp_path) -> None:
    corpus.save(tmp_path / "corpus.json")
    assert Corpus.load(tmp_path / "corpus.json") == corpus


def test_no_corpus_there(tmp_path) -> None:
    with pytest.raises(VlkdError, match="There is no corpus"):
        Corpus.load(tmp_path / "corpus.json")
    for content in ("{", '["a", "list"]', '{"split": "test"}'):
        (tmp_path / "corpus.json").write_text(content)
        with pytest.raises(VlkdError, match="is no corpus"):
            Corpus.load(tmp_path / "corpus.json")
    with pytest.raises(VlkdError, match="has no picture"):
        Corpus.of_pictures("test", [])


@pytest.mark.parametrize(
    "change",
    [
        {"captions": ["a red star"] * 6},
        {"captions": [["a red star"]] * 5 + [[None]]},
        {"captions": [["a red star"]] * 5},
        {"keys": ["a"] * 6},
        {"keys": [1, 2, 3, 4, 5, 6]},
        {"questions": [[]] * 5 + [["what ?"]]},
        {"questions": [[]] * 5 + [[{"kind": "", "text": "what ?"}]]},
        {"questions": [[]] * 5 + [[{"kind": "", "text": "what ?", "answer": None}]]},
        {"questions": [[]] * 5 + [[{"kind": "", "text": "what ?", "answer": "", "scores": [[]]}]]},
        {"keys": "abcdef"},
        {"split": None},
    ],
    ids=range(11),
)
def test_a_corpus_of_other_types_is_refused(change: dict, corpus, tmp_path) -> None:
    corpus.save(tmp_path / "corpus.json")
    content = json.loads((tmp_path / "corpus.json").read_text()) | change
    (tmp_path / "corpus.json").write_text(json.dumps(content))
    with pytest.raises(VlkdError, match="is no corpus"):
        Corpus.load(tmp_path / "corpus.json")


@pytest.mark.parametrize("score", [float("nan"), float("inf"), 5, -1, True, "1", None])
def test_no_corpus_has_a_score_that_is_none(score: object, corpus, tmp_path) -> None:
    content = asdict(corpus)
    content["questions"][3][0]["scores"] = [["yes", 0.5], ["no", score]]
    (tmp_path / "corpus.json").write_text(json.dumps(content))
    with pytest.raises(
        VlkdError, match=r"A score of .* in '.*corpus.json', picture 'test-000003', but a number from 0 to 1"
    ):
        Corpus.load(tmp_path / "corpus.json")


def test_an_id_is_one_questions(corpus, tmp_path) -> None:
    asked = Question("", "what ?", "it", id=7)
    replace(corpus, questions=((asked,), *corpus.questions[1:])).save(tmp_path / "corpus.json")
    assert Corpus.load(tmp_path / "corpus.json").questions[0] == (asked,)
    replace(corpus, questions=((asked,), (asked,), *corpus.questions[2:])).save(tmp_path / "corpus.json")
    with pytest.raises(VlkdError, match="has several questions with the id 7"):
        Corpus.load(tmp_path / "corpus.json")


def test_a_split_has_the_name_of_a_file(corpus) -> None:
    for name in ("", "../train", "a/b", ".hidden"):
        with pytest.raises(VlkdError, match="letters, digits"):
            replace(corpus, split=name)


def test_an_unknown_answer_is_no_class(corpus) -> None:
    asked = replace(corpus, questions=((Question("", "what ?", ""),), *corpus.questions[1:]))
    assert "" not in AnswerVocabulary.of_corpus(asked).answers


def test_no_split_takes_the_file_of_the_answers(corpus) -> None:
    with pytest.raises(VlkdError, match="A split cannot be called 'answers'"):
        replace(corpus, split="answers")


def test_answers_by_frequency_then_spelling(corpus) -> None:
    answers = AnswerVocabulary.of_corpus(corpus)
    assert answers.answers == ("one", "black", "blue", "green", "pink", "red", "white")
    assert answers[answers.index("pink")] == "pink"
    assert answers.index("seven") is None
    assert AnswerVocabulary.of_corpus(corpus, min_count=2).answers == ("one",)


@pytest.mark.parametrize(
    "question",
    [
        Question("", "?", "red"), Question("", "?", "owl"), Question("", "?", ""), Question("", "?", "owl", (("owl", 1.0),)),
        Question("", "?", "owl", (("owl", 1.0), ("red", 0.3))), Question("", "?", "owl", (("owl", 1.0), ("red", 0.0))),
    ],
    ids=range(6),
)  # fmt: skip
def test_a_known_answer_is_one_with_a_target(question: Question, corpus) -> None:
    answers = AnswerVocabulary.of_corpus(corpus)
    assert answers.knows(question) == answers.target(question).any()


def test_answers_saved_and_loaded(corpus, tmp_path) -> None:
    answers = AnswerVocabulary.of_corpus(corpus)
    answers.save(tmp_path / "answers.json")
    assert AnswerVocabulary.load(tmp_path / "answers.json").answers == answers.answers
    (tmp_path / "answers.json").write_text("[1, 2]")
    with pytest.raises(VlkdError, match="expected a JSON list of words"):
        AnswerVocabulary.load(tmp_path / "answers.json")
    for content in ('["yes", "yes"]', '["yes", " "]'):
        (tmp_path / "answers.json").write_text(content)
        with pytest.raises(VlkdError, match="has an empty answer, or one twice"):
            AnswerVocabulary.load(tmp_path / "answers.json")
