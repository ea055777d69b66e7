"""Questions: true answers, and nothing to be had from the words alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from math import log

import pytest
from scene_oracle import answer, things_of

from vlkd.scenes import Picture, Question

pytestmark = pytest.mark.slow

KINDS = {"colour", "texture", "size", "object", "count", "existence", "relation", "comparison"}


def questions_of(pictures: list[Picture]) -> list[Question]:
    return [question for picture in pictures for question in picture.questions]


def test_every_answer_follows_from_the_annotations(pictures):
    wrong = [
        (picture.key, question)
        for picture in pictures
        for question in picture.questions
        if answer(things_of(picture), question.text) != question.answer
    ]
    assert wrong == []


def test_enough_different_questions_of_every_kind(pictures):
    for picture in pictures:
        assert len(picture.questions) >= 8
        assert len({question.text for question in picture.questions}) == len(picture.questions)
        assert len({question.kind for question in picture.questions}) >= 4
        assert all(len(question.answer.split()) <= 2 for question in picture.questions)
    kinds = Counter(question.kind for question in questions_of(pictures))
    assert kinds.keys() == KINDS
    assert min(kinds.values()) > 0.03 * sum(kinds.values())


def test_yes_and_no_are_even_for_every_form(corpus):
    forms: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for question in questions_of(corpus[0]):
        if question.answer in ("yes", "no"):
            forms[question.kind, " ".join(question.text.split()[:2])][question.answer] += 1
    assert len(forms) >= 8
    for form, answers in forms.items():
        total = sum(answers.values())
        # four standard deviations of a fair coin
        assert abs(answers["yes"] / total - 0.5) <= 2.0 / total**0.5, (form, answers)


def test_words_do_not_tell_yes_from_no(corpus):
    """Naive Bayes on single words and pairs of neighbours stays at chance on unseen questions."""
    train, test = ([q for q in questions_of(part) if q.answer in ("yes", "no")] for part in corpus)
    counts = {"yes": Counter(), "no": Counter()}
    for question in train:
        counts[question.answer].update(clues(question))
    totals = {reply: sum(counter.values()) for reply, counter in counts.items()}

    def guess(question: Question) -> str:
        score = sum(
            log((counts["yes"][clue] + 2) / totals["yes"]) - log((counts["no"][clue] + 2) / totals["no"])
            for clue in clues(question)
        )
        return "yes" if score > 0 else "no"

    accuracy = sum(guess(question) == question.answer for question in test) / len(test)
    # 0.5 plus three standard deviations
    assert accuracy < 0.5 + 1.5 / len(test) ** 0.5


def clues(question: Question) -> list[str]:
    words = question.text.split()
    return [question.kind + word for word in words] + [f"{a} {b}" for a, b in pairwise(words)]


@pytest.mark.parametrize("seen_often", [1, 5, 20])
def test_the_most_frequent_answer_is_mostly_wrong(corpus, seen_often):
    """By the exact question if it was seen often enough, else by its kind and first three words."""
    exact: dict[str, Counter[str]] = defaultdict(Counter)
    opening: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions_of(corpus[0]):
        exact[question.text][question.answer] += 1
        opening[stem(question)][question.answer] += 1

    def guess(question: Question) -> str:
        known = exact[question.text]
        answers = known if sum(known.values()) >= seen_often else opening[stem(question)]
        return max(answers, key=lambda reply: answers[reply], default="yes")

    test = questions_of(corpus[1])
    accuracy = sum(guess(question) == question.answer for question in test) / len(test)
    print(f"question prior: {accuracy:.3f}")
    assert accuracy < 0.33


def stem(question: Question) -> str:
    return " ".join([question.kind, *question.text.split()[:3]])


def test_counts_and_colours_are_spread(corpus):
    asked = questions_of(corpus[0])
    counts = Counter(question.answer for question in asked if question.kind == "count")
    assert max(counts.values()) < 0.27 * sum(counts.values())
    colours = Counter(q.answer for q in asked if q.kind == "colour" and q.answer not in ("yes", "no"))
    assert len(colours) == 9
    mean = sum(colours.values()) / 9
    assert all(abs(number - mean) < 4 * mean**0.5 for number in colours.values())  # four standard deviations


def test_the_answers_are_few(corpus):
    answers = {question.answer for question in questions_of(corpus[0])}
    assert len(answers) <= 60
    assert {question.answer for question in questions_of(corpus[1])} <= answers
