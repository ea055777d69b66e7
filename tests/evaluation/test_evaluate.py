"""The examination of one model under the three conditions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vlkd.data import VQASet, model_inputs
from vlkd.data.oscar.texts import NO_LABEL
from vlkd.evaluation import CONDITIONS, examine_answerer, examine_captioner, score_notes, soft_accuracy


def test_captioner(exam, captioner):
    found = examine_captioner(captioner, "student", "paired", exam)
    assert tuple(found) == CONDITIONS
    for result in found.values():
        assert set(result["captions"]) == set(result["cider_per_picture"]) == set(exam.corpus.keys)
        mean = sum(result["cider_per_picture"].values()) / len(exam.corpus)
        assert result["scores"]["CIDEr"] == pytest.approx(mean)
        assert "METEOR" in result["unavailable"]
    captions = [tuple(result["captions"].values()) for result in found.values()]
    assert len(set(captions)) == 3
    assert examine_captioner(captioner, "student", "paired", exam) == found  # the same again


def test_answerer(exam, answerer):
    found = examine_answerer(answerer, "student", "paired", exam)
    assert tuple(found) == CONDITIONS
    for result in found.values():
        right = [
            soft_accuracy(answer, [question.answer])
            for key, asked in zip(exam.corpus.keys, exam.corpus.questions, strict=True)
            for answer, question in zip(result["answers"][key], asked, strict=True)
        ]
        assert result["scores"]["all"] == pytest.approx(sum(right) / len(right))
        assert sum(result["questions_per_picture"].values()) == len(right)
        weighted = [
            result["accuracy_per_picture"][key] * count for key, count in result["questions_per_picture"].items()
        ]
        assert sum(weighted) / len(right) == pytest.approx(result["scores"]["all"])
    kinds = {question.kind for asked in exam.corpus.questions for question in asked}
    assert set(found["picture"]["scores"]) == {"all", *kinds}
    assert found["picture"]["answers"] != found["none"]["answers"]


def test_questions_without_an_answer_are_answered_and_not_scored(exam, answerer):
    (whole,) = examine_answerer(answerer, "student", "paired", exam, conditions=["picture"]).values()
    unknown = replace(exam.corpus.questions[0][0], answer="")
    corpus = replace(exam.corpus, questions=((unknown, *exam.corpus.questions[0][1:]), *exam.corpus.questions[1:]))
    (part,) = examine_answerer(
        answerer, "student", "paired", replace(exam, corpus=corpus), conditions=["picture"]
    ).values()
    assert part["answers"] == whole["answers"] and (part["unanswered"], whole["unanswered"]) == (1, 0)
    first, total = exam.corpus.questions[0][0], sum(map(len, exam.corpus.questions))
    right = total * whole["scores"]["all"] - soft_accuracy(whole["answers"][corpus.keys[0]][0], [first.answer])
    assert part["scores"]["all"] == pytest.approx(right / (total - 1))
    assert score_notes(part, "vqa") == [f"Not scored: 1 of the {total} questions, to which nobody's answer is known."]
    nobody = replace(
        corpus, questions=tuple(tuple(replace(question, answer="") for question in asked) for asked in corpus.questions)
    )
    (none,) = examine_answerer(
        answerer, "student", "paired", replace(exam, corpus=nobody), conditions=["picture"]
    ).values()
    assert none["scores"] == {} and none["unanswered"] == total and none["answers"] == whole["answers"]
    assert score_notes(none, "vqa") == [f"Not scored: nobody's answer to any of the {total} questions is known."]
    assert score_notes(whole, "vqa") == []


def test_an_answer_outside_of_the_vocabulary_is_wrong_and_scored(exam, answerer):
    outside = replace(exam.corpus.questions[0][0], answer="", scores=NO_LABEL)
    corpus = replace(exam.corpus.only([0, 1]), questions=((outside,), ()))
    (found,) = examine_answerer(
        answerer, "student", "paired", replace(exam, corpus=corpus), conditions=["picture"]
    ).values()
    assert found["scores"]["all"] == 0 and found["unanswered"] == 0


@pytest.mark.parametrize("condition", CONDITIONS)
def test_padding_changes_no_answer(exam, answerer, condition):
    logits, lengths = [], []
    for padding in ("longest", "max_length"):
        dataset = VQASet(
            exam.corpus, exam.source, exam.tokenizer, exam.recipe.text, "paired",
            answers=exam.answers, condition=condition, padding=padding,
        )  # fmt: skip
        batch = dataset.collator([dataset[index] for index in range(6)])
        logits.append(answerer(**model_inputs(batch, "student")).logits.detach().numpy())
        lengths.append(batch["valid"].shape[1])
    assert lengths[0] < lengths[1]
    # fp32 softmax over fewer masked-out keys: rounding only; logits are of order 10.
    assert logits[0] == pytest.approx(logits[1], abs=1e-4)
