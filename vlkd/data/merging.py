"""Texts added to those that a data folder has, without undoing anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vlkd.data.corpus import ANSWERS, AnswerVocabulary, Corpus
from vlkd.data.derived import TRAIN, Derived, frequent_answers, least_of, save_frequent_answers
from vlkd.data.json_rows import first_few
from vlkd.errors import VlkdError
from vlkd.scenes import Question

Tell = Callable[[str], None]


@dataclass(frozen=True)
class NewTexts:
    """Texts to be added.

    Attributes:
        corpus: they, under the keys that the store has.
        answers: what a VQA model shall choose among, where a file says so.
        least: where it is to be made of the questions: how many questions' best answer each is.
        lines: question ids are the lines of a file, and no data set's.
    """

    corpus: Corpus
    answers: AnswerVocabulary | None = None
    least: int | None = None
    lines: bool = False


def add_texts(folder: Path, new: NewTexts, tell: Tell = lambda _: None) -> Corpus:
    """Merge ``new`` with ``folder/<split>.json``; returns all texts that the split then has.

    A picture's new captions replace those that it had, new questions its questions; all other texts stay. So the same
    command may be given again.

    Args:
        folder: of the data.
        new: of one split.
        tell: is given what else is to be known, a sentence at a time.

    Raises:
        VlkdError: pictures that were held out would come back into training, a question's id is taken, or there are answers already
            that differ; nothing is written then.
    """
    merged, answers, least = _planned(folder, new, tell)
    Derived(folder).forget_deleted()
    if least is not None and answers is not None:
        save_frequent_answers(folder, merged, answers, least)
        tell(f"{len(answers)} answers, each the best of {least} questions or more, in '{folder / ANSWERS}'.")
    elif answers is not None and not (folder / ANSWERS).exists():
        answers.save(folder / ANSWERS)
    merged.save(folder / f"{new.corpus.split}.json")
    _count(folder, merged, tell)
    return merged


def check_new(new: NewTexts, folder: Path | None = None) -> None:
    """Whether :func:`add_texts` would add ``new`` to ``folder``, or to one that has no texts yet.

    Raises:
        VlkdError: as there.
    """
    if folder is not None:
        _planned(folder, new, lambda _: None)
    elif new.corpus.split == TRAIN and new.least is not None and new.answers is None:
        frequent_answers(new.corpus, new.least)


def _planned(folder: Path, new: NewTexts, tell: Tell) -> tuple[Corpus, AnswerVocabulary | None, int | None]:
    """All texts that the split shall have, and what :func:`_answers` says."""
    _refuse_undoing(folder, new.corpus, tell)
    place = folder / f"{new.corpus.split}.json"
    merged = _merged(Corpus.load(place), new, tell) if place.is_file() else new.corpus
    return merged, *_answers(folder, new, merged)


def _count(folder: Path, corpus: Corpus, tell: Tell) -> None:
    """Tell of the questions of which nothing, or only that all answers are wrong, can be learned."""
    total = sum(map(len, corpus.questions))
    if unanswered := corpus.unanswered():
        tell(
            f"{unanswered} of {total} questions have no answer: nothing is trained on them, and no accuracy counts them."
        )
    if not (folder / ANSWERS).is_file():
        return
    known = AnswerVocabulary.load(folder / ANSWERS)
    outside = sum(question.answered and not known.knows(question) for of in corpus.questions for question in of)
    if outside:
        tell(
            f"{outside} of {total} questions have an answer that is none of the {len(known)} in '{folder / ANSWERS}': they teach that none of "
            "these is right, and whatever a model says counts as wrong."
        )


def other_splits(folder: Path, split: str) -> Iterator[tuple[str, Corpus]]:
    """The texts in ``folder`` but those of ``split``, by the names of their files."""
    for path in sorted(folder.glob("*.json")):
        if path.name != ANSWERS and path.stem != split:
            yield path.stem, Corpus.load(path)


def _refuse_undoing(folder: Path, corpus: Corpus, tell: Tell) -> None:
    """A picture that was held out is in training or in what it was held out for, never in both."""
    held_out = Derived(folder).held_out
    for name, other in other_splits(folder, corpus.split):
        shared = set(corpus.keys) & set(other.keys)
        if not shared:
            continue
        few = first_few(shared, len(corpus))
        if {name, corpus.split} & set(held_out) and TRAIN in (name, corpus.split):
            held = name if corpus.split == TRAIN else corpus.split
            raise VlkdError(
                f"Pictures {few} with texts for '{corpus.split}' are in '{folder / name}.json', and '{held}' was held out of training by "
                f"`vlkd data split`: leave these texts out, or delete '{folder / held}.json', give all texts for {TRAIN}, and split anew: "
                "the same pictures are held out."
            )
        tell(f"Pictures {few} are in '{folder / name}.json' too.")


def _merged(old: Corpus, new: NewTexts, tell: Tell) -> Corpus:
    """Old and new texts of every picture, the old pictures first."""
    before, added = (
        {
            key: (captions, questions)
            for key, captions, questions in zip(of.keys, of.captions, of.questions, strict=True)
        }
        for of in (old, new.corpus)
    )
    nothing: tuple[tuple[str, ...], tuple[Question, ...]] = ((), ())
    both = {key: (before.get(key, nothing), added.get(key, nothing)) for key in {**before, **added}}
    for place, what in enumerate(("captions", "questions")):
        replaced = sum(1 for one, two in both.values() if one[place] and two[place] and one[place] != two[place])
        kept = sum(1 for one, two in both.values() if one[place] and not two[place])
        if replaced:
            tell(f"The {what} that {_pictures(replaced)} had are replaced.")
        if kept:
            tell(f"The {what} of {_pictures(kept)} stay as they were.")
    kept_ids = {question.id for one, two in both.values() if not two[1] for question in one[1]} - {None}
    merged = {key: (two[0] or one[0], two[1] or one[1]) for key, (one, two) in both.items()}
    taken = {question.id for _, two in both.values() for question in two[1]} & kept_ids
    if taken and not new.lines:
        raise VlkdError(
            f"Questions with the id {first_few(taken, len(kept_ids))} questions in the split '{new.corpus.split}' are about other "
            "pictures: one id is one question's."
        )
    if taken:
        first = 1 + max(number for number in kept_ids if number is not None)
        renumbered = {key: _renumbered(two[1], first) for key, (_, two) in both.items() if two[1]}
        merged |= {key: (merged[key][0], questions) for key, questions in renumbered.items()}
    captions, questions = zip(*merged.values(), strict=True)
    return Corpus(new.corpus.split, tuple(merged), captions, questions)


def _pictures(count: int) -> str:
    return f"{count} picture{'s' * (count != 1)}"


def _renumbered(questions: tuple[Question, ...], first: int) -> tuple[Question, ...]:
    return tuple(replace(question, id=first + (question.id or 0)) for question in questions)


def _answers(folder: Path, new: NewTexts, merged: Corpus) -> tuple[AnswerVocabulary | None, int | None]:
    """The answers that the folder shall have, and by which count they are made of the questions; None and None to leave it."""
    place = folder / ANSWERS
    if new.answers is not None:
        if place.is_file() and AnswerVocabulary.load(place).answers != new.answers.answers:
            raise VlkdError(
                f"'{place}' holds other answers than --answers: delete it to take these; models that answer among the former must then "
                "be trained anew."
            )
        return new.answers, None
    made = least_of(folder)
    if merged.split != TRAIN or not any(merged.questions) or (made is None and (new.least is None or place.is_file())):
        return None, None
    least = made if new.least is None else new.least
    assert least is not None
    return frequent_answers(merged, least), least
