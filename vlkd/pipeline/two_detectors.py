"""Two detectors over pictures of any sizes, in batches in which no picture changes another's features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from vlkd.data.store import Role
from vlkd.errors import VlkdError
from vlkd.regions.detectors import Detections, to_tensors
from vlkd.regions.extraction import with_geometry
from vlkd.regions.identity import DetectorIdentity
from vlkd.regions.paired import RegionRecord
from vlkd.regions.picture_folder import PictureFile
from vlkd.regions.two_stage import Precision, TwoStageDetector

_MOST_WAITING = 4  # batches of pictures that wait in memory for others of their size

Read = tuple[PictureFile, "np.ndarray | VlkdError"]


@dataclass(frozen=True)
class Broken:
    """A picture that gave no regions."""

    key: str
    name: str
    reason: str


class TwoDetectors:
    """A student's and a teacher's detector on one device.

    On a CPU each picture goes alone through the detectors, so that its features are the same bits whatever the batch.
    On a GPU a batch holds pictures of one input size; the batch then changes only rounding.
    """

    def __init__(
        self,
        student: TwoStageDetector,
        teacher: TwoStageDetector,
        *,
        device: torch.device,
        precision: Precision = "fp32",
        batch: int = 8,
        max_regions: int = 50,
        score_threshold: float = 0.2,
    ) -> None:
        """Move both to ``device``.

        Raises:
            VlkdError: mixed precision without a GPU.
        """
        self.student, self.teacher = student.to(device, precision), teacher.to(device, precision)
        self.device = device
        self.batch = 1 if device.type == "cpu" else batch
        self.max_regions = max_regions
        self.score_threshold = score_threshold

    def identities(self) -> dict[Role, DetectorIdentity]:
        """What a store says of how its regions were made."""
        return {
            "student": self.student.identity(self.score_threshold, self.max_regions),
            "teacher": self.teacher.identity(self.score_threshold, self.max_regions),
        }

    def records(self, pictures: Iterable[Read]) -> Iterator[RegionRecord | Broken]:
        """Each picture's record, or why there is none; the order is the pictures' only on a CPU."""
        waiting: dict[tuple[tuple[int, int], ...], list[tuple[PictureFile, np.ndarray]]] = {}
        for file, read in pictures:
            if isinstance(read, VlkdError):
                yield Broken(file.key, file.name, str(read))
                continue
            try:
                sizes = tuple(one.input_size(*read.shape[:2]) for one in (self.student, self.teacher))
            except VlkdError as error:
                yield Broken(file.key, file.name, str(error))
                continue
            waiting.setdefault(sizes, []).append((file, read))
            if len(waiting[sizes]) == self.batch:
                yield from self._batch(waiting.pop(sizes))
            elif sum(map(len, waiting.values())) >= _MOST_WAITING * self.batch:
                yield from self._batch(waiting.pop(max(waiting, key=lambda sizes: len(waiting[sizes]))))
        for rest in waiting.values():
            yield from self._batch(rest)

    def _batch(self, pictures: list[tuple[PictureFile, np.ndarray]]) -> list[RegionRecord]:
        try:
            return self._records(pictures)
        except torch.OutOfMemoryError:
            height, width = pictures[0][1].shape[:2]
            raise VlkdError(
                f"The GPU has too little memory for {len(pictures)} pictures at once, such as '{pictures[0][0].name}' of {width} x "
                f"{height} pixels: give a smaller --batch than {self.batch}; what is done is kept."
            ) from None

    def _records(self, pictures: list[tuple[PictureFile, np.ndarray]]) -> list[RegionRecord]:
        student, teacher = self.student, self.teacher
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            images = to_tensors([pixels for _, pixels in pictures], self.device)
            student_maps, teacher_maps = student.maps(images), teacher.maps(images)
            found = student.detections(student_maps, self.max_regions, self.score_threshold)
            own = teacher.detections(teacher_maps, self.max_regions, self.score_threshold)
            boxes, own_boxes = [one.boxes for one in found], [one.boxes for one in own]
            of_student = student.features(student_maps, boxes)
            of_teacher = teacher.features(teacher_maps, boxes)
            of_own = teacher.features(teacher_maps, own_boxes)
        records = []
        for number, (file, pixels) in enumerate(pictures):
            height, width = pixels.shape[:2]
            records.append(
                RegionRecord(
                    key=file.key,
                    width=width,
                    height=height,
                    student_boxes=boxes[number].cpu().numpy(),
                    student_features=with_geometry(of_student[number], boxes[number], width, height),
                    teacher_features=with_geometry(of_teacher[number], boxes[number], width, height),
                    tags=_tags(student, found[number]),
                    own_boxes=own_boxes[number].cpu().numpy(),
                    own_features=with_geometry(of_own[number], own_boxes[number], width, height),
                    own_tags=_tags(teacher, own[number]),
                )
            )
        return records


def _tags(detector: TwoStageDetector, found: Detections) -> tuple[str, ...]:
    return tuple(detector.classes[index] for index in found.classes.tolist())
