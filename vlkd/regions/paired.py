"""Regions of a picture: boxes, one feature a box, tags. And two detectors' features of the same boxes.

n regions, D feature width (without the geometry), W x H the picture's pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlkd.errors import VlkdError
from vlkd.keys import is_word, shown
from vlkd.regions.soundness import box_problem, number_problem, size_problem

GEOMETRY_DIM = 6
GEOMETRY_TOLERANCE = 1e-5  # fp32 rounding of x / W, with x and W up to a few thousand pixels


def geometry(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """The six box numbers of Oscar and VinVL: x1/W, y1/H, x2/W, y2/H, w/W, h/H.

    Args:
        boxes: [n, 4] as x1, y1, x2, y2 in pixels.
        width, height: the picture's size in pixels.

    Returns:
        [n, 6] float32.
    """
    corners = boxes.astype(np.float32) / np.array([width, height, width, height], dtype=np.float32)
    return np.concatenate([corners, corners[:, 2:] - corners[:, :2]], axis=1)


@dataclass(frozen=True)
class Regions:
    """One detector's regions of one picture; the last six columns of a feature are its box's geometry.

    Args:
        key: the picture's key.
        width, height: the picture's size in pixels.
        boxes: [n, 4] float32, x1, y1, x2, y2 in pixels.
        features: [n, D + 6] float32.
        tags: object words by descending score, duplicates kept.

    Raises:
        VlkdError: dtype, shape, count or geometry do not fit together, or a number is not finite.
    """

    key: str
    width: int
    height: int
    boxes: np.ndarray
    features: np.ndarray
    tags: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_boxes(self.key, self.boxes, self.width, self.height)
        check_features(self.key, "features", self.features, self.boxes, self.width, self.height)


@dataclass(frozen=True)
class PairedRegions:
    """The student's boxes of one picture with both detectors' features of exactly these boxes.

    Args:
        key: the picture's key.
        width, height: the picture's size in pixels.
        boxes: [n, 4] float32, the student's boxes, x1, y1, x2, y2 in pixels.
        student_features: [n, Ds + 6] float32.
        teacher_features: [n, Dt + 6] float32.
        tags: the student detector's object words by descending score, duplicates kept.

    Raises:
        VlkdError: dtype, shape, count or geometry of either side do not fit the boxes, or a number is not finite.
    """

    key: str
    width: int
    height: int
    boxes: np.ndarray
    student_features: np.ndarray
    teacher_features: np.ndarray
    tags: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_boxes(self.key, self.boxes, self.width, self.height)
        for name in ("student_features", "teacher_features"):
            check_features(self.key, name, getattr(self, name), self.boxes, self.width, self.height)


@dataclass(frozen=True)
class RegionRecord:
    """Everything that is stored of one picture; every feature ends with its own box's geometry.

    Args:
        key: the picture's key.
        width, height: the picture's size in pixels.
        student_boxes: [n, 4] float32 in pixels, by descending score.
        student_features: [n, Ds + 6] float32.
        teacher_features: [n, Dt + 6] float32, the teacher's RoIAlign and head on ``student_boxes``.
        tags: the student detector's object words, one a box.
        own_boxes: [m, 4] float32, the teacher's own regions. Either kind of regions may be missing (n or m is 0).
        own_features: [m, Dt + 6] float32.
        own_tags: the teacher detector's object words, one a box.
    """

    key: str
    width: int
    height: int
    student_boxes: np.ndarray
    student_features: np.ndarray
    teacher_features: np.ndarray
    tags: tuple[str, ...]
    own_boxes: np.ndarray
    own_features: np.ndarray
    own_tags: tuple[str, ...]

    @property
    def views(self) -> tuple[Literal["paired", "own"], ...]:
        """Which kinds of regions there are."""
        views: dict[Literal["paired", "own"], np.ndarray] = {"paired": self.student_boxes, "own": self.own_boxes}
        return tuple(view for view, boxes in views.items() if len(boxes))

    def paired(self) -> PairedRegions:
        """The student's boxes with both features."""
        return PairedRegions(
            self.key,
            self.width,
            self.height,
            self.student_boxes,
            self.student_features,
            self.teacher_features,
            self.tags,
        )

    def own(self) -> Regions:
        """The teacher's own regions."""
        return Regions(self.key, self.width, self.height, self.own_boxes, self.own_features, self.own_tags)

    def check(self) -> None:
        """Require what a store holds of a picture: sound regions of one kind or both, and words for tags.

        Raises:
            VlkdError: something is missing or does not fit together, with the key and both values.
        """
        if not is_word(self.key):
            raise VlkdError(f"A picture has the key {self.key!r}, but text is expected.")
        if not self.views:
            raise VlkdError(f"Picture '{shown(self.key)}' has no region, but at least 1 is expected: extract it again.")
        for view in self.views:
            self.paired() if view == "paired" else self.own()  # verified by their types
        for name in ("tags", "own_tags"):
            wrong = [tag for tag in getattr(self, name) if not is_word(tag)]
            if wrong:
                raise VlkdError(f"Picture '{shown(self.key)}': {name} has {wrong[0]!r}, but words are expected.")


def pair(student: Regions, teacher: Regions) -> PairedRegions:
    """Join two detectors' features of the same boxes of the same picture.

    Raises:
        VlkdError: the two differ in key, picture size, count, order or geometry of their boxes.
    """
    if student.key != teacher.key:
        raise VlkdError(
            f"The student's regions are of picture '{student.key}' and the teacher's of '{teacher.key}': "
            "pair features of the same picture."
        )
    key = student.key
    sizes = (student.width, student.height), (teacher.width, teacher.height)
    if sizes[0] != sizes[1]:
        raise VlkdError(
            f"Picture '{key}': the student's regions say {sizes[0][0]} x {sizes[0][1]} pixels and the "
            f"teacher's {sizes[1][0]} x {sizes[1][1]}: extract both from the same picture."
        )
    if len(student.boxes) != len(teacher.boxes):
        raise VlkdError(
            f"Picture '{key}': {len(student.boxes)} student boxes and {len(teacher.boxes)} teacher boxes: "
            "extract the teacher's features on the student's boxes."
        )
    differing = np.flatnonzero((student.boxes != teacher.boxes).any(axis=1))
    if len(differing):
        row = int(differing[0])
        raise VlkdError(
            f"Picture '{key}': region {row} is {_numbers(student.boxes[row])} for the student and "
            f"{_numbers(teacher.boxes[row])} for the teacher: extract the teacher's features on the "
            "student's boxes, in their order."
        )
    return PairedRegions(
        key,
        student.width,
        student.height,
        student.boxes,
        student.features,
        teacher.features,
        student.tags,
    )


def check_features(key: str, name: str, features: np.ndarray, boxes: np.ndarray, width: int, height: int) -> None:
    """Require finite float32 [n, D + 6] whose last six columns are the geometry of ``boxes`` [n, 4].

    Raises:
        VlkdError: with the key and both values.
    """
    if features.dtype != np.float32:
        raise VlkdError(f"Picture '{key}': {name} must be float32, but are {features.dtype}.")
    if features.ndim != 2 or features.shape[1] <= GEOMETRY_DIM:
        raise VlkdError(
            f"Picture '{key}': {name} must be [regions, dim + {GEOMETRY_DIM}], but are {list(features.shape)}."
        )
    if len(features) != len(boxes):
        raise VlkdError(f"Picture '{key}': {len(boxes)} boxes but {len(features)} rows of {name}: each box needs one.")
    problem = number_problem(features)
    if problem:
        raise VlkdError(f"Picture '{key}': {name}: {problem}.")
    expected = geometry(boxes, width, height)
    written = features[:, -GEOMETRY_DIM:]
    fits = np.abs(written - expected) <= GEOMETRY_TOLERANCE  # NaN fits nothing
    differing = np.flatnonzero(~fits.all(axis=1))
    if len(differing):
        row = int(differing[0])
        raise VlkdError(
            f"Picture '{key}': row {row} of {name} ends with the geometry {_numbers(written[row])}, but its "
            f"box has {_numbers(expected[row])}: the features belong to other boxes, or stand in another order."
        )


def _check_boxes(key: str, boxes: np.ndarray, width: int, height: int) -> None:
    if boxes.dtype != np.float32 or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise VlkdError(
            f"Picture '{key}': boxes must be float32 [regions, 4], but are {boxes.dtype} {list(boxes.shape)}."
        )
    if not len(boxes):
        raise VlkdError(f"Picture '{key}' has no region, but at least 1 is expected: extract it again.")
    problem = size_problem(width, height) or box_problem(boxes, width, height)
    if problem:
        raise VlkdError(f"Picture '{key}': {problem}.")


def _numbers(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values.tolist()) + ")"
