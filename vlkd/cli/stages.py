"""The method's stages, each by itself, on a folder that `vlkd data import` filled."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlkd.cli.running import resumable, tell

if TYPE_CHECKING:
    from vlkd.training import Stage


class Role(str, Enum):
    """Which of the two encoders."""

    teacher = "teacher"
    student = "student"


class Task(str, Enum):
    """What a model is fine-tuned for."""

    captioning = "captioning"
    vqa = "vqa"


class Weights(str, Enum):
    """What weights are written in."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


Recipe = Annotated[str, typer.Argument(help="A recipe's name (`vlkd recipe list`) or the path of a YAML file.")]
Settings = Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.")]
Data = Annotated[Path, typer.Option(help="Folder that `vlkd data import` or `vlkd regions` filled.")]
Out = Annotated[Path, typer.Option(help="Run folder. The same command resumes it; other settings are refused.")]
Start = Annotated[Path | None, typer.Option(help="Folder of the model to start from (…/model of another run).")]
Taught = Annotated[Path | None, typer.Option("--teacher", help="Folder of the model to distil from.")]
ModelArgument = Annotated[Path, typer.Argument(help="Folder of a fine-tuned model (…/model of its run).")]
TaskOption = Annotated[Task, typer.Option(help="What is learned.")]


def pretrain(
    recipe: Recipe,
    data: Data,
    out: Out,
    settings: Settings = None,
    role: Annotated[
        Role | None,
        typer.Option(help="Whose encoder, and whose detector's features. Default: that of --start, else the teacher."),
    ] = None,
    start: Start = None,
) -> None:
    """Pre-train without distillation: the teacher on its own regions, or the student on its boxes.

    Masked language modelling and image-text matching. `--start` goes on from a model, such as one that `vlkd checkpoint` made.
    """
    from dataclasses import replace

    from vlkd.models import read_card
    from vlkd.recipes import load_recipe
    from vlkd.training import pretrain as stage

    resolved = load_recipe(recipe, settings or ())
    whose = role.value if role is not None else read_card(start).role if start is not None else "teacher"
    _train(recipe, settings, data, out, replace(stage(resolved, whose), start=start))


def adapt(
    recipe: Recipe,
    data: Data,
    out: Out,
    start: Annotated[Path, typer.Option(help="Folder of the pre-trained teacher.")],
    settings: Settings = None,
) -> None:
    """Adapt the teacher: its pre-training goes on, on its features of the student's boxes.

    What it was before (a teacher, pre-trained, with which tokenizer, on which detector) is read from the model; what contradicts
    the data or the recipe is refused. So it is with every model that a stage reads.
    """
    from vlkd.recipes import load_recipe
    from vlkd.training import adapt as stage

    _train(recipe, settings, data, out, stage(load_recipe(recipe, settings or ()), start))


def distill(
    recipe: Recipe,
    data: Data,
    out: Out,
    teacher: Annotated[Path, typer.Option(help="Folder of the adapted teacher.")],
    settings: Settings = None,
) -> None:
    """Pre-train the student with attention and hidden-state distillation."""
    from vlkd.recipes import load_recipe
    from vlkd.training import distill as stage

    _train(recipe, settings, data, out, stage(load_recipe(recipe, settings or ()), teacher))


def finetune(
    recipe: Recipe,
    data: Data,
    out: Out,
    task: TaskOption,
    start: Annotated[Path, typer.Option(help="Folder of the pre-trained model.")],
    settings: Settings = None,
    role: Annotated[
        Role | None,
        typer.Option(help="What --start must be. Default: with --teacher a student, else whatever it is."),
    ] = None,
    teacher: Taught = None,
    own: Annotated[
        bool | None,
        typer.Option(
            "--own/--paired",
            help="A teacher reads its own regions, or the student's boxes. Default: as in --start's training.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Fine-tune for captioning or question answering; with `--teacher`, distilled from a model of the same task.

    Whether `--start` is a student or a teacher, and what it reads, it says itself.
    """
    from vlkd.models import read_card
    from vlkd.recipes import load_recipe
    from vlkd.training import finetune as stage

    resolved, card = load_recipe(recipe, settings or ()), read_card(start)
    whose = role.value if role is not None else "student" if teacher is not None else card.role
    view = card.view if own is None else "own" if own else "paired"
    _train(recipe, settings, data, out, stage(resolved, task.value, whose, start, view=view, teacher=teacher))


def evaluate(
    model: ModelArgument,
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the results. The same command reads them again.")],
    split: Annotated[str, typer.Option(help="Whose texts: SPLIT.json in the data folder.")] = "test",
    controls: Annotated[bool, typer.Option("--controls", help="Also without the picture and with another's.")] = False,
    beam: Annotated[
        int | None, typer.Option(min=1, help="Width of the search for captions. Default: that of the model's recipe.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest caption, likewise.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures at a time; it changes speed only.")] = None,
) -> None:
    """Caption or answer a split, score it, and write results.json and the file that COCO's or VQA's server takes.

    The model says itself what it was trained for, whose regions it reads and how long its inputs are; data with another
    tokenizer, other answers or the regions of another detector are refused. `vlkd card MODEL` shows all of it.
    """
    from vlkd.evaluation import evaluate_model, evaluation_notes
    from vlkd.models import read_card
    from vlkd.training import StageData

    card = read_card(model)
    opened = StageData.open(data)
    options = {"beam": beam, "max_tokens": max_tokens, "batch": batch}
    scores = evaluate_model(model, out, opened, split, controls=controls, **options)
    for condition, found in scores.items():
        shown = "  ".join(f"{name} {100 * value:.1f}" for name, value in found.items())
        typer.echo(f"{condition:8} {shown or 'not scored'}")
    for note in evaluation_notes(out, card.task):
        typer.echo(note)
    typer.echo(f"In '{out}'.")


def export(
    model: ModelArgument,
    data: Annotated[Path, typer.Option(help="Data folder that it was trained on, for the tokenizer and the answers.")],
    out: Annotated[Path, typer.Option(help="Folder that gets the model by itself.")],
    precision: Annotated[Weights, typer.Option(help="Of the weights in the file.")] = Weights.float32,
) -> None:
    """Write a trained model by itself: weights, tokenizer, answers, and what it is; no trace of teacher or queue.

    `vlkd caption` and `vlkd answer` take it with `--exported OUT`. In Python, `VLForCaptioning.from_pretrained(OUT)` and
    `AutoTokenizer.from_pretrained(OUT)` load it, and `vlkd.models.read_card(OUT)` says how long its inputs may be and which
    detector's regions it reads.
    """
    from vlkd.evaluation import export_model
    from vlkd.training import StageData

    export_model(model, out, StageData.open(data), precision.value)
    typer.echo(f"The model: {out}")


def checkpoint(
    folder: Annotated[Path, typer.Argument(help="Oscar's or VinVL's: config.json, pytorch_model.bin, vocab.txt.")],
    out: Annotated[Path, typer.Argument(help="Folder that gets the model, and its tokenizer in tokenizer/.")],
    task: Annotated[str, typer.Option(help="pretraining, captioning or vqa: which head.")] = "pretraining",
    role: Annotated[Role, typer.Option(help="What it is to be in the method.")] = Role.teacher,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Data folder that gets the checkpoint's tokenizer; do this before anything is trained on it."
        ),
    ] = None,
    may_differ: Annotated[
        list[str] | None,
        typer.Option(help="Beginning of the names of tensors that may start afresh or go unused; may be given again."),
    ] = None,
) -> None:
    """Turn a checkpoint of Oscar or VinVL into a model of ours, and say where every tensor went.

    No pickle is executed. `vlkd pretrain --start`, `adapt --start`, `finetune --start` go on from it. A checkpoint does not know
    its token budgets and its detector: `vlkd card OUT --recipe … --data …` says them, before `vlkd evaluate` and `export`.
    """
    from vlkd.data import save_tokenizer, tokenizer_fingerprint
    from vlkd.disk import whole_folder
    from vlkd.errors import VlkdError
    from vlkd.models import ModelCard, load_oscar, load_oscar_tokenizer, quiet_transformers

    for place in (out, *([data / "tokenizer"] if data else [])):
        if place.exists():
            raise VlkdError(f"'{place}' exists already: choose another folder, or delete it first.")
    with whole_folder(out) as unfinished:
        model, report = load_oscar(folder, task, may_differ=may_differ or ())  # type: ignore[arg-type]
        tokenizer = load_oscar_tokenizer(folder)
        facts = {"task": task, "role": role.value, "view": "own" if role is Role.teacher else "paired"}
        vocabulary = {"vocabulary": len(tokenizer), "tokenizer": tokenizer_fingerprint(tokenizer)}
        card = ModelCard(**facts, **vocabulary, stage=f"checkpoint of {folder}", region_dim=model.config.region_dim)
        model.config.card = card.entry()
        with quiet_transformers():
            model.save_pretrained(unfinished)
        for place in (unfinished, *([data] if data else [])):
            save_tokenizer(tokenizer, place / "tokenizer")
    typer.echo(str(report))


def _train(recipe: str, settings: list[str] | None, data: Path, out: Path, stage: Stage) -> None:
    from vlkd.recipes import load_recipe
    from vlkd.training import StageData, train_stage

    resolved = load_recipe(recipe, settings or ())
    with resumable():
        opened = StageData.open(data, resolved)
        for note in filter(None, (opened.left_out(stage.task), *opened.cut(resolved, stage.task))):
            tell(note)
        model = train_stage(out, resolved, stage, opened)
    tell(f"The model: {model}")
