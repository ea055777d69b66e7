"""Questions about a scene, each with one short answer that holds beyond doubt.

A form of question returns None when the scene offers no such question. To give nothing away by its
words, a yes/no form first makes sure that both answers could be had and then tosses a coin, and a
count form picks the count before it picks what is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vlkd.scenes.facts import (
    SIDES,
    Description,
    count,
    extreme,
    largest,
    named_things,
    nearest,
    only_one_beyond,
    pick,
    smallest,
)
from vlkd.scenes.scene import Thing
from vlkd.scenes.vocabulary import (
    CLASSES,
    COLOURS,
    PLAIN,
    SIZES,
    TEXTURES,
    is_glyph,
    with_article,
)

MIN_QUESTIONS = 8
COUNT_WEIGHTS = (1.0, 1.0, 1.5, 3.0, 6.0, 8.0, 8.0, 8.0, 8.0, 8.0)  # rarer counts weigh more

EXISTENCE_FIELDS: tuple[tuple[str, ...], ...] = (
    ("cls",),
    ("cls",),
    ("colour",),
    ("colour",),
    ("texture",),
    ("colour", "cls"),
    ("colour", "cls"),
    ("texture", "cls"),
    ("size", "cls"),
    ("texture", "colour"),
)
"""What `is there a ... ?` may name, as often as it stands here."""


@dataclass(frozen=True)
class Question:
    """A question about a picture and its answer, in lower case.

    Attributes:
        kind: here "colour", "texture", "size", "object", "count", "existence", "relation" or "comparison".
        answer: "" where nobody's is known.
        scores: where people disagree, answers and how right each is, from 0 to 1; ``answer`` is then the best one, or "".
        id: the question's number in a data set that numbers them.
    """

    kind: str
    text: str
    answer: str
    scores: tuple[tuple[str, float], ...] = ()
    id: int | None = None

    @property
    def answered(self) -> bool:
        """Whether it can be learned from and scored: an answer is known, or people's scores are."""
        return bool(self.answer or self.scores)


WORDING = frozenset({"what", "which", "is", "are", "does", "have", "there", "can", "you", "see", "the", "of"})
"""Words in which two ways of asking the same thing may differ."""

Things = Sequence[Thing]
Form = Callable[[Things, np.random.Generator], "Question | None"]


def ask_questions(things: Things, rng: np.random.Generator) -> tuple[Question, ...]:
    """At least eight different questions about the things, of as many kinds as the scene allows."""
    asked: dict[str, Question] = {}
    for forms in PLAN:
        _ask(pick(rng, forms), things, rng, asked)
    while len(asked) < MIN_QUESTIONS:
        _ask(pick(rng, (_count_group, _existence)), things, rng, asked)
    return tuple(asked.values())


def _ask(form: Form, things: Things, rng: np.random.Generator, asked: dict[str, Question]) -> None:
    """Add the form's question, unless it is there already in these or other words."""
    question = form(things, rng)
    if question is not None:
        content = " ".join(word for word in question.text.split() if word not in WORDING)
        asked.setdefault(content, question)


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _coin(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)


# One property of one thing


def _what_colour(things: Things, rng: np.random.Generator) -> Question | None:
    named = named_things(things, rng, without=("colour",))
    if not named:
        return None
    thing, name = named[0]
    text = pick(rng, ("what colour is the {} ?", "which colour does the {} have ?"))
    return Question("colour", text.format(name), COLOURS[thing.colour])


def _is_colour(things: Things, rng: np.random.Generator) -> Question | None:
    named = named_things(things, rng, without=("colour",))
    if not named:
        return None
    thing, name = named[0]
    others = [t.colour for t in things if t.colour != thing.colour]
    if not others:
        return None
    truth = _coin(rng)
    colour = thing.colour if truth else pick(rng, others)
    return Question("colour", f"is the {name} {COLOURS[colour]} ?", _yes(truth))


def _what_texture(things: Things, rng: np.random.Generator) -> Question | None:
    for thing, name in named_things(things, rng, without=("texture",)):
        if thing.can_have_texture:
            text = pick(rng, ("what texture does the {} have ?", "what is the texture of the {} ?"))
            return Question("texture", text.format(name), TEXTURES[thing.texture])
    return None


def _is_texture(things: Things, rng: np.random.Generator) -> Question | None:
    for thing, name in named_things(things, rng, without=("texture",)):
        if thing.can_have_texture:
            truth = _coin(rng)
            others = [i for i in range(len(TEXTURES)) if i != thing.texture]
            texture = thing.texture if truth else pick(rng, others)
            return Question("texture", f"is the {name} {TEXTURES[texture]} ?", _yes(truth))
    return None


def _what_size(things: Things, rng: np.random.Generator) -> Question | None:
    named = named_things(things, rng, without=("size", "texture"))
    if not named:
        return None
    thing, name = named[0]
    return Question("size", f"what size is the {name} ?", SIZES[thing.size])


# Which thing


def _which_thing(things: Things, rng: np.random.Generator) -> Question | None:
    by_colour = {t.colour: Description(colour=t.colour) for t in things}
    lone = [d for d in by_colour.values() if count(things, d) == 1]
    crowded = [t for t in things if count(things, by_colour[t.colour]) > 1]
    sized = [Description(colour=t.colour, size=t.size) for t in crowded]
    lone += [d for d in sized if count(things, d) == 1]
    if not lone:
        return None
    chosen = pick(rng, lone)
    thing = next(t for t in things if chosen.fits(t))
    return Question("object", f"what is the {chosen.singular()} ?", CLASSES[thing.cls])


def _which_extent(things: Things, rng: np.random.Generator) -> Question | None:
    word, find = pick(rng, (("largest", largest), ("smallest", smallest)))
    thing = find(things)
    if thing is None:
        return None
    return Question("comparison", f"what is the {word} thing ?", CLASSES[thing.cls])


# How many


def _how_many(kinds: Sequence[Description], things: Things, rng: np.random.Generator) -> Question | None:
    """Pick a count that occurs among the descriptions, then one of those it belongs to."""
    by_count: dict[int, list[Description]] = {}
    for description in kinds:
        by_count.setdefault(count(things, description), []).append(description)
    counts = sorted(by_count)
    weights = np.array([COUNT_WEIGHTS[c] for c in counts])
    number = counts[int(rng.choice(len(counts), p=weights / weights.sum()))]
    text = pick(rng, ("how many {} are there ?", "how many {} can you see ?"))
    phrase = pick(rng, by_count[number]).plural()
    return Question("count", text.format(phrase), str(number))


def _count_colour(things: Things, rng: np.random.Generator) -> Question | None:
    return _how_many([Description(colour=i) for i in range(len(COLOURS))], things, rng)


def _count_class(things: Things, rng: np.random.Generator) -> Question | None:
    return _how_many([Description(cls=i) for i in range(len(CLASSES))], things, rng)


def _count_group(things: Things, rng: np.random.Generator) -> Question | None:
    """Count by size, by texture, or by colour and class together."""
    by_size = [Description(size=i) for i in range(len(SIZES))]
    by_texture = [Description(texture=i) for i in range(len(TEXTURES)) if i != PLAIN]
    by_both = [Description(colour=a.colour, cls=b.cls) for a in things for b in things]
    return _how_many(pick(rng, (by_size, by_texture, by_both)), things, rng)


def _count_all(things: Things, rng: np.random.Generator) -> Question | None:
    text = pick(rng, ("how many things are there ?", "how many things can you see ?"))
    return Question("count", text, str(len(things)))


# Is there one


def _existence(things: Things, rng: np.random.Generator) -> Question | None:
    """Is there a thing with one property, or with two that may occur apart from each other?"""
    fields = pick(rng, EXISTENCE_FIELDS)
    able = [t for t in things if "texture" not in fields or t.texture != PLAIN]
    if not able:
        return None
    present = {_describe(fields, (thing,) * len(fields)) for thing in able}
    absent = [d for d in _tempting(fields, things, able) if count(things, d) == 0]
    if not absent:
        return None
    truth = _coin(rng)
    ordered = sorted(present, key=lambda d: d.singular())
    phrase = with_article(pick(rng, ordered if truth else absent).singular())
    text = pick(rng, ("is there {} ?", "can you see {} ?"))
    return Question("existence", text.format(phrase), _yes(truth))


def _describe(fields: Sequence[str], sources: Sequence[Thing]) -> Description:
    values = {f: getattr(t, f) for f, t in zip(fields, sources, strict=True)}
    return replace(Description(), **values)


def _tempting(fields: tuple[str, ...], things: Things, able: Things) -> list[Description]:
    """Descriptions that may well be wrong: any value alone, or two values found apart."""
    if len(fields) == 1:
        size = {"cls": len(CLASSES), "colour": len(COLOURS), "texture": len(TEXTURES)}[fields[0]]
        start = 1 if fields[0] == "texture" else 0
        return [replace(Description(), **{fields[0]: i}) for i in range(start, size)]
    second = things
    if fields == ("texture", "cls"):
        second = [t for t in things if not is_glyph(t.cls)]
    return [_describe(fields, (a, b)) for a in able for b in second]


# Where


def _is_beside(things: Things, rng: np.random.Generator) -> Question | None:
    named = named_things(things, rng)
    for a, first in named:
        for b, second in named:
            sides = [side for side in SIDES if side.clearly(a, b)]
            if a is b or not sides:
                continue
            truth = _coin(rng)
            side = pick(rng, sides)
            if not truth:
                side = next(s for s in SIDES if s.axis == side.axis and s is not side)
            return Question("relation", f"is the {first} {side.phrase} the {second} ?", _yes(truth))
    return None


def _beyond(things: Things, rng: np.random.Generator) -> tuple[str, Thing] | None:
    """`to the left of the star` and the only thing that is there."""
    for anchor, name in named_things(things, rng):
        for position in rng.permutation(len(SIDES)):
            side = SIDES[position]
            found = only_one_beyond(things, anchor, side)
            if found is not None:
                return f"{side.phrase} the {name}", found
    return None


def _what_is_beyond(things: Things, rng: np.random.Generator) -> Question | None:
    found = _beyond(things, rng)
    if found is None:
        return None
    return Question("relation", f"what is {found[0]} ?", CLASSES[found[1].cls])


def _colour_beyond(things: Things, rng: np.random.Generator) -> Question | None:
    found = _beyond(things, rng)
    if found is None:
        return None
    text = f"what colour is the thing {found[0]} ?"
    return Question("relation", text, COLOURS[found[1].colour])


def _what_is_nearest(things: Things, rng: np.random.Generator) -> Question | None:
    for anchor, name in named_things(things, rng):
        found = nearest(things, anchor)
        if found is not None:
            return Question("relation", f"what is closest to the {name} ?", CLASSES[found.cls])
    return None


def _what_is_extreme(things: Things, rng: np.random.Generator) -> Question | None:
    for position in rng.permutation(len(SIDES)):
        side = SIDES[position]
        found = extreme(things, side)
        if found is not None:
            return Question("relation", f"what is the {side.extreme} thing ?", CLASSES[found.cls])
    return None


# One against another


def _more(kinds: Sequence[Description], things: Things, rng: np.random.Generator) -> Question | None:
    numbers = [(d, n) for d in kinds if (n := count(things, d)) > 0]
    unequal = [(a, b) for a, m in numbers for b, n in numbers if m > n]
    if not unequal:
        return None
    more, fewer = pick(rng, unequal)
    word = pick(rng, ("more", "fewer"))
    truth = _coin(rng)
    first, second = (more, fewer) if truth == (word == "more") else (fewer, more)
    text = f"are there {word} {first.plural()} than {second.plural()} ?"
    return Question("comparison", text, _yes(truth))


def _more_of_colour(things: Things, rng: np.random.Generator) -> Question | None:
    return _more([Description(colour=i) for i in range(len(COLOURS))], things, rng)


def _more_of_class(things: Things, rng: np.random.Generator) -> Question | None:
    return _more([Description(cls=i) for i in range(len(CLASSES))], things, rng)


def _is_larger(things: Things, rng: np.random.Generator) -> Question | None:
    named = named_things(things, rng, without=("size",))
    pairs = [(a, b) for a in named for b in named if a[0].size > b[0].size]
    if not pairs:
        return None
    larger, smaller = pick(rng, pairs)
    word = pick(rng, ("larger", "smaller"))
    truth = _coin(rng)
    first, second = (larger, smaller) if truth == (word == "larger") else (smaller, larger)
    return Question("comparison", f"is the {first[1]} {word} than the {second[1]} ?", _yes(truth))


def _same_colour(things: Things, rng: np.random.Generator) -> Question | None:
    named = named_things(things, rng, without=("colour",))
    pairs = [(a, b) for a in named for b in named if a is not b]
    same = [pair for pair in pairs if pair[0][0].colour == pair[1][0].colour]
    different = [pair for pair in pairs if pair[0][0].colour != pair[1][0].colour]
    if not same or not different:
        return None
    truth = _coin(rng)
    (_, first), (_, second) = pick(rng, same if truth else different)
    text = f"do the {first} and the {second} have the same colour ?"
    return Question("comparison", text, _yes(truth))


PLAN: tuple[tuple[Form, ...], ...] = (
    (_what_colour,),
    (_what_colour, _what_colour, _is_colour),
    (_what_texture, _what_texture, _is_texture),
    (_what_size, _which_extent),
    (_which_thing,),
    (_which_thing, _existence),
    (_count_colour, _count_class),
    (_count_group, _count_all, _which_thing, _which_extent),
    (_existence,),
    (_what_is_beyond, _colour_beyond),
    (_is_beside, _what_is_nearest, _what_is_extreme),
    (_more_of_colour, _more_of_class, _is_larger, _same_colour),
)
"""One question is tried from every row. Answers of the three types come about as often as in VQA v2, where 38 % are yes or
no, 12 % numbers and 50 % others."""
