"""What is true of a scene: descriptions, counts, names that fit one thing only, and relations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from vlkd.scenes.scene import Thing
from vlkd.scenes.vocabulary import CLASSES, COLOURS, PLAIN, SIZES, TEXTURES, plural

T = TypeVar("T")

CLEAR = 20.0  # canvas units between two centres before one is said to be left of the other
SLANT = 0.7  # share of the distance along the other axis that this must reach as well
NEAREST_RATIO = 1.3  # how much further the second nearest thing must be
AREA_RATIO = 1.3  # how much the largest thing's box must exceed the second's


@dataclass(frozen=True)
class Description:
    """A noun phrase that fits some of the things; a field left at None fits every value."""

    size: int | None = None
    texture: int | None = None
    colour: int | None = None
    cls: int | None = None

    def fits(self, thing: Thing) -> bool:
        """Whether the thing has every property named."""
        return (
            (self.size is None or self.size == thing.size)
            and (self.texture is None or self.texture == thing.texture)
            and (self.colour is None or self.colour == thing.colour)
            and (self.cls is None or self.cls == thing.cls)
        )

    def singular(self) -> str:
        """The phrase for one thing, without article: `large striped red star`, `red thing`."""
        return " ".join([*self._adjectives(), "thing" if self.cls is None else CLASSES[self.cls]])

    def plural(self) -> str:
        """The phrase for several: `striped red stars`, `red copies of the letter a`."""
        noun = "things" if self.cls is None else plural(CLASSES[self.cls])
        return " ".join([*self._adjectives(), noun])

    def _adjectives(self) -> list[str]:
        named = ((self.size, SIZES), (self.texture, TEXTURES), (self.colour, COLOURS))
        return [names[value] for value, names in named if value is not None]


@dataclass(frozen=True)
class Side:
    """One of the four sides a thing can be on: its words and its direction on the screen."""

    phrase: str  # "to the left of"
    extreme: str  # "leftmost"
    axis: int  # 0 = x, 1 = y
    sign: int

    def lead(self, a: Thing, b: Thing) -> float:
        """How far a's centre lies beyond b's on this side, in canvas units."""
        return self.sign * (a.centre[self.axis] - b.centre[self.axis])

    def clearly(self, a: Thing, b: Thing) -> bool:
        """Whether `a is <phrase> b` holds beyond doubt."""
        across = abs(a.centre[1 - self.axis] - b.centre[1 - self.axis])
        return self.lead(a, b) >= max(CLEAR, SLANT * across)


SIDES: tuple[Side, ...] = (
    Side("to the left of", "leftmost", 0, -1),
    Side("to the right of", "rightmost", 0, 1),
    Side("above", "highest", 1, -1),
    Side("below", "lowest", 1, 1),
)


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, each as likely."""
    return options[int(rng.integers(len(options)))]


def count(things: Sequence[Thing], description: Description) -> int:
    """How many of the things the description fits."""
    return sum(description.fits(thing) for thing in things)


def names_of(things: Sequence[Thing], thing: Thing, without: Sequence[str] = ()) -> list[Description]:
    """The shortest descriptions with a class that fit this thing alone, not using some fields.

    The list holds the bare class if that is enough, else the class with one adjective, else nothing.
    """
    bare = Description(cls=thing.cls)
    if count(things, bare) == 1:
        return [bare]
    adjectives = {"colour": thing.colour, "size": thing.size}
    if thing.texture != PLAIN:
        adjectives["texture"] = thing.texture
    longer = [replace(bare, **{k: v}) for k, v in adjectives.items() if k not in without]
    return [description for description in longer if count(things, description) == 1]


def named_things(
    things: Sequence[Thing], rng: np.random.Generator, without: Sequence[str] = ()
) -> list[tuple[Thing, str]]:
    """Every thing that can be named without doubt, with one of its names, in random order."""
    named = []
    for position in rng.permutation(len(things)):
        thing = things[position]
        names = names_of(things, thing, without)
        if names:
            named.append((thing, pick(rng, names).singular()))
    return named


def only_one_beyond(things: Sequence[Thing], anchor: Thing, side: Side) -> Thing | None:
    """The one thing on that side of the anchor, or None if there are several, none, or a doubt."""
    others = sorted((thing for thing in things if thing is not anchor), key=lambda t: -side.lead(t, anchor))
    first, rest = others[0], others[1:]
    alone = all(side.lead(thing, anchor) <= -CLEAR / 2 for thing in rest)
    return first if alone and side.clearly(first, anchor) else None


def nearest(things: Sequence[Thing], anchor: Thing) -> Thing | None:
    """The thing whose centre is nearest to the anchor's, or None if another is about as near."""
    others = [thing for thing in things if thing is not anchor]
    distance = [np.hypot(*np.subtract(thing.centre, anchor.centre)) for thing in others]
    first, second = np.argsort(distance)[:2]
    return others[first] if distance[second] >= NEAREST_RATIO * distance[first] else None


def extreme(things: Sequence[Thing], side: Side) -> Thing | None:
    """The thing furthest to that side, or None if another is about as far."""
    ranked = sorted(things, key=lambda t: side.sign * t.centre[side.axis], reverse=True)
    return ranked[0] if side.lead(ranked[0], ranked[1]) >= CLEAR * 0.7 else None


def largest(things: Sequence[Thing]) -> Thing | None:
    """The largest thing, or None if another is about as large."""
    ranked = sorted(things, key=lambda t: t.area, reverse=True)
    clear = ranked[0].area >= AREA_RATIO * ranked[1].area
    return ranked[0] if clear and ranked[0].extent == max(t.extent for t in things) else None


def smallest(things: Sequence[Thing]) -> Thing | None:
    """The smallest thing, or None if another is about as small."""
    ranked = sorted(things, key=lambda t: t.area)
    clear = ranked[1].area >= AREA_RATIO * ranked[0].area
    return ranked[0] if clear and ranked[0].extent == min(t.extent for t in things) else None
