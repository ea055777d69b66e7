"""`vlkd study`: many trainings of the method, compared over seeds."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vlkd.cli.running import command_line, resumable


class Split(str, Enum):
    """What the models are examined on."""

    validation = "validation"
    test = "test"


def study(
    name: Annotated[
        str, typer.Argument(help="A study that comes with the package (ablations), or the path of a YAML file.")
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings of the recipe to change for all rows, as key=value.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the stages, by default runs/NAME. What is there is not trained again."),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Folder that gets tables, plots and raw outcomes; by default OUT/results.")
    ] = None,
    rows: Annotated[
        str,
        typer.Option(
            help="Names of rows, with ; between them; those that they are compared with come along. Default: all."
        ),
    ] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="At most so many seeds of each row.")] = None,
    split: Annotated[
        Split, typer.Option(help="Choose settings on validation; examine on test once they are chosen.")
    ] = Split.test,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stages that run side by side; by default one for every core up to four, or one on a GPU."
        ),
    ] = None,
    list_rows: Annotated[bool, typer.Option("--list", help="Name the rows and train nothing.")] = False,
) -> None:
    """Train and examine every row of a study with several seeds, and compare them: what is distillation worth, and what of it?

    Stages that rows share are trained once a seed. Stopped at any moment, the same command goes on. The results are a table with
    means, deviations, intervals over seeds and paired differences (Markdown, CSV), every single outcome, and a page.
    """
    from vlkd.study import load_study, run_study

    spec = load_study(name)
    if list_rows:
        for row in spec.rows:
            typer.echo(f"{row.name:<28} {len(spec.seeds_of(row, seeds))} seeds  {row.note}")
        return
    folder = out or Path("runs") / spec.name
    wanted = [one.strip() for one in rows.split(";") if one.strip()]
    with resumable():
        page = run_study(
            spec, folder, results or folder / "results", rows=wanted, seeds=seeds, changes=settings or (), split=split.value,
            jobs=jobs, command=command_line(),
        )  # fmt: skip
    typer.echo(f"The page: {page}")
