"""`vlkd score`: result files of any model, scored as COCO and VQA do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Score result files as COCO and VQA v2 do; any model's will do.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
Results = Annotated[Path, typer.Argument(help="The result file: a JSON list.")]


@app.command()
def captions(
    results: Results,
    annotations: Annotated[Path, typer.Argument(help="COCO's captions_*.json, or Oscar's *_caption.json.")],
    subset: Annotated[
        bool, typer.Option("--subset", help="Score the images that have a caption, and no others.")
    ] = False,
) -> None:
    """CIDEr, BLEU, ROUGE-L, METEOR and SPICE of `[{"image_id": …, "caption": …}, …]`.

    With Java the captions are tokenised as COCO does, and the scores are COCO's; without, another tokenisation is used and named.
    """
    from vlkd.evaluation import JavaMetrics, evaluate_captions_file

    with JavaMetrics() as java:
        found = evaluate_captions_file(results, annotations, java, subset=subset)
    for name, value in found.scores.items():
        typer.echo(f"{name:8} {100 * value:6.2f}")
    for name, reason in found.unavailable.items():
        typer.echo(f"{name:8}      – {reason}")
    typer.echo(f"Tokenisation: {found.tokenisation}.")
    for hint in found.hints:
        typer.echo(hint)


@app.command()
def vqa(
    results: Results,
    annotations: Annotated[Path, typer.Argument(help="v2_mscoco_*_annotations.json.")],
    questions: Annotated[Path, typer.Argument(help="v2_OpenEnded_mscoco_*_questions.json.")],
) -> None:
    """VQA v2's accuracy of `[{"question_id": …, "answer": …}, …]`, over all questions and by type of answer."""
    from vlkd.evaluation import evaluate_answers_file

    found = evaluate_answers_file(results, annotations, questions)
    for name, value in {"all": found.overall, **found.per_answer_type}.items():
        typer.echo(f"{name:8} {value:6.2f}")
