"""VQA v2's official evaluation: our numbers against those that its own code gave for the same files.

``fixtures/vqa_expected.json`` holds what GT-Vision-Lab/VQA, at the commit it names, made of the three files beside it.
"""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlkd.data.vqa_v2 import (
    VQAAnnotation,
    VQAQuestion,
    normalized_answer,
    read_annotations,
    read_questions,
    soft_score,
    soft_targets,
)
from vlkd.errors import VlkdError
from vlkd.evaluation.vqa_official import (
    evaluate_answers,
    evaluate_answers_file,
    question_accuracy,
    read_answers,
    write_answers,
)

FIXTURES = Path(__file__).parent / "fixtures"
RESULTS, ANNOTATIONS, QUESTIONS = (FIXTURES / f"vqa_{name}.json" for name in ("results", "annotations", "questions"))
OFFICIAL = json.loads((FIXTURES / "vqa_expected.json").read_text(encoding="utf-8"))

EQUAL = 1e-6  # per cent; the official values are stored with 12 digits


def written(folder: Path, content: object) -> Path:
    path = folder / "made_up.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def annotation_row(number: int = 1, **changes: object) -> dict[str, object]:
    answers = [{"answer_id": place, "answer": "red", "answer_confidence": "yes"} for place in range(1, 11)]
    row = {"question_id": number, "image_id": 7, "question_type": "what", "answer_type": "other", "answers": answers}
    return row | changes


def test_accuracies_are_the_official_ones():
    scores, exact = evaluate_answers_file(RESULTS, ANNOTATIONS, QUESTIONS), OFFICIAL["exact"]
    per_question = {str(number): accuracy for number, accuracy in scores.per_question.items()}
    assert len(per_question) > 60
    assert per_question == pytest.approx(exact["evalQA"], abs=EQUAL)
    assert scores.overall == pytest.approx(exact["overall"], abs=EQUAL)
    assert scores.per_answer_type == pytest.approx(exact["perAnswerType"], abs=EQUAL)
    assert scores.per_question_type == pytest.approx(exact["perQuestionType"], abs=EQUAL)


def test_rounded_accuracies_are_what_the_official_code_prints():
    """To the last digit: 'how many heaps' is 33.125 per cent, a tie, which Python 2 rounds up and Python 3 down."""
    scores, official = evaluate_answers_file(RESULTS, ANNOTATIONS, QUESTIONS), OFFICIAL["rounded"]
    assert scores.per_question_type["how many heaps"] == 33.125
    assert scores.rounded() == {key: official[key] for key in ("overall", "perQuestionType", "perAnswerType")}
    assert scores.rounded(0)["perQuestionType"]["how many heaps"] == 33.0


def test_normalized_answers_are_the_official_ones():
    """Every contraction, number word and punctuation mark, and what stands beside them."""
    official = dict(OFFICIAL["normalized"])
    assert len(official) > 300
    assert {raw: normalized_answer(raw) for raw in official} == official


def test_equal_answers_are_compared_as_they_are():
    assert question_accuracy("Yes", ["yes"] * 10) == 0.0
    assert question_accuracy(" yes\n", ["yes"] * 10) == 1.0
    assert question_accuracy("Yes", ["yes"] * 9 + ["no"]) == 1.0


@given(st.lists(st.sampled_from(["red", "blue", "green"]), min_size=2, max_size=12))
def test_accuracy_is_the_mean_over_leaving_one_person_out(answers):
    subsets = list(combinations(answers, len(answers) - 1))
    expected = sum(min(1.0, subset.count("red") / 3) for subset in subsets) / len(subsets)
    assert question_accuracy("red", answers) == pytest.approx(expected)


@given(st.lists(st.text(max_size=8), min_size=10, max_size=10), st.text(max_size=8), st.randoms())
def test_accuracy_does_not_depend_on_the_order_of_people(answers, prediction, random):
    shuffled = random.sample(answers, len(answers))
    assert question_accuracy(prediction, shuffled) == pytest.approx(question_accuracy(prediction, answers))


@given(st.text())
def test_normalized_answers_are_lower_case_words_without_articles(text):
    words = normalized_answer(text).split(" ")
    assert not {"a", "an", "the", "none", "two"} & set(words)
    assert normalized_answer(text) == normalized_answer(f"\n{text}\t")


def test_an_accuracy_needs_answers():
    with pytest.raises(ValueError, match="got none"):
        question_accuracy("red", [])


@pytest.mark.parametrize(("matches", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (5, 1), (10, 1)])
def test_soft_score_is_the_accuracy_of_that_answer(matches, score):
    assert soft_score(matches) == score
    assert question_accuracy("red", ["red"] * matches + ["blue"] * (10 - matches)) == pytest.approx(score)


def test_soft_targets_count_answers_as_they_stand():
    targets = soft_targets(["red"] * 5 + ["Red"] * 2 + ["pink"] * 3)
    assert targets == {"red": 1.0, "Red": 0.6, "pink": 0.9}
    assert list(targets) == ["red", "Red", "pink"]
    assert soft_targets([]) == {}


def test_readers_keep_what_the_files_say():
    question, annotation = read_questions(QUESTIONS)[1000001], read_annotations(ANNOTATIONS)[1000001]
    assert question == VQAQuestion(image_id=1000, text="Is the dog wet?")
    assert annotation == VQAAnnotation(1000, "is the", "yes/no", ("yes",) * 10)
    assert read_answers(RESULTS)[1000001] == "Yes"


def test_results_survive_writing_and_reading(tmp_path):
    questions = read_questions(QUESTIONS)
    answers = {number: f"answer «{number}»" for number in reversed(questions)}
    write_answers(tmp_path / "results.json", answers, questions)
    assert read_answers(tmp_path / "results.json") == answers
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [row["question_id"] for row in rows] == list(questions)
    assert all(row.keys() == {"question_id", "answer"} for row in rows)


def test_written_results_answer_every_question_once(tmp_path):
    questions = {1: VQAQuestion(7, "what?"), 2: VQAQuestion(7, "who?")}
    path = tmp_path / "results.json"
    with pytest.raises(VlkdError, match="no answer to question_id 2 of 2 questions"):
        write_answers(path, {1: "red"}, questions)
    with pytest.raises(VlkdError, match="answers to question_id 3 of 3 answered, which are not among the questions"):
        write_answers(path, {1: "red", 2: "he", 3: "x"}, questions)
    with pytest.raises(VlkdError, match="answer to question 2 to be text, but got 4"):
        write_answers(path, {1: "red", 2: 4}, questions)  # type: ignore[dict-item]
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop(1000001), "no answer to question_id 1000001 of 72 annotated questions"),
        (lambda found: found.clear(), "1000000, 1000001, 1001000 and 69 more of 72 annotated questions"),
        (
            lambda found: found.update({5: "x"}),
            "answers to question_id 5 of 73 answered, which are not among the annot",
        ),
    ],
)
def test_results_must_answer_the_annotated_questions(change, message):
    results = read_answers(RESULTS)
    change(results)
    with pytest.raises(VlkdError, match=message):
        evaluate_answers(results, read_annotations(ANNOTATIONS), read_questions(QUESTIONS))


def test_annotations_and_questions_must_be_of_one_split():
    results, annotations, questions = read_answers(RESULTS), read_annotations(ANNOTATIONS), read_questions(QUESTIONS)
    with pytest.raises(VlkdError, match="image 1000 and asked about image 9"):
        evaluate_answers(results, annotations, questions | {1000001: VQAQuestion(9, "Is the dog wet?")})
    del questions[1000001]
    with pytest.raises(VlkdError, match="not among the questions: question_id 1000001 of 72"):
        evaluate_answers(results, annotations, questions)
    with pytest.raises(VlkdError, match="at least one annotated question"):
        evaluate_answers({}, {}, questions)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"results": []}, "to be a JSON list of objects, but got dict"),
        (["red"], r"object in row 0 \(from 0\) of .*made_up.json', but got str 'red'"),
        ([{"question_id": 1, "answer": "red"}, {"answer": "red"}], r"key 'question_id' in row 1 \(from 0\)"),
        ([{"question_id": "1", "answer": "red"}], "'question_id' to be int in row 0 .* but got str '1'"),
        ([{"question_id": True, "answer": "red"}], "'question_id' to be int in row 0 .* but got bool True"),
        ([{"question_id": 1, "answer": None}], "'answer' to be str in row 0 .* but got NoneType None"),
        ([{"question_id": 1, "answer": "red"}] * 2, "question_id 1 comes a second time in row 1"),
    ],
)
def test_a_results_file_that_is_none_is_refused(tmp_path, content, message):
    with pytest.raises(VlkdError, match=message):
        read_answers(written(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([annotation_row()], "a JSON object with a list 'annotations', but got list"),
        ({"questions": []}, "a list 'annotations', but got an object with .'questions'."),
        ({"annotations": [annotation_row(), annotation_row()]}, "question_id 1 comes a second time in row 1"),
        ({"annotations": [annotation_row(answers=[])]}, "Expected 10 answers in row 0 .* but got 0"),
        (
            {"annotations": [annotation_row(answers=[{"answer_id": 1, "answer": "x"}] * 10)]},
            "answer_id 1 comes a second time in row 1 .from 0. of 'answers' in row 0",
        ),
    ],
)
def test_an_annotations_file_that_is_none_is_refused(tmp_path, content, message):
    with pytest.raises(VlkdError, match=message):
        read_annotations(written(tmp_path, content))


def test_a_questions_file_that_is_none_is_refused(tmp_path):
    row = {"question_id": 1, "image_id": 7, "question": "what?"}
    with pytest.raises(VlkdError, match=r"question_id 1 comes a second time in row 1 .* of 'questions' in .*made_up"):
        read_questions(written(tmp_path, {"questions": [row, row]}))
    with pytest.raises(VlkdError, match=r"no questions file .*absent\.json': check the path"):
        read_questions(tmp_path / "absent.json")
    (tmp_path / "torn.json").write_text('{"questions": [', encoding="utf-8")
    with pytest.raises(VlkdError, match=r"torn\.json' is no questions file: expected JSON, but"):
        read_questions(tmp_path / "torn.json")


def test_a_byte_order_mark_is_no_obstacle(tmp_path):
    path = tmp_path / "marked.json"
    path.write_text('[{"question_id": 1, "answer": "café"}]', encoding="utf-8-sig")
    assert read_answers(path) == {1: "café"}
