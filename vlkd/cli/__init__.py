"""The `vlkd` command. Heavy imports wait inside the commands, so that `vlkd --help` is instant."""

from __future__ import annotations

import sys

import typer

from vlkd.cli import card, data, demo, recipes, regions, run, score, stages, study
from vlkd.cli.os_errors import sentence
from vlkd.errors import VlkdError

app = typer.Typer(
    name="vlkd",
    help="Compress visual-linguistic transformers by knowledge distillation (DistillVLM, arXiv 2104.02096).\n\n"
    "Start with `vlkd demo --quick`: every stage of the method, in two minutes, on pictures that it renders "
    "itself. Then `vlkd demo` trains for real, and `vlkd caption` and `vlkd answer` "
    "use its models. Data of your own: `vlkd data import`, then `vlkd run`, or one stage after the other.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for _panel, _commands in {
    "The rendered world": (demo.demo, study.study, demo.render, demo.caption, demo.answer),
    "Your own data": (
        regions.regions,
        stages.checkpoint,
        run.run,
        stages.pretrain,
        stages.adapt,
        stages.distill,
        stages.finetune,
        stages.evaluate,
        stages.export,
        card.card,
    ),
    "About": (demo.doctor,),
}.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(data.app, name="data", rich_help_panel="Your own data")
app.add_typer(score.app, name="score", rich_help_panel="Your own data")
app.add_typer(recipes.app, name="recipe", rich_help_panel="About")


def main() -> None:
    """Entry point: a user's mistake is one sentence and status 2; a full disk or a path that cannot be used, and status 1."""
    try:
        app()
    except VlkdError as error:
        typer.echo(f"vlkd: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        typer.echo(f"vlkd: {sentence(error)}", err=True)
        sys.exit(1)
