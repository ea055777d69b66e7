"""`vlkd run`: the whole method by one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlkd.cli.running import command_line, resumable, tell
from vlkd.cli.stages import Recipe, Settings


def run(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help="Run folder. The same command resumes it; other settings are refused.")],
    settings: Settings = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder that `vlkd data import` or `vlkd regions` filled, with train.json and test.json. Without it, the "
            "recipe's world is rendered, as `vlkd demo` does."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures themselves, for the page; keys are file names.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a pre-trained teacher (`vlkd checkpoint` makes one): its pre-training is left out."
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stages that run side by side; by default one for every core up to four, or one on a GPU."
        ),
    ] = None,
) -> None:
    """Run every stage of the method, evaluate all models, and write a page about it.

    Pre-trains and adapts the teacher, trains the student with and without distillation, fine-tunes all of them for what the
    texts are for (captions, questions, both), and compares them on the test split: with the picture, without it and with
    another's. report.html and results.json lie in the run folder, and every stage in a folder under it. Under
    `torchrun` all processes train every stage, and the first one evaluates.
    """
    from vlkd.errors import VlkdError
    from vlkd.pipeline import run_method
    from vlkd.recipes import load_recipe

    if data is None and (images is not None or start is not None):
        raise VlkdError("--images and --start go with imported data: give their folder with --data.")
    resolved = load_recipe(recipe, settings or ())
    with resumable():
        page = run_method(resolved, out, command_line(), jobs, imported=data, images=images, start=start)
    tell(f"The page: {page}")
