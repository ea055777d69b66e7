"""How sure a run's differences are: what several trainings with its settings gave, where that is known.

A run trains every model once. `repetition.json` holds what `vlkd study ablations` found for the demo's recipe with other seeds,
in another world; `docs/results` has the whole study, and a test holds the two together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from vlkd.evaluation.seeds import Estimate
from vlkd.recipes import Recipe

_PACKAGED = "repetition.json"


@dataclass(frozen=True)
class RepeatedDifference:
    """``first - second`` of one metric over several trainings, paired by seed. Scores keep their own scale."""

    metric: str  # "CIDEr" or "VQA accuracy"
    first: str  # a ModelRow's name
    second: str
    estimate: Estimate


@dataclass(frozen=True)
class Repetition:
    """What trainings with several seeds gave, and where."""

    differences: tuple[RepeatedDifference, ...]
    settings: Mapping[str, Any]  # the resolved recipe of them all
    pictures: int  # of the test
    command: str  # repeats it
    commit: str

    def of(self, metric: str, first: str, second: str) -> RepeatedDifference | None:
        """The difference of these two models; None where it is not known."""
        wanted = (metric, first, second)
        return next((each for each in self.differences if (each.metric, each.first, each.second) == wanted), None)

    def is_of(self, recipe: Recipe) -> bool:
        """Whether ``recipe`` trains the same; its name, its seed and that of its world may differ."""
        return _seedless(Recipe.model_validate(self.settings)) == _seedless(recipe)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Repetition:
        found = json.loads(text)
        differences = (each | {"estimate": Estimate(**each["estimate"])} for each in found.pop("differences"))
        return cls(differences=tuple(RepeatedDifference(**each) for each in differences), **found)


def known_repetition(recipe: Recipe) -> Repetition | None:
    """What is known of several trainings with these settings on the rendered world; None for other settings."""
    known = Repetition.from_json((resources.files("vlkd.report") / _PACKAGED).read_text(encoding="utf-8"))
    return known if known.is_of(recipe) else None


def _seedless(recipe: Recipe) -> Recipe:
    world = recipe.world.model_copy(update={"seed": 0})
    return recipe.trained_numbers().model_copy(update={"name": "", "seed": 0, "world": world})
