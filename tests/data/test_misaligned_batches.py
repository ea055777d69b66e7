"""The view ``misaligned``: the student reads what it reads in ``paired``, the teacher its own tags and regions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from vlkd.data import AnswerVocabulary, CaptioningSet, PretrainingSet, RegionMemory, VQASet, model_inputs, write_store
from vlkd.errors import VlkdError
from vlkd.objectives import rows_counted

C, Q, G, R = 12, 10, 5, 4  # caption, question and tag budgets, regions
TASKS = [PretrainingSet, CaptioningSet, VQASet]
OF_THE_TEACHER = {"teacher_input_ids", "teacher_attention_mask", "compared_attention_mask"}


@pytest.fixture(scope="module")
def make(store, corpus, tokenizer, text):
    """make(VQASet, "misaligned", tags_masking=0.5): a set over the hand-made pictures; settings are the recipe's."""

    def build(kind, view, *, source=store, condition="picture", **settings):
        options = {"answers": AnswerVocabulary.of_corpus(corpus)} if kind is VQASet else {}
        changed = text.model_copy(update=settings)
        return kind(corpus, source, tokenizer, changed, view, condition=condition, padding="max_length", **options)

    return build


def batch_of(dataset, epoch: int = 0):
    dataset.set_epoch(epoch)
    return dataset.collator([dataset[index] for index in range(6)])


@pytest.mark.parametrize("kind", TASKS)
def test_the_student_reads_what_it_reads_when_paired(make, kind) -> None:
    paired, misaligned = make(kind, "paired"), make(kind, "misaligned")
    for epoch in range(5):
        expected, found = batch_of(paired, epoch), batch_of(misaligned, epoch)
        assert found.keys() == expected.keys() | OF_THE_TEACHER
        for name in expected.keys() - {"teacher_regions", "distill_mask"}:
            assert torch.equal(found[name], expected[name]), name
        student = model_inputs(expected, "student")
        assert all(torch.equal(value, student[name]) for name, value in model_inputs(found, "student").items())


@pytest.mark.parametrize("kind", TASKS)
def test_the_teacher_reads_its_own_tags_and_regions_and_the_same_text(make, kind, records, tokenizer) -> None:
    dataset = make(kind, "misaligned", tags_masking=0.0)
    batch = batch_of(dataset)
    inputs, budget = model_inputs(batch, "teacher"), dataset.collator.text_budget
    assert torch.equal(inputs["input_ids"][:, :budget], batch["input_ids"][:, :budget])
    assert not torch.equal(inputs["input_ids"], batch["input_ids"])
    assert inputs["attention_mask"] is batch["teacher_attention_mask"]
    for row in range(6):
        record = next(record for record in records if record.key == dataset[row].key)
        count = len(record.own_boxes)
        np.testing.assert_array_equal(inputs["regions"][row, :count], record.own_features)
        assert not inputs["regions"][row, count:].any()
        tags = tokenizer(" ".join(record.own_tags), add_special_tokens=False)["input_ids"][: G - 1]
        expected = [*tags, tokenizer.sep_token_id]
        assert inputs["input_ids"][row, budget:].tolist() == expected + [tokenizer.pad_token_id] * (G - len(expected))


def by_hand(question: int, tags: int, regions: int) -> list[bool]:
    """A mask over a question's sequence with so many tokens in each part."""
    parts = ((question, Q), (tags, G), (regions, R))
    return [place < count for count, budget in parts for place in range(budget)]


def test_what_is_compared_is_in_both_sequences(make, tokenizer, corpus) -> None:
    dataset, pictures = make(VQASet, "misaligned"), (0, 1, 3)
    batch = dataset.collator([dataset[2 * picture] for picture in pictures])  # the first question about each
    lengths = [len(tokenizer(corpus.questions[picture][0].text)["input_ids"]) for picture in pictures]
    # Tag tokens with [SEP], and regions. "letter a" is two tokens.
    student = [(2, 1), (4, 2), (5, 4)]  # star; ring, letter a; moon, heart, tree, star
    teacher = [(4, 2), (4, 3), (3, 2)]  # star, letter a; ring, moon, tree; moon, tree
    both = [(2, 1), (4, 2), (3, 2)]
    for row, length in enumerate(lengths):
        assert batch["valid"][row].tolist() == by_hand(length, *student[row])
        assert batch["attention_mask"][row, 0].tolist() == by_hand(length, *student[row])
        assert batch["teacher_attention_mask"][row, 0].tolist() == by_hand(length, *teacher[row])
        assert batch["distill_mask"][row].tolist() == by_hand(length, *both[row])
        assert batch["compared_attention_mask"][row, 0].tolist() == by_hand(length, *both[row])
    tokens = sum(lengths) + sum(map(sum, both))
    assert rows_counted(batch, ("attention", "hidden"), heads=3).tolist() == [3 * tokens, tokens]


def test_captions_are_causal_for_both_models(make) -> None:
    batch = batch_of(make(CaptioningSet, "misaligned"))
    structure = torch.ones(C + G + R, C + G + R, dtype=torch.bool)
    structure[:C, :C] = structure[:C, :C].tril()
    structure[C:, :C] = False
    valid = batch["valid"]
    own = model_inputs(batch, "teacher")["attention_mask"].any(-1)  # every valid token sees itself
    assert not torch.equal(own, valid)
    for name, both in (
        ("attention_mask", valid),
        ("teacher_attention_mask", own),
        ("compared_attention_mask", valid & own),
    ):
        assert torch.equal(batch[name], structure & both[:, None, :] & both[:, :, None]), name
    assert torch.equal(batch["distill_mask"], valid & own)


def test_mismatched_pairs_are_not_distilled(make) -> None:
    batch = batch_of(make(PretrainingSet, "misaligned"))
    matched = batch["matched"].bool()
    assert matched.any() and not matched.all()
    both = batch["valid"] & batch["teacher_attention_mask"][:, 0]
    assert torch.equal(batch["distill_mask"], both & matched[:, None])


def test_the_teachers_tags_are_masked_by_draws_of_their_own(make, tokenizer) -> None:
    """Picture 2 has four words or more on either side: letter a, moon, heart; letter a, heart, star, letter a."""
    whole = make(PretrainingSet, "misaligned", tags_masking=0.0)[2]
    dataset = make(PretrainingSet, "misaligned", tags_masking=0.4)
    masked, kept = [], []
    for epoch in range(300):
        dataset.set_epoch(epoch)
        sample = dataset[2]
        assert sample.own_tags[-1] == tokenizer.sep_token_id
        masked.append(sample.own_tags[:4] == tokenizer.mask_token_id)
        kept.append(sample.tags[:4] == whole.tags[:4])
    masked, kept = np.array(masked), np.array(kept)
    assert masked.mean() == pytest.approx(0.4 * 0.8, abs=0.06)  # 1200 draws: standard error 0.014
    assert (masked & kept).mean() == pytest.approx(masked.mean() * kept.mean(), abs=0.06)  # independent


@pytest.mark.parametrize("kind", [CaptioningSet, VQASet])
def test_fine_tuning_masks_no_tags(make, kind, tokenizer) -> None:
    dataset = make(kind, "misaligned", tags_masking=1.0)
    assert all((dataset[index].own_tags != tokenizer.mask_token_id).all() for index in range(len(dataset)))


@pytest.mark.parametrize("kind", TASKS)
def test_without_the_picture_neither_sees_tags_or_regions(make, kind) -> None:
    dataset = make(kind, "misaligned", condition="none")
    batch, text = batch_of(dataset), dataset.collator.text_budget
    for name in ("attention_mask", "teacher_attention_mask", "compared_attention_mask"):
        assert batch[name][:, :, :text].any() and not batch[name][:, :, text:].any()


def test_regions_in_memory_have_this_view_too(make, records) -> None:
    expected, found = (
        batch_of(make(VQASet, "misaligned", **options)) for options in ({}, {"source": RegionMemory(records)})
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_store_without_the_teachers_own_regions_says_so(make, records, tmp_path) -> None:
    nothing = {name: getattr(records[0], name)[:0] for name in ("own_boxes", "own_features", "own_tags")}
    source = write_store(tmp_path / "paired", [dataclasses.replace(record, **nothing) for record in records])
    with pytest.raises(VlkdError, match="does not hold the teacher's own regions"):
        make(VQASet, "misaligned", source=source)
