"""`vlkd regions`: one's own pictures through two detectors."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vlkd.cli.data import Kept


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
            help="Folder of pictures (.jpg, .jpeg, .png, .webp, .bmp), with subfolders. A picture's key is its path in "
            "this folder without suffix."
        ),
    ],
    student: Annotated[
        str,
        typer.Option(help="The student's detector, by name (above)."),
    ],
    teacher: Annotated[str, typer.Option(help="The teacher's detector, by name.")],
    out: Annotated[Path, typer.Option(help="Folder that gets store/ and, if pictures cannot be read, broken.txt.")],
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
    dtype: Annotated[Kept, typer.Option(help="Features in the store; float16 halves it.")] = Kept.float16,
) -> None:
    """Make a feature store of your own pictures with two detectors.

    It holds the student's detector's boxes with *both* detectors' features of exactly these boxes, the teacher's own
    regions, and the class names as tags. A feature is the output of the detector's box head, followed by six numbers of
    its box's geometry. Then add texts with `vlkd data texts OUT --split train --captions …`, and train with
    `vlkd pretrain … --data OUT`.

    Detectors: torchvision's fasterrcnn_… and maskrcnn_…; fasterrcnn_efficientnet_b0_fpn (light) and
    fasterrcnn_resnet101_fpn (deep), with weights of your own; demo-student and demo-teacher, which know the rendered
    world only.

    Stopped at any moment, the same command goes on. Several processes share the pictures: `torchrun --nproc-per-node 8
    -m vlkd.cli regions …`, or `accelerate launch -m vlkd.cli regions …`.
    """
    from vlkd.pipeline.own_pictures import extract_pictures
    from vlkd.pipeline.shards import Shard
    from vlkd.pipeline.two_detectors import TwoDetectors
    from vlkd.regions.zoo import load_detector

    shard = Shard.from_environment()
    detectors = TwoDetectors(
        load_detector(student, student_weights, student_classes),
        load_detector(teacher, teacher_weights, teacher_classes),
        device=shard.device(device),
        precision=precision.value,
        batch=batch,
        max_regions=max_regions,
        score_threshold=score_threshold,
    )
    extracted = extract_pictures(
        images, out, detectors, precision=precision.value, dtype=dtype.value, workers=workers, shard=shard
    )
    if extracted is None:
        return
    store = extracted.store
    typer.echo(
        f"{len(store)} pictures in '{store.folder}': at most {store.max_regions} regions each, of {store.student_dim} "
        f"(student) and {store.teacher_dim} (teacher) numbers."
    )
    if extracted.broken is not None:
        typer.echo(f"Pictures that could not be read: {extracted.broken_count}, listed in '{extracted.broken}'.")
