"""`vlkd recipe`: what recipes there are, and what one means."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="List recipes, and show what one means.", no_args_is_help=True, rich_markup_mode="markdown")


@app.command("list")
def list_() -> None:
    """Name the recipes that come with the package."""
    from vlkd.recipes import recipe_names

    for name in recipe_names():
        typer.echo(name)


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(help="A name (`vlkd recipe list`) or the path of a YAML file.")],
    settings: Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.")] = None,
) -> None:
    """Print a recipe with all its values, and what follows from them: parameters, sequence, memory, steps."""
    import yaml
    from rich.console import Console
    from rich.table import Table

    from vlkd.recipes import load_recipe
    from vlkd.training.budget import budget

    resolved = load_recipe(recipe, settings or ())
    typer.echo(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120))
    found = budget(resolved)
    table = Table("", "teacher", "student", title="parameters, millions", title_justify="left")
    for name, (teacher, student) in found.parameters.items():
        table.add_row(name, f"{teacher / 1e6:.2f}", f"{student / 1e6:.2f}")
    console = Console()
    console.print(table)
    console.print(f"sequence: {found.sequence}", highlight=False)
    table = Table(
        "stage", "steps", "batch", "samples", "memory of a step, GiB", title="schedules", title_justify="left"
    )
    for stage in found.stages:
        table.add_row(
            stage.name, f"{stage.steps:,}", str(stage.batch), f"{stage.samples:,}", f"{stage.memory / 2**30:.1f}"
        )
    console.print(table)
    console.print(found.about_memory, highlight=False)
