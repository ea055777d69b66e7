"""`vlkd regions`: one's own pictures through two detectors."""

from __future__ import annotations

from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlkd.cli.data import Kept
from vlkd.cli.running import resumable, tell

if TYPE_CHECKING:
    from vlkd.pipeline.own_pictures import Extracted


class Precision(str, Enum):
    """What the detectors compute in."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


_WEIGHTS = (
    "Its weights: a .safetensors, .pth or .pt file of tensors (nothing in it is executed), or `random` for a dry run. "
    "Default: those that torchvision publishes, trained on COCO, fetched once."
)
_CLASSES = (
    "Its class names, which become the tags: one a line, in the order of the labels, without the background. "
    "Default: COCO's."
)


def regions(
    images: Annotated[
        Path,
        typer.Option(
            help="Folder of pictures, with subfolders and linked folders: JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF, JPEG 2000, PPM. "
            "A picture's key is its path in this folder without suffix."
        ),
    ],
    student: Annotated[
        str,
        typer.Option(help="The student's detector, by name (above).", metavar="NAME"),
    ],
    teacher: Annotated[str, typer.Option(help="The teacher's detector, by name.", metavar="NAME")],
    out: Annotated[
        Path, typer.Option(help="Folder that gets store/ and, if pictures cannot be read, broken.txt with the reasons.")
    ],
    student_weights: Annotated[str | None, typer.Option(help=_WEIGHTS, metavar="FILE|random")] = None,
    teacher_weights: Annotated[
        str | None, typer.Option(help="The same for the teacher's detector.", metavar="FILE|random")
    ] = None,
    student_classes: Annotated[Path | None, typer.Option(help=_CLASSES, metavar="FILE")] = None,
    teacher_classes: Annotated[
        Path | None, typer.Option(help="The same for the teacher's detector.", metavar="FILE")
    ] = None,
    max_regions: Annotated[int, typer.Option(min=1, help="Most regions of each detector a picture.")] = 50,
    score_threshold: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Least probability of a region's class. The best region is kept in any case."
        ),
    ] = 0.2,
    batch: Annotated[
        int, typer.Option(min=1, help="Pictures of one size that go through a GPU together; on a CPU each goes alone.")
    ] = 8,
    device: Annotated[
        str, typer.Option(help="auto (a GPU of each process's own if there is one), cpu, cuda or cuda:NUMBER.")
    ] = "auto",
    precision: Annotated[
        Precision, typer.Option(help="What a GPU computes in; boxes are always fp32.")
    ] = Precision.fp32,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read and decode pictures.")] = 4,
    dtype: Annotated[
        Kept, typer.Option(help="Features in the store; float16 halves it, and holds numbers up to 65,504.")
    ] = Kept.float16,
) -> None:
    """Make a feature store of your own pictures with two detectors.

    It holds the student's detector's boxes with *both* detectors' features of exactly these boxes, the teacher's own
    regions, and the class names as tags. A feature is the output of the detector's box head, followed by six numbers of
    its box's geometry. Then add texts with `vlkd data texts OUT --split train --captions …`, and train with
    `vlkd run RECIPE --data OUT --images IMAGES …`.

    To try it: `vlkd render pictures`, then `vlkd regions --images pictures --student demo-student --teacher demo-teacher
    --out data`. For photographs: `--student fasterrcnn_mobilenet_v3_large_fpn --teacher fasterrcnn_resnet50_fpn_v2`.

    Detectors: torchvision's fasterrcnn_… and maskrcnn_…; fasterrcnn_efficientnet_b0_fpn (light) and
    fasterrcnn_resnet101_fpn (deep), with weights of your own; demo-student and demo-teacher, which know the rendered
    world only. A picture in which a detector finds nothing above the threshold has one region, its best or all of the picture.

    Stopped at any moment, the same command goes on, and loses at most some twenty seconds of work. Given again when pictures have
    been added, it adds their regions to the store. Several processes share the pictures: `torchrun --nproc-per-node 8
    -m vlkd.cli regions …`, or `accelerate launch -m vlkd.cli regions …`.
    """
    import warnings

    from vlkd.locks import locked
    from vlkd.pipeline.own_pictures import extract_pictures
    from vlkd.pipeline.shards import Shard
    from vlkd.pipeline.two_detectors import TwoDetectors
    from vlkd.regions.picture_folder import find_pictures
    from vlkd.regions.zoo import load_detector

    # About metadata; what keeps a picture from being read is in broken.txt.
    warnings.filterwarnings("ignore", module="PIL")
    # Mistakes in folders first: they take a moment to find, and detectors may have to be fetched.
    shard = Shard.from_environment()
    place = shard.device(device)
    found = find_pictures(images)
    if found.left_out:
        tell(found.told())
    with resumable(), locked(out) if shard.rank == 0 else nullcontext():
        detectors = TwoDetectors(
            load_detector(student, student_weights, student_classes),
            load_detector(teacher, teacher_weights, teacher_classes),
            device=place,
            precision=precision.value,
            batch=batch,
            max_regions=max_regions,
            score_threshold=score_threshold,
        )
        extracted = extract_pictures(
            found, out, detectors, precision=precision.value, dtype=dtype.value, workers=workers, shard=shard
        )
    if extracted is not None:
        _tell(extracted, images)


def _tell(extracted: Extracted, images: Path) -> None:
    """What the store holds now, and what it does not."""
    store = extracted.store
    typer.echo(
        f"{len(store)} pictures in '{store.folder}': at most {store.max_regions} regions each, of {store.student_dim} "
        f"(student) and {store.teacher_dim} (teacher) numbers."
    )
    if not extracted.computed:
        typer.echo("Nothing was left to do: the store had all of the folder's pictures.")
    elif extracted.computed < len(store) + extracted.broken_count:
        typer.echo(f"{extracted.computed} pictures were new or tried again; the others were there already.")
    if extracted.broken is not None:
        typer.echo(f"Pictures without regions: {extracted.broken_count}; '{extracted.broken}' says why.")
    if extracted.gone:
        typer.echo(
            f"No longer in '{images}', but kept in the store: {len(extracted.gone)} pictures, such as '{extracted.gone[0]}'."
        )
    if extracted.waiting:
        typer.echo(f"{extracted.waiting} pictures were added meanwhile: give the same command again for them.")
