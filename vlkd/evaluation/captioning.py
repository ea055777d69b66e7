"""Captioning metrics, computed by pycocoevalcap on a tokenisation that needs no Java."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vlkd.evaluation.java_metrics import JAVA_METRICS, JavaMetrics

TOKENISATION = (
    "lower case, split at white space and punctuation, punctuation dropped "
    "(COCO's own scores use the Java PTB tokenizer instead)"
)


@dataclass(frozen=True)
class CaptionScores:
    """Scores as pycocoevalcap gives them (CIDEr 1.0 prints as 100.0), why others are absent, and what makes one meaningless."""

    scores: dict[str, float]
    cider_per_picture: dict[str, float]
    unavailable: dict[str, str] = field(default_factory=dict)
    tokenisation: str = TOKENISATION
    hints: tuple[str, ...] = ()


def tokenise(caption: str) -> str:
    """``"A red, striped star!"`` → ``"a red striped star"``."""
    return " ".join(re.findall(r"[^\W_]+", caption.lower()))


def caption_scores(
    references: Mapping[str, Sequence[str]],
    candidates: Mapping[str, str],
    java: JavaMetrics | None = None,
) -> CaptionScores:
    """BLEU-1..4, ROUGE-L and CIDEr; METEOR and SPICE too when ``java`` is given and has them.

    ``references`` and ``candidates`` hold the same picture keys. CIDEr takes its document frequencies from
    the references given, so scores of two models compare only on the same pictures.
    """
    if references.keys() != candidates.keys():
        odd = sorted(references.keys() ^ candidates.keys())[0]
        raise ValueError(f"every picture needs references and one caption; {odd!r} has only one of the two")
    if not references:
        raise ValueError("caption scores need at least one picture, got none")
    truth = {key: [tokenise(text) for text in texts] for key, texts in references.items()}
    guess = {key: [tokenise(candidates[key])] for key in truth}
    return score_tokenised(truth, guess, java, TOKENISATION)


def score_tokenised(
    truth: Mapping[str, Sequence[str]],
    guess: Mapping[str, Sequence[str]],
    java: JavaMetrics | None,
    tokenisation: str,
) -> CaptionScores:
    """As :func:`caption_scores`, of captions that are tokenised already, one of ``guess`` a picture; keys in the same order."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, _ = Bleu(4).compute_score(truth, guess, verbose=0)
    rouge, _ = Rouge().compute_score(truth, guess)
    cider, per_picture = Cider().compute_score(truth, guess)
    scores = {f"BLEU-{n}": float(value) for n, value in enumerate(bleu, start=1)}
    scores |= {"ROUGE-L": float(rouge), "CIDEr": float(cider)}
    unavailable = dict.fromkeys(JAVA_METRICS, "not asked for: it needs Java")
    if java is not None:
        more, unavailable = java.score(truth, guess)
        scores |= more
    per_picture = {key: float(value) for key, value in zip(truth, per_picture, strict=True)}
    return CaptionScores(scores, per_picture, unavailable, tokenisation, cider_hints(truth))


def cider_hints(truth: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """What CIDEr cannot see in tokenised references.

    It weighs every n-gram (n = 1 … 4) by log(pictures / pictures whose references have it). Where a picture's references have no
    n-gram but those of all pictures, its CIDEr is 0, whatever is said about it; of one picture it always is.
    """
    if len(truth) == 1:
        return (
            "CIDEr of one picture is always 0, even for a perfect caption: it counts the words that tell pictures apart.",
        )
    ngrams = {key: {gram for text in texts for gram in _ngrams(text.split())} for key, texts in truth.items()}
    common = set.intersection(*ngrams.values())
    blind = sum(grams == common for grams in ngrams.values())
    if not blind:
        return ()
    return (
        f"CIDEr of {blind} of the {len(truth)} pictures is always 0, even for a perfect caption: their references have no words but "
        "those of all pictures.",
    )


def _ngrams(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(words[first : first + n]) for n in range(1, 5) for first in range(len(words) - n + 1))
