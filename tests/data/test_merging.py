"""Texts that are added leave what is there, and nothing brings held out pictures back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from vlkd.data import AnswerVocabulary, Corpus
from vlkd.data.merging import NewTexts, add_texts
from vlkd.data.splitting import hold_out
from vlkd.errors import VlkdError
from vlkd.scenes import Question


def texts(
    split: str, captions: dict[str, list[str]] | None = None, asked: dict[str, list[tuple]] | None = None
) -> Corpus:
    """Captions, and questions as (text, answer, id)."""
    captions, asked = captions or {}, asked or {}
    keys = tuple({**captions, **asked})
    questions = tuple(
        tuple(Question("question", text, answer, id=number) for text, answer, number in asked.get(key, ()))
        for key in keys
    )
    return Corpus(split, keys, tuple(tuple(captions.get(key, ())) for key in keys), questions)


def add(folder: Path, corpus: Corpus, **more) -> tuple[Corpus, list[str]]:
    told: list[str] = []
    merged = add_texts(folder, NewTexts(corpus, **more), told.append)
    assert Corpus.load(folder / f"{corpus.split}.json") == merged
    return merged, told


def test_questions_leave_captions_and_captions_questions(tmp_path: Path) -> None:
    add(tmp_path, texts("train", {"a": ["a dog"], "b": ["two cats"]}))
    merged, told = add(tmp_path, texts("train", asked={"b": [("how many ?", "two", 1)], "c": [("what ?", "it", 2)]}))
    assert merged.keys == ("a", "b", "c") and merged.captions == (("a dog",), ("two cats",), ())
    assert [len(of) for of in merged.questions] == [0, 1, 1]
    assert told == ["The captions of 2 pictures stay as they were."]
    merged, told = add(tmp_path, texts("train", {"b": ["cats"], "c": ["it"]}))
    assert merged.captions == (("a dog",), ("cats",), ("it",)) and [len(of) for of in merged.questions] == [0, 1, 1]
    assert told[:2] == [
        "The captions that 1 picture had are replaced.",
        "The captions of 1 picture stay as they were.",
    ]


def test_the_same_command_again_changes_nothing(tmp_path: Path) -> None:
    corpus = texts("train", {"a": ["a dog", "one dog"]}, {"a": [("what ?", "dog", 1)]})
    first, _ = add(tmp_path, corpus)
    again, told = add(tmp_path, corpus)
    assert again == first and told == []


def test_no_text_undoes_a_split(tmp_path: Path) -> None:
    captions = {f"picture {number}": [f"this is {number}"] for number in range(20)}
    questions = {key: [("what is it ?", "it", number)] for number, key in enumerate(captions)}
    add(tmp_path, texts("train", captions))
    train, test = hold_out(tmp_path, "test", 0.25)
    before = (tmp_path / "train.json").read_bytes()
    with pytest.raises(VlkdError, match=r"texts for 'train' are in '.*test.json', and 'test' was held out of training"):
        add_texts(tmp_path, NewTexts(texts("train", asked=questions)))
    with pytest.raises(VlkdError, match=r"texts for 'test' are in '.*train.json', and 'test' was held out of training"):
        add_texts(tmp_path, NewTexts(texts("test", asked=questions)))
    assert (tmp_path / "train.json").read_bytes() == before
    for part in (train, test):
        merged, _ = add(tmp_path, texts(part.split, asked={key: questions[key] for key in part.keys}))
        assert merged.keys == part.keys and all(merged.captions) and all(merged.questions)
    # what the sentence says to do
    (tmp_path / "test.json").unlink()
    add(tmp_path, texts("train", captions, questions))
    again = hold_out(tmp_path, "test", 0.25)
    assert [part.keys for part in again] == [
        tuple(key for key in [*train.keys, *test.keys] if key in set(part.keys)) for part in (train, test)
    ]


def test_splits_that_share_pictures_by_intent_are_told(tmp_path: Path) -> None:
    add(tmp_path, texts("train", {"a": ["a dog"], "b": ["two cats"]}))
    _, told = add(tmp_path, texts("test", {"a": ["a dog"]}))
    assert told == [f"Pictures 'a' of 1 are in '{tmp_path / 'train.json'}' too."]


def test_ids_by_line_never_meet_and_those_of_a_data_set_must_not(tmp_path: Path) -> None:
    add(tmp_path, texts("train", asked={"a": [("what ?", "dog", 2), ("who ?", "he", 3)]}), lines=True)
    merged, _ = add(tmp_path, texts("train", asked={"b": [("how ?", "so", 2), ("why ?", "so", 3)]}), lines=True)
    numbers = [question.id for asked in merged.questions for question in asked]
    assert numbers[:2] == [2, 3] and len(set(numbers)) == 4
    with pytest.raises(
        VlkdError, match="Questions with the id 2 of 4 questions in the split 'train' are about other pictures"
    ):
        add_texts(tmp_path, NewTexts(texts("train", asked={"c": [("where ?", "here", 2)]})))


def test_answers_follow_the_questions_that_they_were_made_of(tmp_path: Path) -> None:
    def answers() -> tuple[str, ...]:
        return AnswerVocabulary.load(tmp_path / "answers.json").answers

    asked = {f"a{number}": [("what ?", "dog", number)] for number in range(2)}
    _, told = add(tmp_path, texts("train", asked=asked), least=2)
    assert answers() == ("dog",) and any("1 answers, each the best of 2 questions or more" in line for line in told)
    add(
        tmp_path, texts("train", asked={f"b{number}": [("what ?", "cat", 10 + number)] for number in range(3)}), least=2
    )
    assert answers() == ("cat", "dog")
    add(tmp_path, texts("train", asked={"c0": [("what ?", "dog", 20)], "c1": [("what ?", "dog", 21)]}))  # no count said
    assert answers() == ("dog", "cat")
    add(tmp_path, texts("test", asked={"t": [("what ?", "owl", 30)]}), least=1)  # not of training
    assert answers() == ("dog", "cat")
    hold_out(tmp_path, "dev", 0.5)
    counts = [question.answer for of in Corpus.load(tmp_path / "train.json").questions for question in of]
    assert sorted(answers()) == sorted({answer for answer in counts if counts.count(answer) >= 2})
    with pytest.raises(VlkdError, match=r"No answer is the most frequent one of 9 questions: .* --least-answers"):
        add_texts(tmp_path, NewTexts(texts("train", asked={"d": [("what ?", "dog", 40)]}), least=9))


def test_answers_that_no_model_can_give_are_counted(tmp_path: Path) -> None:
    asked = {f"a{number}": [("what ?", "dog", number)] for number in range(2)} | {"b": [("what ?", "owl", 9)]}
    _, told = add(tmp_path, texts("train", asked=asked), least=2)
    assert told[-1].startswith("1 of 3 questions have an answer that is none of the 1 in ")


def test_answers_of_ones_own_stay(tmp_path: Path) -> None:
    AnswerVocabulary(["mine"]).save(tmp_path / "answers.json")
    _, told = add(tmp_path, texts("train", asked={"a": [("what ?", "dog", 1)]}), least=1)
    assert "1 of 1 questions have an answer that is none of the 1 in" in told[-1]
    assert AnswerVocabulary.load(tmp_path / "answers.json").answers == ("mine",)
    with pytest.raises(VlkdError, match="holds other answers than --answers: delete it to take these"):
        add_texts(tmp_path, NewTexts(texts("train", asked={"a": [("?", "x", 1)]}), AnswerVocabulary(["x"])))


def test_questions_without_an_answer_are_counted(tmp_path: Path) -> None:
    merged, told = add(tmp_path, texts("train", asked={"a": [("what ?", "", 1), ("who ?", "he", 2)]}))
    assert merged.unanswered() == 1
    assert told == ["1 of 2 questions have no answer: nothing is trained on them, and no accuracy counts them."]
    assert [question.text for question in merged.with_answers().questions[0]] == ["who ?"]
    with pytest.raises(VlkdError, match="None of the 1 questions of the split 'train' has an answer"):
        texts("train", asked={"a": [("what ?", "", 1)]}).with_answers()


def test_a_damaged_record_is_a_sentence(tmp_path: Path) -> None:
    for content in ("- a\n", "a: [", "\xff"):
        (tmp_path / "derived.yaml").write_text(content, encoding="latin-1")
        with pytest.raises(VlkdError, match=r"derived\.yaml' is damaged"):
            add_texts(tmp_path, NewTexts(texts("train", {"a": ["a dog"]})))
    assert not list(tmp_path.glob("*.json"))
    (tmp_path / "derived.yaml").write_text(yaml.safe_dump({"held out": ["test"]}))
    (tmp_path / "test.json").write_text(json.dumps({"split": "test"}))
    with pytest.raises(VlkdError, match=r"test.json' is no corpus"):
        add_texts(tmp_path, NewTexts(texts("train", {"a": ["a dog"]})))
