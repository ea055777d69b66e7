"""What a study compares: rows of a YAML file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vlkd.errors import VlkdError
from vlkd.recipes import Recipe, load_recipe

When = Literal["pre-training", "fine-tuning"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Row(_Part):
    """A model, how it is trained, and what it is compared with."""

    name: str
    group: str = Field(description="heading that it stands under")
    note: str = Field(default="", description="one sentence for the table")
    model: Literal["teacher", "unadapted", "adapted", "student", "distilled"] = Field(
        description="unadapted: the teacher's weights put before the student's boxes"
    )
    main: bool = Field(default=False, description="has as many seeds as seeds.main says")
    baseline: str | None = Field(default=None, description="the row that it is compared with")
    taught_in: tuple[When, ...] = Field(default=("pre-training", "fine-tuning"), description="of a distilled student")
    aligned: bool = Field(default=True, description="of a distilled student; false: see Stage's view 'misaligned'")
    share: float = Field(default=1.0, gt=0, le=1, description="of the pictures that the student is pre-trained on")
    changes: tuple[str, ...] = Field(default=(), description="key=value settings of its recipe")

    @model_validator(mode="after")
    def _fits_its_model(self) -> Row:
        if self.model != "distilled" and (not self.aligned or len(self.taught_in) != 2):
            raise ValueError(
                f"row '{self.name}': 'aligned' and 'taught_in' are for distilled students, not for '{self.model}'"
            )
        if not self.taught_in:
            raise ValueError(
                f"row '{self.name}': 'taught_in' names no stage; a student without a teacher is model: student"
            )
        if self.share != 1 and self.model not in ("student", "distilled"):
            raise ValueError(f"row '{self.name}': 'share' is for students")
        return self


class ClaimedBetter(_Part):
    """A claim of the paper, as a difference of two rows."""

    text: str
    first: str = Field(description="the row that is claimed to be better")
    second: str
    paper: str = Field(default="", description="what the paper measured")


class Seeds(_Part):
    """How many trainings a row has; their seeds are 0, 1, …"""

    main: int = Field(default=5, ge=1)
    others: int = Field(default=3, ge=1)


class StudySpec(_Part):
    """A study as its file describes it."""

    name: str
    recipe: str = Field(description="name or path of the recipe that all rows start from")
    changes: tuple[str, ...] = Field(default=(), description="key=value settings of the recipe, for all rows")
    seeds: Seeds = Seeds()
    rows: tuple[Row, ...] = Field(min_length=1)
    claims: tuple[ClaimedBetter, ...] = ()

    @model_validator(mode="after")
    def _names_are_known(self) -> StudySpec:
        names = [row.name for row in self.rows]
        for row in self.rows:
            if names.count(row.name) > 1:
                raise ValueError(f"two rows are called '{row.name}'")
            if row.baseline is not None and row.baseline not in names:
                raise ValueError(f"row '{row.name}' is compared with '{row.baseline}', which is no row")
        for claim in self.claims:
            for name in (claim.first, claim.second):
                if name not in names:
                    raise ValueError(f"the claim '{claim.text}' names '{name}', which is no row")
        return self

    def seeds_of(self, row: Row, most: int | None = None) -> range:
        """The row's seeds, at most ``most``."""
        count = self.seeds.main if row.main else self.seeds.others
        return range(count if most is None else min(count, most))

    def only(self, names: list[str]) -> tuple[Row, ...]:
        """The rows of these names and those that they are compared with, in the study's order; all for no name.

        Raises:
            VlkdError: there is no such row.
        """
        by_name = {row.name: row for row in self.rows}
        wanted, left = set[str](), list(names or by_name)
        while left:
            name = left.pop()
            if name not in by_name:
                raise VlkdError(f"There is no row '{name}': the rows are {', '.join(by_name)}.")
            wanted.add(name)
            baseline = by_name[name].baseline
            if baseline is not None and baseline not in wanted:
                left.append(baseline)
        return tuple(row for row in self.rows if row.name in wanted)


def study_names() -> list[str]:
    """Names of the studies that ship with the package."""
    return sorted(item.name.removesuffix(".yaml") for item in _packaged().iterdir() if item.name.endswith(".yaml"))


def load_study(name_or_path: str) -> StudySpec:
    """Read a packaged study by name, or a YAML file by path.

    Raises:
        VlkdError: there is no such study, it is no YAML, a key or value is wrong, or a row's recipe is.
    """
    path = Path(name_or_path)
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        text = path.read_text(encoding="utf-8")
    elif name_or_path in study_names():
        text = (_packaged() / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    else:
        raise VlkdError(
            f"There is no study '{name_or_path}': name one of {study_names()}, or give the path of a .yaml file."
        )
    try:
        spec = StudySpec.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise VlkdError(f"Study '{name_or_path}' is not valid YAML: {' '.join(str(error).split())}.") from None
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        raise VlkdError(f"Study '{name_or_path}'{f', {place}' if place else ''}: {message}.") from None
    shared = _shared(load_recipe(spec.recipe, spec.changes))
    for row in spec.rows:
        if _shared(load_recipe(spec.recipe, [*spec.changes, *row.changes])) != shared:
            raise VlkdError(
                f"Study '{name_or_path}': row '{row.name}' changes the world, the detectors or the vocabulary, which all rows share: "
                "change them for all rows, or make it a study of its own."
            )
    return spec


def _shared(recipe: Recipe) -> tuple:
    return recipe.world, recipe.detectors, recipe.text.vocabulary


def _packaged():
    return resources.files("vlkd.study")
