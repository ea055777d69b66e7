"""YAML + ``key=value`` overrides → a validated :class:`Recipe`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from vlkd.errors import VlkdError
from vlkd.recipes.schema import Recipe


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("vlkd.recipes")
    inside = [(prefix, item) for prefix in ("", "paper/") for item in (folder / prefix).iterdir()]
    return sorted(prefix + item.name.removesuffix(".yaml") for prefix, item in inside if item.name.endswith(".yaml"))


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read a packaged recipe by name, or a YAML file by path, and apply ``a.b=value`` overrides.

    Raises:
        VlkdError: no such recipe, invalid YAML, an unknown key, or a value out of its range.
    """
    values = _read(name_or_path)
    for override in overrides:
        _apply(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise VlkdError(_sentence(name_or_path, error)) from None


def _read(name_or_path: str) -> dict[str, Any]:
    path = Path(name_or_path)
    if path.suffix.lower() in (".yaml", ".yml"):
        if not path.is_file():
            raise VlkdError(f"There is no recipe file '{path}': check the path, or name one of {recipe_names()}.")
        text = path.read_text(encoding="utf-8")
    elif name_or_path in recipe_names():
        text = (resources.files("vlkd.recipes") / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    else:
        raise VlkdError(
            f"There is no recipe '{name_or_path}': name one of {recipe_names()}, or give the path of a .yaml file."
        )
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise VlkdError(f"Recipe '{name_or_path}' is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise VlkdError(
            f"Recipe '{name_or_path}' must be a YAML mapping of keys to values, not {type(values).__name__}."
        )
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise VlkdError(f"An override is written key=value, for example 'student.width=64'; got '{override}'.")
    *parents, leaf = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise VlkdError(f"In the override '{override}', '{parent}' holds a value, not further keys.")
    values[leaf] = yaml.safe_load(text)


def _sentence(source: str, error: ValidationError) -> str:
    """The first problem that pydantic found, as one sentence."""
    problem = error.errors()[0]
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys here are {known}."
        return f"Recipe '{source}' has the unknown key '{key}': {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"Recipe '{source}' lacks the required key '{key}'."
    where = f"'{key}'" if key else "these settings"
    return (
        f"Recipe '{source}', {where}: {message} (got {problem['input']!r})."
        if key
        else (f"Recipe '{source}': {message}.")
    )


def _known_keys(location: list[str]) -> list[str]:
    section: type[BaseModel] = Recipe
    for part in location:
        annotation = section.model_fields[part].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        section = annotation
    return list(section.model_fields)
