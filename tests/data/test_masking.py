"""Masking by BERT's rates, and by Oscar's in captioning."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from vlkd.data.masking import IGNORED, TokenIds, mask_caption, mask_tokens
from vlkd.recipes import Text

PAD, UNKNOWN, CLS, SEP, MASK = range(5)
TOKENS = TokenIds(PAD, CLS, SEP, MASK, ordinary=np.arange(5, 1000))
PRETRAINING = partial(mask_tokens, rate=Text().masking)
CAPTIONING = partial(mask_caption, rate=Text().masking, most=Text().caption_masked)
SENTENCE = np.array([CLS, *range(100, 118), SEP])  # 20 tokens


def draw_many(mask, ids: np.ndarray, times: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    pairs = [mask(ids, np.random.default_rng(number), TOKENS) for number in range(times)]
    return np.stack([hidden for hidden, _ in pairs]), np.stack([labels for _, labels in pairs])


@pytest.mark.parametrize("mask", [PRETRAINING, CAPTIONING])
def test_labels_are_the_original_tokens_and_the_rest_is_untouched(mask) -> None:
    hidden, labels = draw_many(mask, SENTENCE, 200)
    chosen = labels != IGNORED
    assert chosen.any()
    assert (labels == np.where(chosen, SENTENCE, IGNORED)).all()
    assert (hidden[~chosen] == np.broadcast_to(SENTENCE, hidden.shape)[~chosen]).all()


def test_pretraining_hides_15_percent_and_no_special_token() -> None:
    _, labels = draw_many(PRETRAINING, SENTENCE)
    chosen = labels != IGNORED
    assert not chosen[:, 0].any() and not chosen[:, -1].any()
    # 72,000 independent draws: the standard error of the rate is 0.0013.
    assert chosen[:, 1:-1].mean() == pytest.approx(0.15, abs=0.006)
    assert chosen[:, 1:-1].mean(axis=0) == pytest.approx(0.15, abs=0.03)


@pytest.mark.parametrize(("length", "count"), [(2, 1), (5, 1), (10, 2), (17, 3), (40, 3)])
def test_captioning_hides_15_percent_but_at_least_1_and_at_most_3(length: int, count: int) -> None:
    caption = np.array([CLS, *range(100, 98 + length), SEP])
    _, labels = draw_many(CAPTIONING, caption, 100)
    assert ((labels != IGNORED).sum(axis=1) == count).all()


def test_captioning_hides_the_end_as_often_as_a_word_and_never_the_start() -> None:
    _, labels = draw_many(CAPTIONING, SENTENCE)
    rates = (labels != IGNORED).mean(axis=0)
    assert rates[0] == 0
    assert rates[1:] == pytest.approx(3 / 19, abs=0.03)  # standard error 0.006


def test_chosen_tokens_become_mask_random_or_themselves() -> None:
    hidden, labels = draw_many(PRETRAINING, SENTENCE)
    now, before = hidden[labels != IGNORED], labels[labels != IGNORED]
    # About 10,800 chosen tokens: standard errors below 0.004.
    assert (now == MASK).mean() == pytest.approx(0.8, abs=0.016)
    assert (now == before).mean() == pytest.approx(0.1, abs=0.012)
    others = now[(now != MASK) & (now != before)]
    assert len(others) / len(now) == pytest.approx(0.1, abs=0.012)
    assert others.min() >= 5 and len(np.unique(others)) > 400


def test_special_tokens_are_read_off_the_tokenizer(tokenizer) -> None:
    tokens = TokenIds.of(tokenizer)
    assert [tokens.pad, tokens.cls, tokens.sep, tokens.mask] == tokenizer.convert_tokens_to_ids(
        ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    )
    assert not set(tokens.ordinary.tolist()) & set(tokenizer.all_special_ids)
    assert len(tokens.ordinary) == len(tokenizer) - 5


def test_random_tokens_are_those_that_choice_draws() -> None:
    """Runs of earlier versions go on with the same numbers."""
    for seed in range(20):
        ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
        hidden, labels = mask_tokens(SENTENCE, ours, TOKENS, 1.0)
        chosen = np.flatnonzero((theirs.random(len(SENTENCE)) < 1.0) & (SENTENCE != CLS) & (SENTENCE != SEP))
        draw = theirs.random(len(chosen))
        at_random = chosen[(draw >= 0.8) & (draw < 0.9)]
        assert np.array_equal(hidden[at_random], theirs.choice(TOKENS.ordinary, size=len(at_random)))
        assert ours.random() == theirs.random() and np.array_equal(labels[chosen], SENTENCE[chosen])
