"""Some pictures held out of the training texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vlkd.data.corpus import Corpus
from vlkd.data.derived import TRAIN, Derived, frequent_answers, least_of, save_frequent_answers
from vlkd.errors import VlkdError

_TRAIN = f"{TRAIN}.json"


def hold_out(folder: Path | str, split: str, share: float) -> tuple[Corpus, Corpus]:
    """Move the texts of ``share`` of the pictures from ``folder/train.json`` to ``folder/<split>.json``; returns (train, held out).

    Which pictures is decided by their keys alone, so that other texts about them, or more pictures, leave them where they are
    as nearly as the share allows. A stopped call is completed by the next one. Texts that are added later cannot bring the held
    out pictures back into training, and answers that were made of the training questions are made of those that stay.

    Raises:
        VlkdError: there are no training texts, the share leaves a side without pictures, or the split exists already.
    """
    folder = Path(folder)
    if split == TRAIN:
        raise VlkdError(f"Pictures are held out of '{_TRAIN}': give another split's name with --name.")
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
    least = least_of(folder)
    answers = None if least is None else frequent_answers(kept, least)
    Derived(folder).hold_out(split)
    held.save(place)
    if least is not None and answers is not None:
        save_frequent_answers(folder, kept, answers, least)
    kept.save(folder / _TRAIN)
    return kept, held
