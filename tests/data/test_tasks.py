"""What the three data sets draw, and that they draw it from (seed, epoch, index) alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vlkd.data import IGNORED, AnswerVocabulary, CaptioningSet, PretrainingSet, VQASet
from vlkd.data.masking import TokenIds, mask_tokens
from vlkd.data.tasks import another_picture
from vlkd.errors import VlkdError
from vlkd.recipes.schema import Text


@pytest.fixture(scope="module")
def make(corpus, store, tokenizer, text):
    """make(PretrainingSet, view="own", mismatched=0.0, ...): a set over the hand-made pictures.

    Names of the recipe's text settings change these, the rest goes to the set.
    """

    def build(kind, view="paired", **options):
        if kind is VQASet:
            options.setdefault("answers", AnswerVocabulary.of_corpus(corpus))
        changes = {name: options.pop(name) for name in [*options] if name in Text.model_fields}
        return kind(corpus, store, tokenizer, text.model_copy(update=changes), view, **options)

    return build


def content(sample) -> list:
    """A sample as plain values."""
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in vars(sample).values()]


def epoch_of(dataset, epoch: int) -> list[list]:
    dataset.set_epoch(epoch)
    return [content(dataset[index]) for index in range(len(dataset))]


def words(tokenizer, sample) -> str:
    """The sample's text before masking."""
    ids = np.where(sample.text_labels == IGNORED, sample.text, sample.text_labels)
    return tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", [PretrainingSet, CaptioningSet])
def test_samples_depend_on_seed_epoch_and_index_only(make, kind) -> None:
    dataset = make(kind, seed=3)
    first = epoch_of(dataset, 0)
    assert epoch_of(dataset, 1) != first
    assert epoch_of(dataset, 0) == first
    backwards = make(kind, seed=3)
    assert [content(backwards[index]) for index in reversed(range(6))] == first[::-1]
    assert epoch_of(make(kind, seed=4), 0) != first


@pytest.mark.parametrize("view", ["paired", "misaligned"])
def test_what_a_seed_draws_stays_what_it_was(make, tokenizer, text, view) -> None:
    """Mismatch, other picture, caption, text, tags, the teacher's own: in this order from (seed, task, epoch, index)."""
    dataset, tokens = make(PretrainingSet, view, seed=3), TokenIds.of(tokenizer)
    dataset.set_epoch(7)
    for index in range(6):
        rng = np.random.default_rng((3, 0, 7, index))
        matched = rng.random() >= text.mismatched
        source = index if matched else (index + int(rng.integers(1, 6))) % 6
        caption = dataset._captions[source][rng.integers(2)]
        words, labels = mask_tokens(caption, rng, tokens, text.masking)
        tags, tags_labels = mask_tokens(dataset._tags[index], rng, tokens, text.tags_masking)
        found = dataset[index]
        assert found.matched == matched
        expected = [words, labels, tags, tags_labels]
        drawn = [found.text, found.text_labels, found.tags, found.tags_labels]
        if view == "misaligned":
            expected.append(mask_tokens(dataset._own_tags[index], rng, tokens, text.tags_masking)[0])
            drawn.append(found.own_tags)
        assert [row.tolist() for row in drawn] == [row.tolist() for row in expected]


def test_pretraining_mismatches_half_of_the_pairs_with_another_pictures_caption(make, corpus, tokenizer) -> None:
    dataset = make(PretrainingSet)
    matched = []
    for epoch in range(200):
        dataset.set_epoch(epoch)
        for index in range(len(dataset)):
            sample = dataset[index]
            assert sample.key == corpus.keys[index]
            own = any(words(tokenizer, sample) in caption for caption in corpus.captions[index])
            assert own == sample.matched
            matched.append(sample.matched)
    assert np.mean(matched) == pytest.approx(0.5, abs=0.06)  # 1200 draws: standard error 0.014


def test_pretraining_uses_every_caption_and_masks_tags_too(make, tokenizer) -> None:
    dataset = make(PretrainingSet, mismatched=0.0)
    captions, masked_tags = set(), 0
    for epoch in range(50):
        dataset.set_epoch(epoch)
        sample = dataset[3]
        assert sample.matched
        captions.add(words(tokenizer, sample))
        masked_tags += int((sample.tags_labels != IGNORED).sum())
        assert sample.tags_labels[-1] == IGNORED  # [SEP]
    assert len(captions) == 2
    assert masked_tags > 0


def test_captioning_keeps_tags_whole_and_the_caption_its_own(make, corpus, tokenizer) -> None:
    dataset = make(CaptioningSet)
    for index in range(len(dataset)):
        sample = dataset[index]
        assert any(words(tokenizer, sample) in caption for caption in corpus.captions[index])
        assert sample.tags_labels is None and tokenizer.mask_token_id not in sample.tags


def test_vqa_asks_every_question_with_its_answer(make, corpus, tokenizer) -> None:
    dataset = make(VQASet)
    assert len(dataset) == 12
    sample = dataset[3]  # second picture, second question
    assert (dataset.keys[3], dataset.questions[3]) == (corpus.keys[1], corpus.questions[1][1])
    assert sample.key == corpus.keys[1]
    assert tokenizer.decode(sample.text, skip_special_tokens=True) == "how many?"
    assert sample.answers.tolist() == [1.0] + [0.0] * 6  # "one" is the most frequent answer


def test_a_mask_behind_the_question_takes_room_from_its_words(make, tokenizer, text) -> None:
    plain, asking = make(VQASet), make(VQASet, answer_from="mask")
    for index in range(len(plain)):
        *words, end = plain[index].text.tolist()
        assert asking[index].text.tolist() == [*words[: text.question - 2], tokenizer.mask_token_id, end]
    short = make(VQASet, answer_from="mask", question=4)[0].text.tolist()
    assert short == [*plain[0].text.tolist()[:2], tokenizer.mask_token_id, tokenizer.sep_token_id]


def test_tags_are_masked_at_their_own_rate(make) -> None:
    for rate in (0.0, 0.6):
        dataset = make(PretrainingSet, tags_masking=rate, masking=0.2)
        chosen = total = 0
        for epoch in range(60):
            dataset.set_epoch(epoch)
            for index in range(len(dataset)):
                labels = dataset[index].tags_labels[:-1]
                chosen, total = chosen + int((labels != IGNORED).sum()), total + len(labels)
        assert chosen / total == pytest.approx(rate, abs=0.06)


def test_an_answer_that_training_never_gave_has_no_target(make) -> None:
    dataset = make(VQASet, answers=AnswerVocabulary(["red", "seven"]))
    assert dataset[0].answers.tolist() == [1.0, 0.0]
    assert dataset[1].answers.tolist() == [0.0, 0.0]


def test_views_have_their_own_tags(make, records, tokenizer) -> None:
    for view, tags in (("paired", records[1].tags), ("own", records[1].own_tags)):
        ids = make(VQASet, view=view)[2].tags
        assert tokenizer.decode(ids, skip_special_tokens=True) == " ".join(tags)


def test_texts_and_tags_are_cut_to_their_budgets_and_still_end_with_sep(make, records, tokenizer, text) -> None:
    pretraining, vqa = make(PretrainingSet, mismatched=0.0), make(VQASet)
    for epoch in range(10):
        pretraining.set_epoch(epoch)
        sample = pretraining[0]
        assert len(sample.text) <= text.caption and len(sample.tags) <= text.tags
        assert sample.text[-1] == sample.tags[-1] == tokenizer.sep_token_id
    assert max(len(vqa[index].tags) for index in range(len(vqa))) == text.tags


@pytest.mark.parametrize("kind", [PretrainingSet, CaptioningSet, VQASet])
def test_conditions(make, kind, corpus) -> None:
    given, nothing, other = (make(kind, condition=name) for name in ("picture", "none", "other"))
    for index in range(len(given)):
        sample, without, wrong = given[index], nothing[index], other[index]
        assert without.hide_picture and not sample.hide_picture and not wrong.hide_picture
        assert without.key == sample.key != wrong.key
        assert sample.text.tolist() == wrong.text.tolist() == without.text.tolist()
    assert {other[index].key for index in range(len(other))} == set(corpus.keys)


@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_the_other_picture_is_a_fixed_derangement(count: int) -> None:
    other = another_picture(count)
    assert sorted(other) == list(range(count))
    assert (other != np.arange(count)).all()
    assert (another_picture(count) == other).all()


def test_one_picture_has_no_other(make, corpus, store, tokenizer, text) -> None:
    single = dataclasses.replace(
        corpus, keys=corpus.keys[:1], captions=corpus.captions[:1], questions=corpus.questions[:1]
    )
    with pytest.raises(VlkdError, match="at least 2 pictures, but the split has 1"):
        CaptioningSet(single, store, tokenizer, text, "paired", condition="other")
    with pytest.raises(VlkdError, match="at least 2 pictures, but the corpus has 1"):
        PretrainingSet(single, store, tokenizer, text, "paired")
    alone = text.model_copy(update={"mismatched": 0.0})
    assert len(PretrainingSet(single, store, tokenizer, alone, "paired")) == 1
