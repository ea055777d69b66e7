"""Masked language modelling: which tokens are hidden, and by what (BERT, arXiv 1810.04805, section 3.1).

Legend: n tokens. Labels are the original token where one was chosen, IGNORED elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORED = -100
"""The label of a token that no loss counts; PyTorch's and transformers' convention."""

MASKED, RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stays as it is


@dataclass(frozen=True)
class TokenIds:
    """Ids of the special tokens, and those that a random replacement may take."""

    pad: int
    cls: int
    sep: int
    mask: int
    ordinary: np.ndarray

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> TokenIds:
        """Read them off a tokenizer."""
        ids = tokenizer.get_vocab()
        special = {role: ids[str(token)] for role, token in tokenizer.special_tokens_map.items()}
        ordinary = np.array(sorted(set(ids.values()) - set(special.values())))
        return cls(special["pad_token"], special["cls_token"], special["sep_token"], special["mask_token"], ordinary)


def mask_tokens(
    ids: np.ndarray, rng: np.random.Generator, tokens: TokenIds, rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pre-training: each token but [CLS] and [SEP] is chosen with probability ``rate``.

    Args:
        ids: int64 [n].

    Returns:
        The ids with replacements and the labels, both int64 [n].
    """
    if rate == 0:
        return ids, np.full_like(ids, IGNORED)
    ordinary = (ids != tokens.cls) & (ids != tokens.sep)
    chosen = np.flatnonzero((rng.random(len(ids)) < rate) & ordinary)
    return _hide(ids, chosen, rng, tokens)


def mask_caption(
    ids: np.ndarray, rng: np.random.Generator, tokens: TokenIds, rate: float, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Captioning (Oscar): ``rate`` of the caption's tokens, at least 1 and at most ``most``; [SEP] may be chosen, [CLS] not.

    [SEP] has to be learned because it ends a generated caption. Arguments and result as in :func:`mask_tokens`; the
    caption starts with [CLS].
    """
    count = min(max(round(rate * len(ids)), 1), most)
    chosen = np.sort(rng.choice(np.arange(1, len(ids)), size=min(count, len(ids) - 1), replace=False))
    return _hide(ids, chosen, rng, tokens)


def _hide(
    ids: np.ndarray, chosen: np.ndarray, rng: np.random.Generator, tokens: TokenIds
) -> tuple[np.ndarray, np.ndarray]:
    """Replace the chosen tokens: 80 % by [MASK], 10 % by a random ordinary token, 10 % by themselves."""
    labels = np.full_like(ids, IGNORED)
    labels[chosen] = ids[chosen]
    draw = rng.random(len(chosen))
    hidden = ids.copy()
    hidden[chosen[draw < MASKED]] = tokens.mask
    at_random = chosen[(draw >= MASKED) & (draw < MASKED + RANDOM)]
    hidden[at_random] = tokens.ordinary[rng.integers(len(tokens.ordinary), size=len(at_random))]
    return hidden, labels
