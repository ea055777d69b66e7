"""`vlkd demo`, and what can be done with a finished run of it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlkd.cli.running import command_line, resumable

if TYPE_CHECKING:
    from vlkd.pipeline.exported import ExportedModel


class Model(str, Enum):
    """The models of a finished run that take pictures."""

    student = "student"
    distilled = "distilled"
    teacher = "teacher"


#: The run that `vlkd caption` and `vlkd answer` take.
DEMO = Path("runs/demo")


class Split(str, Enum):
    train = "train"
    validation = "validation"
    test = "test"


RunOption = Annotated[
    Path | None,
    typer.Option("--run", help="Folder of a finished run of the demo. Default: runs/demo.", show_default=False),
]
ModelOption = Annotated[
    Model | None,
    typer.Option(
        help="'distilled': the student taught by the adapted teacher; 'student': the same without distillation; "
        "'teacher': the adapted teacher. Default: distilled."
    ),
]
ExportedOption = Annotated[Path | None, typer.Option(help="Folder that `vlkd export` wrote, instead of a run.")]
DetectorOption = Annotated[
    str | None,
    typer.Option(
        help="Of an exported model: its detector, by name (`vlkd regions --help`). Needed only where its data did not say it, as "
        "Oscar's files do not; another one than that of its training is refused."
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        help="That detector's weights, as in `vlkd regions`, where the file has moved since.", metavar="FILE|random"
    ),
]
ClassesOption = Annotated[Path | None, typer.Option(help="That detector's class names, likewise.", metavar="FILE")]
ThresholdOption = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Least probability of a region's class; needed where --detector is."),
]
PictureArgument = Annotated[Path, typer.Argument(help="A picture file: PNG, JPEG, WebP, …")]


def demo(
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Settings to change, as key=value: 'distillation.beta=0.5' 'schedules.student.steps=500'."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder; by default runs/demo, or another name for another seed or --quick.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Renders and trains another world.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Every stage, two minutes, models that learn little.")] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stages that run side by side; by default one for every core up to four, or one on a GPU."
        ),
    ] = None,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Train the detectors too (an hour on two cores), not the shipped weights."),
    ] = False,
) -> None:
    """Run the whole method and write a page about it.

    Renders pictures, detects regions with a weak and a strong detector, pre-trains and adapts the teacher, trains the
    student with and without distillation, fine-tunes all of them for captioning and for question answering, evaluates them
    with and without the picture, and writes report.html and results.json into the run folder.

    Stopped at any moment, the same command takes up where it was. A finished folder is reported again; a folder that
    holds other settings is refused.
    """
    from vlkd.pipeline import run_method
    from vlkd.recipes import load_recipe

    changes = [*(settings or []), f"seed={seed}", f"world.seed={seed}"]
    if from_scratch:
        changes.append("detectors.weights=train")
    recipe = load_recipe("quick" if quick else "demo", changes)
    suffix = f"-seed{seed}" if seed else ""
    folder = out or Path("runs") / f"{recipe.name}{suffix}"
    with resumable():
        page = run_method(recipe, folder, command_line(), jobs)
    typer.echo(f"The page: {page}")


def doctor() -> None:
    """Say what is installed, which backend each operator will use and why, and what to do to get more."""
    from rich.console import Console
    from rich.table import Table

    from vlkd.doctor import environment, examine

    console = Console()
    console.print("  ".join(f"{name} {version}" for name, version in environment().items()), highlight=False)
    table = Table(show_lines=True)
    for column in ("", "what", "state", "more"):
        table.add_column(column, overflow="fold")
    for finding in examine():
        mark = "[green]ok[/green]" if finding.good else "[yellow]![/yellow]"
        table.add_row(mark, finding.subject, finding.state, finding.advice)
    console.print(table)


def caption(
    picture: PictureArgument,
    run: RunOption = None,
    model: ModelOption = None,
    exported: ExportedOption = None,
    detector: DetectorOption = None,
    weights: WeightsOption = None,
    classes: ClassesOption = None,
    score_threshold: ThresholdOption = None,
) -> None:
    """Describe a picture with a model of a finished run of the demo, or with one that `vlkd export` wrote.

    The demo's models know the rendered world only; `vlkd render` makes pictures of it. A photograph gets a caption too,
    in the words of that world. An exported model knows the detector that its data were made with, and takes it:
    `vlkd caption photo.jpg --exported student`.
    """
    from vlkd.pipeline import FinishedRun

    _check_options(exported, (run, model), (detector, weights, classes, score_threshold))
    if exported is not None:
        typer.echo(_open(exported, detector, weights, classes, score_threshold).caption(picture))
    else:
        typer.echo(FinishedRun.open(run or DEMO).caption(picture, (model or Model.distilled).value))


def answer(
    picture: PictureArgument,
    question: Annotated[str, typer.Argument(help="For example 'what colour is the star ?'")],
    run: RunOption = None,
    model: ModelOption = None,
    exported: ExportedOption = None,
    detector: DetectorOption = None,
    weights: WeightsOption = None,
    classes: ClassesOption = None,
    score_threshold: ThresholdOption = None,
) -> None:
    """Answer a question about a picture; models as in `vlkd caption`."""
    from vlkd.pipeline import FinishedRun

    _check_options(exported, (run, model), (detector, weights, classes, score_threshold))
    if exported is not None:
        typer.echo(_open(exported, detector, weights, classes, score_threshold).answer(picture, question))
    else:
        typer.echo(FinishedRun.open(run or DEMO).answer(picture, question, (model or Model.distilled).value))


def _check_options(exported: Path | None, of_run: tuple[object, ...], of_exported: tuple[object, ...]) -> None:
    from vlkd.errors import VlkdError

    if exported is not None and any(option is not None for option in of_run):
        raise VlkdError(
            "--run and --model name a model of a finished run, and --exported another one: give these or that."
        )
    if exported is None and any(option is not None for option in of_exported):
        raise VlkdError(
            "--detector, --weights, --classes and --score-threshold go with --exported: a run of the demo has detectors of its own."
        )


def _open(
    exported: Path, detector: str | None, weights: str | None, classes: Path | None, score_threshold: float | None
) -> ExportedModel:
    from vlkd.pipeline.exported import ExportedModel, exported_card, load_detector_of

    loaded = load_detector_of(exported_card(exported), exported, detector, weights, classes)
    return ExportedModel.open(exported, loaded, score_threshold)


def render(
    folder: Annotated[Path, typer.Argument(help="Where the PNG files go.")],
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Which world. The demo trains on seed 0.")] = 1,
    split: Annotated[Split, typer.Option(help="Which part of that world.")] = Split.test,
    size: Annotated[int, typer.Option(min=64, max=512, help="Side of a picture in pixels.")] = 192,
    captions: Annotated[Path | None, typer.Option(help="A CSV that gets the pictures' captions.")] = None,
) -> None:
    """Draw pictures of the rendered world, for trying `vlkd caption`, `vlkd answer` and `vlkd regions`."""
    import csv
    import io

    from vlkd.runs import write_atomically
    from vlkd.scenes import make_picture, save_pictures

    paths = list(save_pictures(folder, seed, split.value, range(count), size))
    for path in paths:
        typer.echo(path)
    if captions is not None:
        table = io.StringIO(newline="")
        rows = csv.writer(table)
        rows.writerow(["picture", "caption"])
        for index, path in enumerate(paths):
            texts = make_picture(seed, split.value, index, size=size).captions
            rows.writerows([path.name, text] for text in texts)
        write_atomically(captions, table.getvalue())
