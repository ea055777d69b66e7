"""Some pictures held out of the training texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vlkd.data.corpus import Corpus
from vlkd.errors import VlkdError

_TRAIN = "train.json"


def hold_out(folder: Path | str, split: str, share: float) -> tuple[Corpus, Corpus]:
    """Move the texts of ``share`` of the pictures from ``folder/train.json`` to ``folder/<split>.json``; returns (train, held out).

    Which pictures is decided by their keys alone, so that other texts about them, or more pictures, leave them where they are
    as nearly as the share allows. A stopped call is completed by the next one.

    Raises:
        VlkdError: there are no training texts, the share leaves a side without pictures, or the split exists already.
    """
    folder = Path(folder)
    corpus, place = Corpus.load(folder / _TRAIN), folder / f"{split}.json"
    count = round(share * len(corpus))
    if not 0 < count < len(corpus):
        raise VlkdError(
            f"A share of {share:g} holds out {count} of the {len(corpus)} pictures in '{folder / _TRAIN}': choose one that "
            "leaves some on both sides."
        )
    rows = corpus.by_hash()
    kept, held = corpus.only(sorted(rows[count:])), replace(corpus.only(sorted(rows[:count])), split=split)
    if place.exists() and Corpus.load(place) != held:
        raise VlkdError(f"'{place}' exists already: name another split, or delete it first.")
    held.save(place)
    kept.save(folder / _TRAIN)
    return kept, held
