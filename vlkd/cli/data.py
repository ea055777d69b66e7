"""`vlkd data`: files of Oscar and VinVL, checked and imported."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vlkd.data.oscar import Sources

app = typer.Typer(
    help="Import and check files of Oscar and VinVL; add texts.", no_args_is_help=True, rich_markup_mode="markdown"
)


class StoredAs(str, Enum):
    """What base64 features are made of."""

    float16 = "float16"
    float32 = "float32"
    float64 = "float64"


class Kept(str, Enum):
    """What a store keeps features in."""

    float16 = "float16"
    float32 = "float32"


_FEATURES = (
    "*.feature.tsv, Oscar+'s features.tsv, the extractor's predictions with features, LXMERT's or bottom-up attention's TSV, a .pt, "
    ".npz or .safetensors of key -> [n, dim], or an Oscar YAML"
)
Student = Annotated[Path | None, typer.Option(help=f"The student's detector's features of its boxes: {_FEATURES}.")]
Teacher = Annotated[Path | None, typer.Option(help="The teacher's detector's features of the *same* boxes.")]
Own = Annotated[
    Path | None, typer.Option(help="The teacher's detector's features of its *own* boxes, to pre-train it on.")
]
Tags = Annotated[Path | None, typer.Option(help="Tags of the student's detector: *.label.tsv or predictions_gt.tsv.")]
OwnTags = Annotated[Path | None, typer.Option(help="Tags of the teacher's detector.")]
Captions = Annotated[
    Path | None,
    typer.Option(
        help="*_caption.json, COCO's captions, Oscar+'s corpus TSV, or a CSV with the columns picture and caption."
    ),
]
Questions = Annotated[
    Path | None,
    typer.Option(
        help="Oscar's *_qla_mrcnn.json with --answers, VQA v2's questions with --annotations, or a CSV with the columns picture, "
        "question and answer."
    ),
]
Annotations = Annotated[Path | None, typer.Option(help="VQA v2's annotations; a test split has none.")]
Least = Annotated[
    int,
    typer.Option(
        "--least-answers", min=1, help="VQA v2: how many questions' most frequent answer a known answer must be."
    ),
]
Answers = Annotated[Path | None, typer.Option(help="trainval_ans2label.pkl, or the same dict as JSON.")]
Stored = Annotated[StoredAs, typer.Option(help="What base64 features are made of.")]
Classes = Annotated[
    Path | None,
    typer.Option(
        help="Names of the class numbers in LXMERT's TSV of the student's detector, one a line (objects_vocab.txt)."
    ),
]
OwnClasses = Annotated[Path | None, typer.Option(help="The same for the teacher's own regions.")]
KeptAs = Annotated[
    Kept, typer.Option(help="Features in the store; float16 halves it, and holds no number beyond 65,504.")
]


@app.command("import")
def import_(
    out: Annotated[
        Path, typer.Argument(help="Folder that gets store/, train.json (or another SPLIT.json) and answers.json.")
    ],
    student: Student = None,
    teacher: Teacher = None,
    own: Own = None,
    tags: Tags = None,
    own_tags: OwnTags = None,
    captions: Captions = None,
    questions: Questions = None,
    answers: Answers = None,
    annotations: Annotations = None,
    stored_as: Stored = StoredAs.float32,
    split: Annotated[str, typer.Option(help="What the texts are for: train, validation, test, …")] = "train",
    dtype: KeptAs = Kept.float16,
    classes: Classes = None,
    own_classes: OwnClasses = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that read side by side.")] = 1,
    least: Least = 9,
) -> None:
    """Write a feature store and texts from files of Oscar and VinVL.

    Rows are matched by key, every picture is verified, and a mistake names file, line and key. Stopped at any moment, the same
    command goes on. Texts of another split for the same pictures: `vlkd data texts`.
    """
    from vlkd.data.oscar import import_oscar
    from vlkd.locks import locked

    sources = _sources(
        student,
        teacher,
        own,
        tags,
        own_tags,
        captions,
        questions,
        answers,
        annotations,
        stored_as,
        classes,
        own_classes,
    )
    with locked(out):
        imported = import_oscar(sources, out, split=split, dtype=dtype.value, jobs=jobs, least=least, tell=typer.echo)
    store = imported.store
    typer.echo(
        f"{len(store)} pictures in '{store.folder}': {' and '.join(store.views)} regions, at most {store.max_regions} each, of "
        f"{store.student_dim or '–'} (student) and {store.teacher_dim} (teacher) numbers."
    )
    if imported.corpus is not None:
        typer.echo(_told(imported.corpus, out, split))


@app.command()
def texts(
    out: Annotated[Path, typer.Argument(help="A folder that `vlkd data import` or `vlkd regions` filled.")],
    split: Annotated[str, typer.Option(help="What the texts are for: train, validation, test, …")],
    captions: Captions = None,
    questions: Questions = None,
    answers: Answers = None,
    annotations: Annotations = None,
    least: Least = 9,
) -> None:
    """Add texts, for training or another split, for pictures that the store has.

    A picture's new captions replace those that it had, new questions its questions, and all other texts stay. What would bring
    pictures that `vlkd data split` held out back into training is refused.
    """
    from vlkd.data import RegionStore
    from vlkd.data.oscar import Sources, import_texts
    from vlkd.locks import locked

    sources = Sources(captions=captions, questions=questions, answers=answers, annotations=annotations)
    store = RegionStore.open(out / "store")
    with locked(out):
        corpus = import_texts(sources, out, store, split=split, least=least, tell=typer.echo)
    typer.echo(_told(corpus, out, split))


@app.command()
def split(
    out: Annotated[Path, typer.Argument(help="A folder with train.json.")],
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of the pictures, with all their texts.")] = 0.1,
    name: Annotated[str, typer.Option(help="What they are held out for: test, validation, …")] = "test",
) -> None:
    """Hold pictures out of the training texts: train.json becomes train.json and test.json.

    Which ones depends on their keys alone.
    """
    from vlkd.data.splitting import hold_out
    from vlkd.locks import locked

    with locked(out):
        for corpus in hold_out(out, name, share):
            typer.echo(_told(corpus, out, corpus.split))


@app.command()
def validate(
    student: Student = None,
    teacher: Teacher = None,
    own: Own = None,
    tags: Tags = None,
    own_tags: OwnTags = None,
    captions: Captions = None,
    questions: Questions = None,
    answers: Answers = None,
    annotations: Annotations = None,
    stored_as: Stored = StoredAs.float32,
    dtype: KeptAs = Kept.float16,
    classes: Classes = None,
    own_classes: OwnClasses = None,
    split: Annotated[str, typer.Option(help="What the texts are for: train, validation, test, …")] = "train",
    least: Least = 9,
    data: Annotated[
        Path | None, typer.Option(help="Folder whose store has the pictures that the texts are about.")
    ] = None,
) -> None:
    """Go through files of Oscar and VinVL, every row, and name each mistake with file, line and key.

    Texts can be checked by themselves, or against the pictures of `--data`.

    The status is 1 if an import would refuse them.
    """
    from vlkd.data.oscar import validate as find

    sources = _sources(
        student,
        teacher,
        own,
        tags,
        own_tags,
        captions,
        questions,
        answers,
        annotations,
        stored_as,
        classes,
        own_classes,
    )
    fatal = notes = 0
    pictures = None
    if data is not None:
        from vlkd.data import RegionStore

        pictures = RegionStore.open(data / "store").keys
    for finding in find(sources, pictures, folder=data, split=split, least=least, dtype=dtype.value):
        fatal, notes = fatal + finding.fatal, notes + (not finding.fatal)
        typer.echo(f"{'error' if finding.fatal else 'note'}: {finding.problem}")
    typer.echo(f"{fatal} errors, {notes} notes." if fatal or notes else "Nothing found: all files fit together.")
    if fatal:
        raise typer.Exit(1)


@app.command()
def index(files: Annotated[list[Path], typer.Argument(help="TSV files.")]) -> None:
    """Make the .lineidx of TSV files, which Oscar's own tools need; ours do not."""
    from vlkd.data.oscar import write_lineidx

    for path in files:
        typer.echo(write_lineidx(path))


def _sources(
    student: Path | None, teacher: Path | None, own: Path | None, tags: Path | None, own_tags: Path | None,
    captions: Path | None, questions: Path | None, answers: Path | None, annotations: Path | None, stored_as: StoredAs,
    classes: Path | None, own_classes: Path | None,
) -> Sources:  # fmt: skip
    from vlkd.data.oscar import Sources

    return Sources(
        student,
        teacher,
        own,
        tags,
        own_tags,
        captions,
        questions,
        answers,
        annotations,
        stored_as.value,
        classes,
        own_classes,
    )


def _told(corpus, out: Path, split: str) -> str:
    captions, questions = (sum(map(len, texts)) for texts in (corpus.captions, corpus.questions))
    return f"{captions} captions and {questions} questions about {len(corpus)} pictures in '{out / split}.json'."
