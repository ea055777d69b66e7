"""The words of the world: what things are called, and how their names are put into a phrase."""

from __future__ import annotations

SHAPES: tuple[str, ...] = (
    "circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond",
    "moon", "arrow", "hexagon", "flower", "cloud", "bolt", "house", "tree",
)  # fmt: skip
GLYPHS: tuple[str, ...] = (
    "letter a", "letter b", "letter k", "letter s",
    "digit 2", "digit 4", "digit 5", "digit 8",
)  # fmt: skip

CLASSES: tuple[str, ...] = SHAPES + GLYPHS
"""Names of everything that is annotated; a class id is an index into this tuple."""

COLOURS: tuple[str, ...] = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black",
)  # fmt: skip
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted", "checked")
SIZES: tuple[str, ...] = ("small", "medium", "large")

ATTRIBUTES: dict[str, tuple[str, ...]] = {"colour": COLOURS, "texture": TEXTURES, "size": SIZES}
"""Attribute name to its value names; an attribute id is an index into the value names."""

PLAIN = TEXTURES.index("plain")
NUMBERS: tuple[str, ...] = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip


def is_glyph(cls: int) -> bool:
    """Whether the class is a letter or a digit; those are always drawn plain."""
    return cls >= len(SHAPES)


def plural(name: str) -> str:
    """The plural of a class name: `star` gives `stars`, `letter a` gives `copies of the letter a`."""
    if name in GLYPHS:
        return f"copies of the {name}"
    return f"{name}es" if name == "cross" else f"{name}s"


def with_article(phrase: str) -> str:
    """The phrase with `a` or `an` before it."""
    return f"an {phrase}" if phrase[0] in "aeio" else f"a {phrase}"
