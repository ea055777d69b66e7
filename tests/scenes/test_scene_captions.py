"""Captions: five true sentences in few words, which cannot be guessed without the picture."""

from __future__ import annotations

import random
import re
from itertools import pairwise

import pytest
from pycocoevalcap.cider.cider import Cider
from scene_oracle import caption_holds, things_of

from vlkd.scenes import Picture

pytestmark = pytest.mark.slow


def test_everything_a_caption_says_is_true(pictures):
    false = [
        (picture.key, caption)
        for picture in pictures
        for caption in picture.captions
        if not caption_holds(things_of(picture), caption)
    ]
    assert false == []


def test_the_check_itself_finds_captions_of_another_picture_false(pictures):
    held = [
        caption_holds(things_of(picture), caption)
        for picture, other in pairwise(pictures)
        for caption in other.captions
    ]
    assert sum(held) < 0.03 * len(held)


def test_five_different_short_captions_in_plain_words(pictures):
    for picture in pictures:
        assert len(picture.captions) == len(set(picture.captions)) == 5
        for caption in picture.captions:
            assert len(caption.split()) <= 18
            assert re.fullmatch(r"[a-z0-9]+( ([a-z0-9]+|,))*", caption)


def test_the_vocabulary_is_small(corpus):
    sentences = [sentence for part in corpus for picture in part for sentence in sentences_of(picture)]
    words = {word for sentence in sentences for word in sentence.split()}
    print(f"vocabulary: {len(words)} words")
    assert len(words) <= 200


def sentences_of(picture: Picture) -> list[str]:
    asked = [f"{question.text} {question.answer}" for question in picture.questions]
    return [*picture.captions, *asked]


def test_captions_cannot_be_guessed_without_the_picture(corpus):
    train, test = corpus
    known = [caption for picture in train for caption in picture.captions]
    draw = random.Random(0)
    retrieved = cider(test, [draw.choice(known) for _ in test])
    constant = max(cider(test, [caption] * len(test)) for caption in draw.sample(known, 12))
    print(f"CIDEr x 100: retrieved {100 * retrieved:.0f}, best constant {100 * constant:.0f}")
    assert retrieved < 0.3
    assert constant < 0.4


def test_the_five_captions_of_a_picture_agree(corpus):
    """One of them scores far above a guess when it is compared with the other four."""
    test = corpus[1]
    assert cider(test, [picture.captions[0] for picture in test], references=slice(1, None)) > 1.3


def cider(pictures: list[Picture], captions: list[str], references: slice = slice(None)) -> float:
    truth = {i: list(picture.captions[references]) for i, picture in enumerate(pictures)}
    return float(Cider().compute_score(truth, {i: [caption] for i, caption in enumerate(captions)})[0])
