"""Recipes: every setting of a run, validated, with the paper's values as defaults."""

from vlkd.recipes.load import load_recipe, recipe_names
from vlkd.recipes.schema import (
    CHANGES_NO_NUMBER,
    Detector,
    Detectors,
    Distillation,
    Encoder,
    Evaluation,
    Recipe,
    Schedule,
    Schedules,
    Text,
    Training,
    World,
)

__all__ = [
    "CHANGES_NO_NUMBER",
    "Detector",
    "Detectors",
    "Distillation",
    "Encoder",
    "Evaluation",
    "Recipe",
    "Schedule",
    "Schedules",
    "Text",
    "Training",
    "World",
    "load_recipe",
    "recipe_names",
]
