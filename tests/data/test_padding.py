"""Batches as long as their longest row hold what batches as long as the budgets hold, and no more."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from vlkd.data import AnswerVocabulary, CaptioningSet, PretrainingSet, RegionMemory, VQASet
from vlkd.data.collate import MULTIPLE

TASKS = [PretrainingSet, CaptioningSet, VQASet]
VIEWS = ["paired", "own", "misaligned"]
CONDITIONS = ["picture", "none", "other"]


@pytest.fixture(scope="module")
def make(store, corpus, tokenizer, text):
    """make(VQASet, "paired"): a set over the hand-made pictures, whose budgets are far above what is needed."""
    budgets = text.model_copy(update={"caption": 30, "question": 26, "tags": 15})

    def build(kind, view="paired", padding="longest", source=store, **options):
        if kind is VQASet:
            options["answers"] = AnswerVocabulary.of_corpus(corpus)
        return kind(corpus, source, tokenizer, budgets, view, padding=padding, **options)

    return build


def batch_of(dataset, indices=range(6)):
    return dataset.collator([dataset[index] for index in indices])


def tokens_of(batch, row, role=""):
    """What each valid place of a row holds, in their order: words with type, position and label, regions' features."""
    mask = batch[f"{role}attention_mask"][row].any(0)
    length, width = len(mask), batch["input_ids"].shape[1]
    index = batch["sequence_index"][row] if "sequence_index" in batch else torch.arange(length)
    ids = batch.get(f"{role}input_ids", batch["input_ids"])
    words = [ids, batch["token_type_ids"], batch["position_ids"]]
    words += [batch["mlm_labels"]] if "mlm_labels" in batch else []
    regions = [batch[name] for name in sorted(batch) if name.endswith("_regions")]
    found = []
    for place in index[mask].tolist():
        if place < width:
            found.append([tensor[row, place].item() for tensor in words])
        else:
            found.append([tensor[row, place - width].tolist() for tensor in regions])
    return found


@pytest.mark.parametrize(("kind", "view", "condition"), list(itertools.product(TASKS, VIEWS, CONDITIONS)))
def test_the_same_tokens_attend_to_the_same_tokens(make, kind, view, condition) -> None:
    short, full = (batch_of(make(kind, view, padding, condition=condition)) for padding in ("longest", "max_length"))
    assert short["valid"].shape[1] < full["valid"].shape[1]
    for row in range(6):
        for role in ("", "teacher_") if view == "misaligned" else ("",):
            assert tokens_of(short, row, role) == tokens_of(full, row, role) != []
        # Where either sequence has a token: what the two have at one place stays at one place.
        pairs = [(batch, batch["valid"] | batch["attention_mask"].any(1)) for batch in (short, full)]
        if view == "misaligned":
            pairs = [(batch, used | batch["teacher_attention_mask"].any(1)) for batch, used in pairs]
        for name in ("valid", "distill_mask"):
            ours, theirs = (batch[name][row][used[row]] for batch, used in pairs)
            assert torch.equal(ours, theirs), name
        for name in ("attention_mask", "teacher_attention_mask", "compared_attention_mask"):
            if name in full:
                ours, theirs = (
                    batch[name].expand(-1, used.shape[1], -1)[row][used[row]][:, used[row]] for batch, used in pairs
                )
                assert torch.equal(ours, theirs), name
    for name in ("picture_ids", "matched", "answers"):
        assert (name in short) == (name in full) and torch.equal(
            short.get(name, torch.ones(1)), full.get(name, torch.ones(1))
        )


@pytest.mark.parametrize(("kind", "view"), list(itertools.product(TASKS, ["paired", "own"])))
def test_every_row_has_its_tokens_at_its_front(make, kind, view) -> None:
    valid = batch_of(make(kind, view))["valid"]
    assert torch.equal(valid, torch.arange(valid.shape[1]) < valid.sum(1, keepdim=True))


@pytest.mark.parametrize(("kind", "view", "condition"), list(itertools.product(TASKS, VIEWS, CONDITIONS)))
def test_a_batch_is_as_long_as_its_longest_row(make, kind, view, condition) -> None:
    dataset = make(kind, view, condition=condition)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        batch = batch_of(dataset)
        used = batch["valid"]
        if view == "misaligned":
            used = used | batch["teacher_attention_mask"].any(1)
        lengths = [dataset.length(index) for index in range(6)]
        assert lengths == [int(row.nonzero().max()) + 1 for row in used]
        assert used.shape[1] == -(-max(lengths) // MULTIPLE) * MULTIPLE
        words = (batch["sequence_index"] < batch["input_ids"].shape[1]) & used
        assert batch["input_ids"].shape[1] % MULTIPLE == 0
        assert batch["input_ids"].shape[1] - words.sum(1).max() < MULTIPLE


def test_a_batch_is_never_longer_than_the_budgets(make, store) -> None:
    dataset = make(VQASet)
    for index in range(len(dataset)):
        batch = batch_of(dataset, [index])
        assert batch["student_regions"].shape[1] <= store.max_regions
        assert batch["valid"].shape[1] <= dataset.collator.max_length


def test_prompts_are_as_long_as_they_say(make) -> None:
    dataset = make(CaptioningSet)
    prompts = dataset.prompts(range(6))
    assert prompts["valid"].sum(1).tolist() == [dataset.prompt_length(index) for index in range(6)]


class Watched(RegionMemory):
    """Regions in memory, and how many rows each read had room for."""

    def __init__(self, records) -> None:
        super().__init__(records)
        self.room: list[int] = []

    def read_into(self, keys, view, batch) -> None:
        self.room.append(batch.boxes.shape[1])
        super().read_into(keys, view, batch)


def test_regions_that_nobody_sees_are_not_read(make, records) -> None:
    """Pictures 0, 1, 2 have 1, 2, 3 regions of at most 4."""
    source = Watched(records)
    batch_of(make(CaptioningSet, source=source), range(3))
    batch_of(make(CaptioningSet, source=source, condition="none"))
    assert source.room == [4]  # a multiple of 8, but no more than any picture has


@pytest.mark.parametrize("view", ["paired", "own"])
def test_a_source_counts_its_regions(store, records, view) -> None:
    keys = [record.key for record in records[::-1]]
    expected = [len(record.student_boxes if view == "paired" else record.own_boxes) for record in records[::-1]]
    for source in (store, RegionMemory(records)):
        assert source.counts(keys, view) == expected
        assert isinstance(np.asarray(source.counts(keys, view)).sum().item(), int)
