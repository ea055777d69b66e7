"""Answers questions and checks captions from a picture's annotations alone.

It reads the sentences back by their words and shares no code with the modules that wrote them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import hypot

from vlkd.scenes import ATTRIBUTES, CLASSES, Picture

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SYNONYMS = {
    "big": "large",
    "little": "small",
    "tiny": "small",
    "spotted": "dotted",
    "chequered": "checked",
    "over": "above",
    "under": "below",
    "biggest": "largest",
}
LEADS = {
    "to the left of": lambda a, b: b.x - a.x,
    "to the right of": lambda a, b: a.x - b.x,
    "above": lambda a, b: b.y - a.y,
    "below": lambda a, b: a.y - b.y,
}
SIDE = "(to the left of|to the right of|above|below)"
PLACE = "(?:at the|on the|in the) (?:(top|bottom)|(left|right|middle)|(top|bottom) (left|right))(?: side)?"


@dataclass(frozen=True)
class Seen:
    """One annotated thing, in words and numbers."""

    name: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    area: float


def things_of(picture: Picture) -> list[Seen]:
    """The annotated things of a picture."""
    values = {name: [ATTRIBUTES[name][i] for i in ids] for name, ids in picture.attributes.items()}
    return [
        Seen(
            CLASSES[picture.classes[i]],
            *(values[name][i] for name in ("colour", "texture", "size")),
            x=float(x1 + x2) / 2,
            y=float(y1 + y2) / 2,
            area=float((x2 - x1) * (y2 - y1)),
        )
        for i, (x1, y1, x2, y2) in enumerate(picture.boxes)
    ]


def matching(things: list[Seen], phrase: str) -> list[Seen]:
    """The things that a noun phrase without article or number fits, singular or plural."""
    words = [SYNONYMS.get(w, w) for w in phrase.replace("copies of the ", "").split()]
    adjectives = {name: [w for w in words if w in known] for name, known in ATTRIBUTES.items()}
    noun = " ".join(w for w in words if not any(w in known for known in ATTRIBUTES.values()))
    if noun not in CLASSES and noun not in ("thing", "things"):
        noun = {name + ending: name for name in CLASSES for ending in ("s", "es")}[noun]
    return [
        thing
        for thing in things
        if (noun in ("thing", "things") or noun == thing.name)
        and all(getattr(thing, name) == word for name, named in adjectives.items() for word in named)
    ]


def the(things: list[Seen], phrase: str) -> Seen:
    """The one thing that `the <phrase>` means."""
    (thing,) = matching(things, phrase)
    return thing


def answer(things: list[Seen], question: str) -> str:
    """The answer to a question, from the annotations."""
    for pattern, reply in RULES:
        match = re.fullmatch(pattern + r" \?", question)
        if match:
            return reply(things, *match.groups())
    raise AssertionError(f"no rule reads {question!r}")


def _beyond(things: list[Seen], side: str, phrase: str) -> Seen:
    anchor = the(things, phrase)
    (found,) = [t for t in things if t is not anchor and LEADS[side](t, anchor) > 0]
    return found


def _nearest(things: list[Seen], phrase: str) -> str:
    anchor = the(things, phrase)
    others = [t for t in things if t is not anchor]
    return min(others, key=lambda t: hypot(t.x - anchor.x, t.y - anchor.y)).name


def _extreme(things: list[Seen], word: str) -> str:
    measure = {
        "leftmost": lambda t: -t.x,
        "rightmost": lambda t: t.x,
        "highest": lambda t: -t.y,
        "lowest": lambda t: t.y,
        "largest": lambda t: t.area,
        "smallest": lambda t: -t.area,
    }[word]
    return max(things, key=measure).name


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _more(things: list[Seen], word: str, first: str, second: str) -> str:
    difference = len(matching(things, first)) - len(matching(things, second))
    assert difference != 0
    return _yes((difference > 0) == (word == "more"))


def _larger(things: list[Seen], first: str, word: str, second: str) -> str:
    a, b = (ATTRIBUTES["size"].index(the(things, phrase).size) for phrase in (first, second))
    assert a != b
    return _yes((a > b) == (word == "larger"))


def _same_colour(things: list[Seen], first: str, second: str) -> str:
    return _yes(the(things, first).colour == the(things, second).colour)


def _side(things: list[Seen], first: str, side: str, second: str) -> str:
    lead = LEADS[side](the(things, first), the(things, second))
    assert abs(lead) > 15
    return _yes(lead > 0)


COLOUR_OR_TEXTURE = "|".join(ATTRIBUTES["colour"] + ATTRIBUTES["texture"])
EXTREMES = "leftmost|rightmost|highest|lowest|largest|smallest"
RULES = (
    (f"what colour is the thing {SIDE} the (.+)", lambda t, s, p: _beyond(t, s, p).colour),
    ("what colour is the (.+)", lambda t, p: the(t, p).colour),
    ("which colour does the (.+) have", lambda t, p: the(t, p).colour),
    ("what is the texture of the (.+)", lambda t, p: the(t, p).texture),
    ("what texture does the (.+) have", lambda t, p: the(t, p).texture),
    ("what size is the (.+)", lambda t, p: the(t, p).size),
    (f"what is the ({EXTREMES}) thing", _extreme),
    ("what is closest to the (.+)", _nearest),
    ("what is the (.+)", lambda t, p: the(t, p).name),
    (f"what is {SIDE} the (.+)", lambda t, s, p: _beyond(t, s, p).name),
    ("how many (.+) (?:are there|can you see)", lambda t, p: str(len(matching(t, p)))),
    ("(?:is there|can you see) an? (.+)", lambda t, p: _yes(bool(matching(t, p)))),
    ("are there (more|fewer) (.+) than (.+)", _more),
    ("is the (.+) (larger|smaller) than the (.+)", _larger),
    ("do the (.+) and the (.+) have the same colour", _same_colour),
    (f"is the (.+) {SIDE} the (.+)", _side),
    (f"is the (.+) ({COLOUR_OR_TEXTURE})", lambda t, p, v: _yes(v in (the(t, p).colour, the(t, p).texture))),
)


def group_holds(things: list[Seen], phrase: str) -> bool:
    """Whether `a red star` exists, or whether there are exactly `two red stars`.

    Sizes and textures told of several must fit every one of them.
    """
    number, rest = phrase.split(" ", 1)
    found = matching(things, rest)
    if number in ("a", "an"):
        return bool(found)
    kept = set(ATTRIBUTES["size"]) | set(ATTRIBUTES["texture"])
    bare = " ".join(w for w in rest.split() if SYNONYMS.get(w, w) not in kept)
    return len(found) == NUMBERS.index(number) == len(matching(things, bare))


def caption_holds(things: list[Seen], caption: str) -> bool:
    """Whether everything that a caption says is true of the things."""
    text = re.sub(r"^(a picture of|we can see|here we see|there is|there are) ", "", caption)
    total = re.fullmatch(r"(?:among )?(\w+) things , (the largest is|the biggest of them|one is|among them) (.+)", text)
    if total:
        number, link, name = total.groups()
        return _total_holds(things, number, name, largest="est" in link)
    total = re.fullmatch(r"(.+) is the largest of (\w+) things", text)
    if total:
        return _total_holds(things, total[2], total[1], largest=True)
    shared = re.fullmatch(r"all (\w+) things are (.+)", text)
    if shared:
        number, what = shared.groups()
        found = matching(things, f"{what} things" if what in ATTRIBUTES["colour"] else what)
        return len(things) == len(found) == NUMBERS.index(number)
    beside = re.fullmatch(r"(.+?)(?: is| sits)? ((?:to the )?(?:left|right) of|above|over|below|under) (.+)", text)
    if beside:
        return _relation_holds(things, *beside.groups())
    placed = re.fullmatch(rf"(.+?)(?: is| can be seen)? {PLACE}(?: , along with (.+))?", text)
    if placed:
        first, *where, other = placed.groups()
        return _place_holds(things, first, where) and (other is None or group_holds(things, other))
    parts = re.split(r" , | and also | as well as | together with | and | with ", text)
    return all(group_holds(things, part) for part in parts)


def _total_holds(things: list[Seen], number: str, name: str, *, largest: bool) -> bool:
    found = matching(things, name.split(" ", 1)[1])
    top = max(things, key=lambda t: t.area)
    return len(things) == NUMBERS.index(number) and (top in found if largest else bool(found))


def _relation_holds(things: list[Seen], first: str, side: str, second: str) -> bool:
    side = SYNONYMS.get(side, side)
    lead = LEADS[side if side in LEADS else f"to the {side}"]
    pairs = [
        (a, b) for a in matching(things, first.split(" ", 1)[1]) for b in matching(things, second.split(" ", 1)[1])
    ]
    return any(a is not b and lead(a, b) > 15 for a, b in pairs)


def _place_holds(things: list[Seen], phrase: str, where: list[str | None]) -> bool:
    """Whether such a thing lies in that ninth of a picture of 192 pixels, give or take 3 pixels."""
    named = {word for word in where if word}
    vertical = {"top": 32, "bottom": 160}.get(next(iter(named & {"top", "bottom"}), ""), 96)
    horizontal = {"left": 32, "right": 160}.get(next(iter(named & {"left", "right"}), ""), 96)
    found = matching(things, phrase.split(" ", 1)[1])
    return any(abs(t.x - horizontal) <= 35 and abs(t.y - vertical) <= 35 for t in found)
