"""Beam search over any left-to-right scorer; width 1 is greedy decoding.

Letters: P pictures, W beam width, N live hypotheses of all pictures, V vocabulary, t generated tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NextScores = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(tokens [N, t], pictures [N], parents [N]) -> log probabilities [N, V]`` of the next token.

``parents`` names, for each hypothesis, the row of the previous call that it continues (0..P-1 in order at
the first call), so that a scorer may carry states from step to step.
"""


@dataclass(frozen=True)
class Hypothesis:
    """One finished caption: token ids without the end token, and its normalised score."""

    tokens: tuple[int, ...]
    score: float


def length_normalised(log_probability: float, length: int, power: float) -> float:
    """``log p / length ** power``; ``length`` counts generated tokens, the end token among them."""
    return log_probability / max(length, 1) ** power


@torch.no_grad()
def beam_search(
    next_scores: NextScores,
    pictures: int,
    *,
    end: int,
    width: int,
    max_tokens: int,
    length_power: float = 1.0,
    device: torch.device | None = None,
) -> list[Hypothesis]:
    """The best caption found for each of ``pictures`` pictures.

    At each step the best continuations of a picture's live hypotheses share its ``width`` places; a
    continuation by ``end`` leaves the beam and keeps its place, so a picture costs less as its hypotheses
    finish and is done when all places are taken. Places are given by ``log p``; the winner among the
    finished is the one with the highest ``log p / length ** length_power`` (1, as in Oscar; 0 compares
    plain log probabilities). A hypothesis of ``max_tokens`` tokens is finished without ``end``.
    """
    if width < 1 or max_tokens < 1:
        raise ValueError(f"width and max_tokens must be at least 1, got {width} and {max_tokens}")
    finished: list[list[Hypothesis]] = [[] for _ in range(pictures)]
    tokens = torch.empty(pictures, 0, dtype=torch.int64, device=device)  # [N, t]
    owner = torch.arange(pictures, device=device)  # [N] picture of each hypothesis
    parents = torch.arange(pictures, device=device)  # [N]
    total = torch.zeros(pictures, dtype=torch.float64, device=device)  # [N] log probability
    places = torch.full((pictures,), width, dtype=torch.int64, device=device)  # [P] still open

    for length in range(1, max_tokens + 1):
        if owner.numel() == 0:
            break
        scores = total[:, None] + next_scores(tokens, owner, parents).double()  # [N, V]
        total, parents, chosen, owner = _best_continuations(scores, owner, places)
        tokens = torch.cat([tokens[parents], chosen[:, None]], dim=1)
        ended = chosen == end
        leaving = ended if length < max_tokens else torch.ones_like(ended)
        for row in leaving.nonzero().flatten().tolist():
            words = tokens[row].tolist()
            words = words[:-1] if words[-1] == end else words
            score = length_normalised(float(total[row]), length, length_power)
            finished[int(owner[row])].append(Hypothesis(tuple(words), score))
        places = places - torch.bincount(owner[leaving], minlength=pictures)
        live = ~leaving
        tokens, owner, parents, total = tokens[live], owner[live], parents[live], total[live]
    if not all(finished):
        raise ValueError(
            f"picture {[bool(found) for found in finished].index(False)} of the batch has no continuation of "
            "finite score; the scorer must give finite log probabilities to at least one token"
        )
    return [max(found, key=lambda hypothesis: hypothesis.score) for found in finished]


def _best_continuations(scores: Tensor, owner: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each picture its ``places`` best entries of ``scores`` [N, V]: (score, row, token, picture)."""
    pictures, vocabulary = places.numel(), scores.shape[1]
    # Rows of one picture are neighbours, in the order of `owner`: give each its slot within the picture.
    per_picture = torch.bincount(owner, minlength=pictures)  # [P]
    first = per_picture.cumsum(0) - per_picture  # [P]
    slot = torch.arange(owner.numel(), device=owner.device) - first[owner]  # [N]
    slots = int(per_picture.max())
    table = scores.new_full((pictures, slots, vocabulary), -torch.inf)
    table[owner, slot] = scores
    keep = min(int(places.max()), slots * vocabulary)
    best, index = table.flatten(1).topk(keep, dim=1)  # [P, keep], sorted
    rank = torch.arange(keep, device=owner.device)
    wanted = best.isfinite() & (rank[None, :] < places[:, None])
    picture, column = wanted.nonzero(as_tuple=True)
    flat = index[picture, column]
    return best[picture, column], first[picture] + flat // vocabulary, flat % vocabulary, picture
