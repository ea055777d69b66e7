"""Where the regions of many pictures may lie on disk, each with the reader that its users write.

A picture has two detectors' features of the same boxes, float16 [R, D] each, and the boxes, float32 [R, 4]. A reader copies
pictures, named by their numbers, into float32 tensors that are there already.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlkd.data.store import RegionBatch, write_store
from vlkd.regions.paired import RegionRecord, geometry

SIDE = 600  # of the pictures, pixels
Reader = Callable[[Sequence[int], RegionBatch], None]


def records(count: int, regions: int, width: int) -> Iterator[RegionRecord]:
    """Pictures of random numbers, `width` features and the geometry a region."""
    for number in range(count):
        rng = np.random.default_rng(number)
        corner = rng.uniform(0, SIDE / 2, (regions, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(8, SIDE / 2, (regions, 2))], axis=1).astype(np.float32)
        student, teacher = (_features(rng, boxes, width) for _ in range(2))
        none = np.empty((0, width + 6), np.float32)
        words = ("word",) * regions
        yield RegionRecord(str(number), SIDE, SIDE, boxes, student, teacher, words, none[:, :4], none, ())


def _features(rng: np.random.Generator, boxes: np.ndarray, width: int) -> np.ndarray:
    """Numbers that float16 holds, and the geometry."""
    numbers = rng.random((len(boxes), width), dtype=np.float32).astype(np.float16)
    return np.concatenate([numbers.astype(np.float32), geometry(boxes, SIDE, SIDE)], axis=1)


def arrow(folder: Path, pictures: Iterator[RegionRecord]) -> Reader:
    """Our own store, which also compares every box with its features' geometry."""
    store = write_store(folder / "store", pictures, dtype="float16")
    return lambda numbers, batch: store.read_into([str(number) for number in numbers], "paired", batch)


def memory_map(folder: Path, pictures: Iterator[RegionRecord]) -> Reader:
    """Nothing but the numbers, of equally many regions a picture, one after the other: what the hardware allows."""
    blobs = [_blob(picture) for picture in pictures]
    (folder / "numbers.bin").write_bytes(b"".join(blobs))
    rows = np.memmap(folder / "numbers.bin", np.uint8, "r").reshape(len(blobs), -1)
    return _of_blobs(lambda number: rows[number])


def lmdb(folder: Path, pictures: Iterator[RegionRecord]) -> Reader:
    """A transaction a batch, a value a picture."""
    import lmdb as library  # pyright: ignore[reportMissingImports]  # of the extra "peers"

    environment = library.open(str(folder), map_size=1 << 33)
    with environment.begin(write=True) as transaction:
        for picture in pictures:
            transaction.put(picture.key.encode(), _blob(picture))

    def read(numbers: Sequence[int], batch: RegionBatch) -> None:
        with environment.begin(buffers=True) as transaction:
            _of_blobs(lambda number: np.frombuffer(transaction.get(str(number).encode(), b""), np.uint8))(
                numbers, batch
            )

    return read


def safetensors(folder: Path, pictures: Iterator[RegionRecord]) -> Reader:
    """A file of many tensors, opened once."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    tensors = {picture.key: np.frombuffer(_blob(picture), np.uint8) for picture in pictures}
    save_file(tensors, folder / "numbers.safetensors")
    shard = safe_open(folder / "numbers.safetensors", framework="np").__enter__()
    return _of_blobs(lambda number: shard.get_tensor(str(number)))


def write_tsv(folder: Path, pictures: Iterator[RegionRecord]) -> tuple[list[Path], list[list[int]]]:
    """Oscar's files, one a detector, a line a picture, JSON with base64 float32; and where their lines begin."""
    paths, offsets = [folder / "student.tsv", folder / "teacher.tsv"], [[0], [0]]
    with paths[0].open("wb") as student, paths[1].open("wb") as teacher:
        for picture in pictures:
            for side, file in enumerate((student, teacher)):
                features = (picture.student_features, picture.teacher_features)[side]
                content = {"num_boxes": len(features), "features": base64.b64encode(features.tobytes()).decode()}
                file.write(f"{picture.key}\t{json.dumps(content)}\n".encode())
                offsets[side].append(file.tell())
    return paths, offsets


def tsv_features(line: bytes) -> Tensor:
    """What a line of Oscar's says, float32 [regions, width + 6]."""
    content = json.loads(line.split(b"\t", 1)[1])
    numbers = np.frombuffer(base64.b64decode(content["features"]), np.float32)
    return torch.from_numpy(numbers.reshape(content["num_boxes"], -1).copy())


def tsv(folder: Path, pictures: Iterator[RegionRecord]) -> Reader:
    """Oscar's files, their lines found by offset."""
    paths, offsets = write_tsv(folder, pictures)
    files = [path.open("rb") for path in paths]

    def read(numbers: Sequence[int], batch: RegionBatch) -> None:
        for row, number in enumerate(numbers):
            for side, file in enumerate(files):
                file.seek(offsets[side][number])
                batch.features[side][row] = tsv_features(file.readline())

    return read


def _blob(picture: RegionRecord) -> bytes:
    sides = (picture.student_features, picture.teacher_features)
    halves = [np.ascontiguousarray(side[:, :-6], np.float16).tobytes() for side in sides]
    return b"".join([*halves, picture.student_boxes.tobytes()])


def _of_blobs(find: Callable[[int], np.ndarray]) -> Reader:
    def read(numbers: Sequence[int], batch: RegionBatch) -> None:
        regions, width = batch.features[0].shape[1], batch.features[0].shape[2] - 6
        size = regions * width * 2
        for row, number in enumerate(numbers):
            blob = torch.from_numpy(find(number))
            for side, features in enumerate(batch.features):
                features[row, :, :width] = (
                    blob[side * size : (side + 1) * size].view(torch.float16).view(regions, width)
                )
            boxes = batch.boxes[row] = blob[2 * size :].view(torch.float32).view(regions, 4)
            for features in batch.features:
                features[row, :, width : width + 4] = boxes / SIDE
                features[row, :, width + 4 :] = (boxes[:, 2:] - boxes[:, :2]) / SIDE

    return read


READERS = {
    "vlkd": arrow,
    "memory map": memory_map,
    "LMDB": lmdb,
    "safetensors": safetensors,
    "TSV + JSON + base64": tsv,
}
