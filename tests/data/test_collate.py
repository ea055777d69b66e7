"""Batches: names, shapes, layout, and who may attend to whom. Where nothing else is said, all are as long as the budgets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlkd.data import AnswerVocabulary, CaptioningSet, PretrainingSet, VQASet, model_inputs, picture_id

B, C, Q, G, R = 6, 12, 10, 5, 4  # pictures, caption, question and tag budgets, regions
FEATURES = {"student_regions": 11, "teacher_regions": 13}


@pytest.fixture(scope="module")
def batch_of(corpus, store, tokenizer, text):
    """batch_of(CaptioningSet, view=..., condition=...) -> (data set, one batch of its first six samples)."""

    def build(kind, view="paired", padding="max_length", **options):
        if kind is VQASet:
            options["answers"] = AnswerVocabulary.of_corpus(corpus)
        dataset = kind(corpus, store, tokenizer, text, view, padding=padding, **options)
        return dataset, dataset.collator([dataset[index] for index in range(B)])

    return build


def described(batch) -> dict:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()}


def expected(text: int, length: int, *, causal: bool = False) -> dict:
    ids = (torch.int64, (B, text + G))
    return {
        **dict.fromkeys(("input_ids", "token_type_ids", "position_ids"), ids),
        **{name: (torch.float32, (B, R, width)) for name, width in FEATURES.items()},
        "attention_mask": (torch.bool, (B, length if causal else 1, length)),
        **dict.fromkeys(("valid", "distill_mask"), (torch.bool, (B, length))),
        "picture_ids": (torch.int64, (B,)),
    }


def test_keys_dtypes_and_shapes(batch_of) -> None:
    labels = {"mlm_labels": (torch.int64, (B, C + G))}
    _, pretraining = batch_of(PretrainingSet)
    assert described(pretraining) == expected(C, C + G + R) | labels | {"matched": (torch.int64, (B,))}
    _, captioning = batch_of(CaptioningSet)
    assert described(captioning) == expected(C, C + G + R, causal=True) | labels
    _, vqa = batch_of(VQASet)
    assert described(vqa) == expected(Q, Q + G + R) | {"answers": (torch.float32, (B, 7))}


def test_the_teachers_own_view_has_no_student_regions(batch_of, records) -> None:
    _, batch = batch_of(VQASet, view="own")
    assert "student_regions" not in batch
    own = records[0].own_features
    np.testing.assert_array_equal(batch["teacher_regions"][0, : len(own)], own)
    assert model_inputs(batch, "teacher")["regions"] is batch["teacher_regions"]


def test_layout_of_a_question(batch_of, tokenizer, records, corpus) -> None:
    _, batch = batch_of(VQASet)
    question = tokenizer(corpus.questions[2][0].text)["input_ids"]  # with [CLS] and [SEP]
    tags = [*tokenizer(" ".join(records[2].tags), add_special_tokens=False)["input_ids"], tokenizer.sep_token_id]
    row = 4  # the third picture's first question
    pad = tokenizer.pad_token_id
    assert batch["input_ids"][row].tolist() == [
        *question, *[pad] * (Q - len(question)), *tags, *[pad] * (G - len(tags))
    ]  # fmt: skip
    regions = len(records[2].student_boxes)
    assert batch["valid"][row].tolist() == [
        *[True] * len(question), *[False] * (Q - len(question)),
        *[True] * len(tags), *[False] * (G - len(tags)),
        *[True] * regions, *[False] * (R - regions),
    ]  # fmt: skip
    assert batch["token_type_ids"][row].tolist() == [0] * Q + [1] * G
    np.testing.assert_array_equal(batch["student_regions"][row, :regions], records[2].student_features)
    np.testing.assert_array_equal(batch["teacher_regions"][row, :regions], records[2].teacher_features)
    assert not batch["student_regions"][row, regions:].any()


def test_tags_have_the_same_positions_in_all_tasks(batch_of) -> None:
    tags = list(range(C, C + G))  # captions have the larger budget
    assert batch_of(CaptioningSet)[1]["position_ids"].tolist() == [list(range(C)) + tags] * B
    assert batch_of(VQASet)[1]["position_ids"].tolist() == [list(range(Q)) + tags] * B


@pytest.mark.parametrize("kind", [PretrainingSet, VQASet])
def test_understanding_attends_to_all_that_is_valid(batch_of, kind) -> None:
    _, batch = batch_of(kind)
    assert torch.equal(batch["attention_mask"][:, 0], batch["valid"])


def test_captioning_sees_the_past_and_the_picture_and_is_seen_by_neither(batch_of) -> None:
    _, batch = batch_of(CaptioningSet)
    for mask, valid in zip(batch["attention_mask"].tolist(), batch["valid"].tolist(), strict=True):
        for query in range(C + G + R):
            for key in range(C + G + R):
                allowed = key >= C or key <= query < C
                assert mask[query][key] == (allowed and valid[query] and valid[key])


def test_without_the_picture_nobody_sees_tags_or_regions(batch_of) -> None:
    for kind, text in ((PretrainingSet, C), (CaptioningSet, C), (VQASet, Q)):
        _, batch = batch_of(kind, condition="none")
        assert not batch["attention_mask"][:, :, text:].any()
        assert not batch["valid"][:, text:].any() and batch["valid"][:, 0].all()


def test_mismatched_pairs_are_not_distilled(batch_of) -> None:
    dataset, batch = batch_of(PretrainingSet)
    matched = [dataset[index].matched for index in range(B)]
    assert 0 < sum(matched) < B
    assert batch["matched"].tolist() == [int(value) for value in matched]
    for row, value in enumerate(matched):
        assert torch.equal(batch["distill_mask"][row], batch["valid"][row] & value)
    _, captioning = batch_of(CaptioningSet)
    assert torch.equal(captioning["distill_mask"], captioning["valid"])


def test_labels_stand_where_their_tokens_stand(batch_of) -> None:
    dataset, batch = batch_of(PretrainingSet)
    for row in range(B):
        sample, labels = dataset[row], batch["mlm_labels"][row]
        assert labels[: len(sample.text)].tolist() == sample.text_labels.tolist()
        assert labels[C : C + len(sample.tags)].tolist() == sample.tags_labels.tolist()
        assert (labels[~batch["valid"][row, : C + G]] == -100).all()


def test_picture_ids_are_those_of_the_regions(batch_of, corpus) -> None:
    ids = [picture_id(key) for key in corpus.keys]
    assert len(set(ids)) == B and min(ids) >= 0 and max(ids) < 2**63
    assert picture_id("test-000000") == 8962953738905373657  # the same in every process and release
    assert batch_of(PretrainingSet)[1]["picture_ids"].tolist() == ids
    dataset, other = batch_of(CaptioningSet, condition="other")
    assert other["picture_ids"].tolist() == [picture_id(dataset[index].key) for index in range(B)]
    assert other["picture_ids"].tolist() != ids


def test_prompts_hold_the_start_the_tags_and_the_regions(batch_of, tokenizer) -> None:
    dataset, full = batch_of(CaptioningSet)
    prompts = dataset.prompts([2, 0])
    assert "mlm_labels" not in prompts
    assert prompts["input_ids"][:, 0].tolist() == [tokenizer.cls_token_id] * 2
    assert not prompts["valid"][:, 1:C].any()
    assert torch.equal(prompts["input_ids"][:, C:], full["input_ids"][[2, 0], C:])
    assert torch.equal(prompts["student_regions"], full["student_regions"][[2, 0]])
