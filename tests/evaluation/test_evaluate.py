"""The examination of one model under the three conditions."""

from __future__ import annotations

import pytest

from vlkd.data import VQASet, model_inputs
from vlkd.evaluation import CONDITIONS, examine_answerer, examine_captioner, soft_accuracy
from vlkd.evaluation.generation import without_padding


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


@pytest.mark.parametrize("condition", CONDITIONS)
def test_dropping_padding_changes_no_answer(exam, answerer, condition):
    dataset = VQASet(
        exam.corpus, exam.source, exam.tokenizer, exam.recipe.text, "paired",
        answers=exam.answers, condition=condition,
    )  # fmt: skip
    batch = dataset.collator([dataset[index] for index in range(6)])
    short = without_padding(batch)
    assert short["valid"].shape[1] < batch["valid"].shape[1]
    full = answerer(**model_inputs(batch, "student")).logits
    # fp32 softmax over fewer masked-out keys: rounding only; logits are of order 10.
    assert answerer(**model_inputs(short, "student")).logits.detach().numpy() == pytest.approx(
        full.detach().numpy(), abs=1e-4
    )
