"""Beam search against exhaustive search, over scorers small enough to enumerate."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from vlkd.evaluation.search import beam_search, length_normalised

VOCABULARY, END, PICTURES, LONGEST = 4, 0, 3, 4


def table_of_scores(seed: int) -> dict[tuple[int, tuple[int, ...]], torch.Tensor]:
    """Log probabilities of the next token after every prefix of every picture."""
    generator = torch.Generator().manual_seed(seed)
    prefixes = [p for n in range(LONGEST) for p in product(range(VOCABULARY), repeat=n)]
    return {
        (picture, prefix): (2 * torch.randn(VOCABULARY, generator=generator)).log_softmax(0)
        for picture in range(PICTURES)
        for prefix in prefixes
    }


def scorer(table):
    def next_scores(tokens, pictures, parents):
        rows = zip(pictures.tolist(), tokens.tolist(), strict=True)
        return torch.stack([table[picture, tuple(prefix)] for picture, prefix in rows])

    return next_scores


def exhaustive(table, picture: int, power: float) -> tuple[tuple[int, ...], float]:
    """The best of all captions: those that end, and those of full length."""
    best: tuple[tuple[int, ...], float] = ((), -torch.inf)

    def visit(prefix: tuple[int, ...], total: float) -> None:
        nonlocal best
        for token, score in enumerate(table[picture, prefix].double().tolist()):
            grown, length = total + score, len(prefix) + 1
            words = prefix if token == END else (*prefix, token)
            if token == END or length == LONGEST:
                best = max(best, (words, length_normalised(grown, length, power)), key=lambda found: found[1])
            else:
                visit(words, grown)

    visit((), 0.0)
    return best


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_wide_beam_finds_what_brute_force_finds(seed, power):
    table = table_of_scores(seed)
    found = beam_search(
        scorer(table), PICTURES, end=END, width=VOCABULARY**LONGEST, max_tokens=LONGEST, length_power=power
    )
    for picture, hypothesis in enumerate(found):
        words, score = exhaustive(table, picture, power)
        assert hypothesis.tokens == words
        assert hypothesis.score == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_width_one_is_greedy(seed):
    table = table_of_scores(seed)
    found = beam_search(scorer(table), PICTURES, end=END, width=1, max_tokens=LONGEST)
    for picture, hypothesis in enumerate(found):
        words: list[int] = []
        while len(words) < LONGEST:
            token = int(table[picture, tuple(words)].argmax())
            if token == END:
                break
            words.append(token)
        assert hypothesis.tokens == tuple(words)


def test_a_narrow_beam_can_miss_the_best():
    """The search is a beam, not exhaustive: a width of 1 loses to a wide one somewhere."""
    losses = 0
    for seed in range(5):
        table = table_of_scores(seed)
        narrow, wide = (
            beam_search(scorer(table), PICTURES, end=END, width=width, max_tokens=LONGEST)
            for width in (1, VOCABULARY**LONGEST)
        )
        losses += sum(a.score < b.score - 1e-9 for a, b in zip(narrow, wide, strict=True))
    assert losses > 0


def test_finished_hypotheses_keep_their_places_and_cost_nothing():
    """Once a picture's places are taken by finished captions, it is no longer scored."""
    sure_end = torch.tensor([0.0, -torch.inf, -torch.inf, -torch.inf])
    even = torch.full((VOCABULARY,), 0.25).log()
    asked: list[list[int]] = []

    def next_scores(tokens, pictures, parents):
        asked.append(pictures.tolist())
        return torch.stack([sure_end if picture == 1 else even for picture in pictures.tolist()])

    beam_search(next_scores, PICTURES, end=END, width=2, max_tokens=LONGEST)
    assert asked[0] == [0, 1, 2]
    assert all(1 not in pictures for pictures in asked[1:])


def test_parents_name_the_rows_of_the_call_before():
    table = table_of_scores(3)
    calls: list[list[tuple[int, ...]]] = []

    def next_scores(tokens, pictures, parents):
        if calls:
            before = [calls[-1][parent] for parent in parents.tolist()]
            assert [tuple(row[:-1]) for row in tokens.tolist()] == before
        calls.append([tuple(row) for row in tokens.tolist()])
        return scorer(table)(tokens, pictures, parents)

    beam_search(next_scores, PICTURES, end=END, width=3, max_tokens=LONGEST)
    assert len(calls) > 1


def test_scores_without_any_finite_value_are_refused():
    with pytest.raises(ValueError, match="finite"):
        beam_search(
            lambda tokens, pictures, parents: torch.full((len(pictures), VOCABULARY), torch.nan),
            PICTURES, end=END, width=2, max_tokens=LONGEST,
        )  # fmt: skip


def test_width_zero_is_refused():
    with pytest.raises(ValueError, match="width"):
        beam_search(scorer(table_of_scores(0)), PICTURES, end=END, width=0, max_tokens=LONGEST)
