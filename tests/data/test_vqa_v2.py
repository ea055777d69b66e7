"""VQA v2's own files become questions with soft scores, about pictures that are called as COCO calls them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlkd.data import AnswerVocabulary, write_store
from vlkd.data.oscar import Sources, import_texts
from vlkd.errors import VlkdError

SAID = {10: ["Two"] * 7 + ["3"] * 2 + ["a dog"], 20: ["2"] * 9 + ["red"]}


@pytest.fixture
def files(tmp_path: Path) -> Sources:
    """Two annotated questions about picture 391895."""
    questions = [{"question_id": number, "image_id": 391895, "question": "how many ?"} for number in SAID]
    annotations = [
        {
            "question_id": number, "image_id": 391895, "question_type": "how many", "answer_type": "number",
            "answers": [{"answer": answer, "answer_id": i} for i, answer in enumerate(answers)],
        }
        for number, answers in SAID.items()
    ]  # fmt: skip
    (tmp_path / "questions.json").write_text(json.dumps({"questions": questions}))
    (tmp_path / "annotations.json").write_text(json.dumps({"annotations": annotations}))
    return Sources(questions=tmp_path / "questions.json", annotations=tmp_path / "annotations.json")


@pytest.fixture
def store(records, tmp_path: Path):
    keys = ("train/COCO_train2014_000000391895", "train/COCO_train2014_000000000007", "no number")
    named = [replace(record, key=key) for record, key in zip(records, keys, strict=False)]
    return write_store(tmp_path / "data" / "store", named)


def test_questions_have_soft_scores_of_normalised_answers(files: Sources, store, tmp_path: Path) -> None:
    corpus = import_texts(files, tmp_path / "data", store, split="train", least=2)
    assert corpus.keys == ("train/COCO_train2014_000000391895",)
    first, second = corpus.questions[0]
    assert (first.kind, first.answer, first.id) == ("number", "2", 10)
    assert first.scores == (("2", 1.0), ("3", 0.6), ("dog", 0.3)) and second.scores == (("2", 1.0), ("red", 0.3))
    answers = AnswerVocabulary.load(tmp_path / "data" / "answers.json")
    assert answers.answers == ("2",)
    np.testing.assert_array_equal(answers.target(first), np.ones(1, np.float32))
    with pytest.raises(VlkdError, match="is the most frequent one of 9 questions: take less with --least-answers"):
        import_texts(files, tmp_path / "data", store, split="train")


def test_a_test_split_has_questions_alone(files: Sources, store, tmp_path: Path) -> None:
    corpus = import_texts(replace(files, annotations=None), tmp_path / "data", store, split="test")
    assert [question.answer for question in corpus.questions[0]] == ["", ""]
    assert not (tmp_path / "data" / "answers.json").exists()


def test_annotations_that_do_not_meet_the_questions_are_refused(files: Sources, store, tmp_path: Path) -> None:
    assert files.annotations is not None
    whole = json.loads(files.annotations.read_text())["annotations"]

    def refused(annotations: list, sentence: str) -> None:
        files.annotations.write_text(json.dumps({"annotations": annotations}))
        with pytest.raises(VlkdError, match=sentence):
            import_texts(files, tmp_path / "data", store, split="train", least=1)
        assert not list((tmp_path / "data").glob("*.json"))

    refused([], "No annotation of question_id 10, 20 of 2 questions: give questions and annotations of the same split")
    refused(whole[:1], "No annotation of question_id 20 of 2 questions: give")
    others = [row | {"question_id": 10 + row["question_id"]} for row in whole]
    refused(others, "No annotation of question_id 10 of 2 questions; annotated and not asked: 30 of 2: give")
    refused([whole[0], whole[1] | {"image_id": 7}], "Question 20 is asked about image 391895 and annotated for image 7")
    more = [*whole, whole[0] | {"question_id": 99}]  # of which nothing is asked here
    files.annotations.write_text(json.dumps({"annotations": more}))
    assert import_texts(files, tmp_path / "data", store, split="train", least=2).unanswered() == 0


def test_the_most_frequent_answer_is_the_questions_answer(files: Sources, store, tmp_path: Path) -> None:
    """Four of ten who say "a" and six who say "b" both score 1."""
    assert files.annotations is not None
    rows = json.loads(files.annotations.read_text())["annotations"]
    said = [{"answer": "cat" if number < 4 else "dog", "answer_id": number} for number in range(10)]
    files.annotations.write_text(json.dumps({"annotations": [row | {"answers": said} for row in rows]}))
    corpus = import_texts(files, tmp_path / "data", store, split="train", least=2)
    assert [(q.answer, q.scores) for q in corpus.questions[0]] == [("dog", (("cat", 1.0), ("dog", 1.0)))] * 2
    assert AnswerVocabulary.load(tmp_path / "data" / "answers.json").answers == ("dog",)
