"""`vlkd card`: what a model is."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vlkd.cli.stages import Role


class Trained(str, Enum):
    """What a model was trained for."""

    pretraining = "pretraining"
    captioning = "captioning"
    vqa = "vqa"


class Boxes(str, Enum):
    """Whose boxes and tags a model reads."""

    own = "own"
    paired = "paired"


def card(
    model: Annotated[Path, typer.Argument(help="Folder of a model.")],
    settings: Annotated[list[str] | None, typer.Argument(help="Settings of --recipe to change, as key=value.")] = None,
    task: Annotated[Trained | None, typer.Option(help="What it was trained for.")] = None,
    role: Annotated[Role | None, typer.Option(help="Whose encoder it is.")] = None,
    view: Annotated[
        Boxes | None, typer.Option(help="Whether it reads the teacher's own regions or the student's boxes.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="That it was trained with: its token budgets, and the beam of captioning.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="That it was trained on: tokenizer, answers, detectors and how many regions a picture has."),
    ] = None,
) -> None:
    """Show what a model is: task, role, token budgets, tokenizer, answers, and the detector whose regions it reads.

    Every stage writes it into the model's config.json, and every command reads it there. A model that was saved by an earlier
    version, or that `vlkd checkpoint` made, does not know all of it; options say the rest, once. What contradicts the model is
    refused.
    """
    from vlkd.models import read_card, write_card
    from vlkd.recipes import load_recipe
    from vlkd.training import StageData
    from vlkd.training.cards import complete_card

    facts = {"task": task, "role": role, "view": view}
    given = {name: value.value for name, value in facts.items() if value is not None}
    if given or recipe is not None or data is not None:
        resolved = load_recipe(recipe, settings or ()) if recipe is not None else None
        opened = StageData.open(data) if data is not None else None
        write_card(model, complete_card(model, given, resolved, opened))
    typer.echo(str(read_card(model)))
