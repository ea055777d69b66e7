"""Five sentences about a scene, each of another build, all about its most salient things.

Things are told in the order of their size on the picture, so that a model can learn what to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vlkd.scenes.facts import SIDES, Description, count, largest, pick
from vlkd.scenes.scene import CANVAS, Thing
from vlkd.scenes.vocabulary import (
    CLASSES,
    COLOURS,
    NUMBERS,
    SIZES,
    TEXTURES,
    plural,
    with_article,
)

CAPTIONS = 5
MAX_WORDS = 18
SYNONYMS: dict[str, tuple[str, ...]] = {
    "large": ("large", "big"),
    "small": ("small", "little", "tiny"),
    "medium": ("",),
    "plain": ("",),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
    "checked": ("checked", "chequered"),
    "to the left of": ("to the left of", "left of"),
    "to the right of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
PLACES: tuple[tuple[str, ...], ...] = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left side", "in the middle", "on the right side"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)


@dataclass(frozen=True)
class Group:
    """All things of one colour and class."""

    things: tuple[Thing, ...]

    @property
    def area(self) -> float:
        """The area of the largest member."""
        return max(thing.area for thing in self.things)


@dataclass(frozen=True)
class Telling:
    """What the sentences draw on: the things by falling area, their groups, the chance to vary."""

    things: tuple[Thing, ...]
    groups: tuple[Group, ...]
    rng: np.random.Generator

    def word(self, *options: str) -> str:
        """One of the options at random."""
        return pick(self.rng, options)


def write_captions(things: Sequence[Thing], rng: np.random.Generator) -> tuple[str, ...]:
    """Five true sentences of at most 18 words about the things, in random order."""
    ranked = tuple(sorted(things, key=lambda t: t.area, reverse=True))
    kinds = dict.fromkeys((t.colour, t.cls) for t in ranked)
    groups = tuple(Group(tuple(t for t in ranked if (t.colour, t.cls) == kind)) for kind in kinds)
    telling = Telling(ranked, groups, rng)
    captions = [caption for build in BUILDS if (caption := build(telling))][:CAPTIONS]
    return tuple(captions[i] for i in rng.permutation(len(captions)))


def _adjectives(telling: Telling, things: Sequence[Thing], fields: Sequence[str]) -> list[str]:
    """Words for the named fields as far as all the things agree on them."""
    words = []
    for field, names in (("size", SIZES), ("texture", TEXTURES)):
        values = {getattr(thing, field) for thing in things}
        if field in fields and len(values) == 1:
            words.append(telling.word(*SYNONYMS[names[values.pop()]]))
    return [word for word in words if word]


def _one(telling: Telling, thing: Thing, *fields: str) -> str:
    """`a big striped red star`."""
    words = [*_adjectives(telling, [thing], fields), COLOURS[thing.colour], CLASSES[thing.cls]]
    return with_article(" ".join(words))


def _all(telling: Telling, group: Group, *fields: str) -> str:
    """`a red star`, or `two red stars` when there are two."""
    first, number = group.things[0], len(group.things)
    if number == 1:
        return _one(telling, first, *fields)
    words = _adjectives(telling, group.things, fields)
    return " ".join([NUMBERS[number], *words, COLOURS[first.colour], plural(CLASSES[first.cls])])


def _short_enough(*sentences: str) -> str:
    """The first sentence within the limit; they come in the order of falling length."""
    return next(s for s in sentences if len(s.split()) <= MAX_WORDS)


def _relation(telling: Telling) -> str | None:
    """`a big red star is left of a blue ring`: the first clear pair among the four largest."""
    top = telling.things[:4]
    pairs = [(a, b) for j, b in enumerate(top) for a in top[:j]]
    for a, b in pairs:
        for side in SIDES:
            if side.clearly(a, b):
                verb = telling.word("{} is {} {}", "there is {} {} {}", "{} sits {} {}")
                phrase = telling.word(*SYNONYMS[side.phrase])
                return verb.format(_one(telling, a, "texture"), phrase, _one(telling, b))
    return None


def _listing(telling: Telling) -> str | None:
    """`a picture of a red star , two blue rings and a white moon`."""
    opening = telling.word("", "a picture of ", "we can see ", "here we see ")
    names = [_all(telling, group) for group in telling.groups[:3]]
    return _short_enough(*(opening + _join(names[:n]) for n in range(len(names), 0, -1)), _join(names[:1]))


def _join(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return " , ".join(names[:-1]) + " and " + names[-1]


def _counting(telling: Telling) -> str | None:
    """`there are three stars and a blue ring`: the most numerous class or colour, and another."""
    kinds = [Description(cls=t.cls) for t in telling.things]
    kinds += [Description(colour=t.colour) for t in telling.things]
    most = max(kinds, key=lambda d: count(telling.things, d))
    number = count(telling.things, most)
    if number < 2:
        return None
    phrase = f"{NUMBERS[number]} {most.plural()}"
    others = [g for g in telling.groups if not most.fits(g.things[0])]
    if not others:
        shared = COLOURS[telling.things[0].colour] if most.cls is None else plural(CLASSES[most.cls])
        return f"all {NUMBERS[number]} things are {shared}"
    other = _all(telling, others[0])
    return telling.word(f"there are {phrase} and {other}", f"{phrase} with {other}", f"{phrase} and also {other}")


def _placing(telling: Telling) -> str | None:
    """`a big red star is at the top left`: where the largest thing is."""
    thing = telling.things[0]
    x, y = (min(2, int(3 * v / CANVAS)) for v in thing.centre)
    verb = telling.word("{} is {}", "{} can be seen {}", "there is {} {}")
    name = _one(telling, thing, "size", "texture")
    sentence = verb.format(name, PLACES[y][x])
    if len(telling.groups) == 1:
        return sentence
    other = next(g for g in telling.groups if thing not in g.things)
    return _short_enough(f"{sentence} , along with {_all(telling, other)}", sentence)


def _total(telling: Telling) -> str | None:
    """`among seven things , the largest is a striped red star`."""
    number = NUMBERS[len(telling.things)]
    top = largest(telling.things)
    if top is None:
        first = _one(telling, telling.things[0], "texture")
        return telling.word(f"{number} things , one is {first}", f"{number} things , among them {first}")
    name = _one(telling, top, "texture")
    return telling.word(
        f"among {number} things , the largest is {name}",
        f"{number} things , the biggest of them {name}",
        f"{name} is the largest of {number} things",
    )


def _pair(telling: Telling) -> str | None:
    """`a red star together with two blue rings`."""
    names = [_all(telling, group, "size") for group in telling.groups[:2]]
    return telling.word(" together with ", " as well as ").join(names)


BUILDS: tuple[Callable[[Telling], str | None], ...] = (
    _relation,
    _listing,
    _counting,
    _placing,
    _total,
    _pair,
)
"""The builds of a sentence in order of preference; the first five that fit the scene are told."""
