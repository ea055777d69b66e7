"""Which files of Oscar and VinVL make one data set, and one picture out of all of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import yaml

from vlkd.data.oscar.features import FeatureFile, Found, StoredAs, open_features
from vlkd.data.oscar.tags import TagFile
from vlkd.errors import VlkdError
from vlkd.regions.paired import GEOMETRY_DIM, RegionRecord, geometry

_SAME_BOX = 2e-3  # of geometries that were float16 once


@dataclass(frozen=True)
class Sources:
    """The files of one data set.

    Attributes:
        student, teacher: two detectors' features of the same boxes; both or neither.
        own: the teacher's features of its own boxes.
        tags, own_tags: the tags of the student's (``own_tags``: of the teacher's) detector. Features that bring their own need none.
        captions, questions, answers, annotations: texts. Oscar's questions need answers; VQA v2's have annotations.
        stored_as: what base64 features are made of.

    Instead of features, ``student`` and ``own`` may be an Oscar YAML that names ``feature``, ``label`` and ``caption``.
    """

    student: Path | None = None
    teacher: Path | None = None
    own: Path | None = None
    tags: Path | None = None
    own_tags: Path | None = None
    captions: Path | None = None
    questions: Path | None = None
    answers: Path | None = None
    annotations: Path | None = None
    stored_as: StoredAs = "float32"

    def resolved(self) -> Sources:
        """The same without YAML.

        Raises:
            VlkdError: a YAML is broken, or files that belong together are not all there.
        """
        found = _from_yaml(_from_yaml(self, "student", "tags"), "own", "own_tags")
        found = _from_yaml(found, "teacher", "")
        if (found.student is None) != (found.teacher is None):
            here, missing = ("student", "teacher") if found.teacher is None else ("teacher", "student")
            raise VlkdError(
                f"--{here} is given without --{missing}: both detectors' features of the same boxes are needed, "
                "or the teacher's of its own (--own)."
            )
        if found.student is None and found.own is None:
            raise VlkdError("There are no features: give --student and --teacher, or --own, or all three.")
        return found

    def files(self) -> list[Path]:
        """Every file, once."""
        paths = [getattr(self, field.name) for field in fields(self) if field.name != "stored_as"]
        return list(dict.fromkeys(path for path in paths if path is not None))


class Pictures:
    """The sources, opened; one picture at a time.

    Attributes:
        keys: the pictures, in the order of the student's file, or of the teacher's own where there is no student's.
    """

    def __init__(self, sources: Sources, tags: dict[str, tuple[str, ...]] | None = None) -> None:
        self.sources = sources = sources.resolved()
        self.student, self.teacher, self.own = (
            None if path is None else open_features(path, sources.stored_as)
            for path in (sources.student, sources.teacher, sources.own)
        )
        self.tags = None if sources.tags is None else TagFile(sources.tags)
        self.own_tags = None if sources.own_tags is None else TagFile(sources.own_tags)
        self._other_tags = tags or {}
        first = self.student or self.own
        assert first is not None
        self.keys = first.keys
        self.check_keys()

    def check_keys(self) -> None:
        """Whether all feature files have the same pictures.

        Raises:
            VlkdError: one lacks a picture.
        """
        files = [file for file in (self.student, self.teacher, self.own) if file is not None]
        for file in files[1:]:
            missing = lacking(files[0], file)
            if missing:
                raise VlkdError(missing)

    def record(self, key: str) -> RegionRecord:
        """One picture, verified.

        Raises:
            VlkdError: its rows are broken or do not belong together; file, line and key are named.
        """
        none = _Side(np.empty((0, 4), np.float32), np.empty((0, GEOMETRY_DIM + 1), np.float32), (), 1, 1)
        student, teacher, own = none, none, none
        if self.student is not None and self.teacher is not None:
            found = self.student.read(key)
            student = self._side(key, found, self.tags, self._other_tags.get(key))
            of_teacher = self.teacher.read(key)
            difference = differing_box(found.features, of_teacher.features)
            if difference:
                raise VlkdError(f"{self.teacher.place(key)}: {difference} ('{self.student.path}').")
            teacher = student.with_numbers(of_teacher.features)
        if self.own is not None:
            own = self._side(key, self.own.read(key), self.own_tags, self._other_tags.get(key))
        size = student if len(student.boxes) else own
        return RegionRecord(
            key, size.width, size.height, student.boxes, student.features, teacher.features, student.tags,
            own.boxes, own.features, own.tags,
        )  # fmt: skip

    def _side(self, key: str, found: Found, file: TagFile | None, others: tuple[str, ...] | None) -> _Side:
        tags, size = file.read(key) if file is not None else (found.tags or others or (), None)
        width, height = (found.width, found.height) if found.width > 1 or size is None else size
        scale = np.array([width, height, width, height], dtype=np.float32)
        corners = found.features[:, -GEOMETRY_DIM:-2]
        side = _Side(corners * scale, found.features, tags, width, height)
        return side.with_numbers(found.features)


@dataclass(frozen=True)
class _Side:
    boxes: np.ndarray
    features: np.ndarray
    tags: tuple[str, ...]
    width: int
    height: int

    def with_numbers(self, features: np.ndarray) -> _Side:
        """Other features of the same boxes, whose geometry is written anew: what rounding left of it differs by file."""
        numbers = geometry(self.boxes, self.width, self.height)
        return replace(self, features=np.concatenate([features[:, :-GEOMETRY_DIM], numbers], axis=1))


def lacking(one: FeatureFile, other: FeatureFile) -> str | None:
    """A sentence if ``other`` lacks a picture of ``one``."""
    missing = [key for key in one.keys if key not in other]
    if not missing:
        return None
    return (
        f"'{other.path}' has no features of {len(missing)} of the {len(one.keys)} pictures in '{one.path}', the first "
        f"'{missing[0]}': extract both from the same pictures."
    )


def differing_box(student: np.ndarray, teacher: np.ndarray) -> str | None:
    """What differs between two sides' boxes, the last six columns of [n, D + 6] each."""
    if len(student) != len(teacher):
        return f"{len(teacher)} regions for the teacher, but {len(student)} for the student"
    numbers = student[:, -GEOMETRY_DIM:], teacher[:, -GEOMETRY_DIM:]
    rows = np.flatnonzero((np.abs(numbers[0] - numbers[1]) > _SAME_BOX).any(axis=1))
    if not len(rows):
        return None
    boxes = ["(" + ", ".join(f"{x:.4g}" for x in side[rows[0], :4].tolist()) + ")" for side in numbers]
    return (
        f"region {rows[0]} is {boxes[1]} of the picture for the teacher, but {boxes[0]} for the student: extract the "
        "teacher's features on the student's boxes, in their order"
    )


def _from_yaml(sources: Sources, name: str, tags: str) -> Sources:
    """Replace a YAML by the files that it names, which stand beside it."""
    path: Path | None = getattr(sources, name)
    if path is None or path.suffix not in (".yaml", ".yml"):
        return sources
    if not path.is_file():
        raise VlkdError(f"There is no file '{path}': check its name.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise VlkdError(f"'{path}' is no YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict) or not content.get("feature"):
        raise VlkdError(f"'{path}' names no 'feature': expected an Oscar YAML with feature, label and caption.")
    changes = {name: path.parent / content["feature"]}
    if tags and content.get("label") and getattr(sources, tags) is None:
        changes[tags] = path.parent / content["label"]
    if tags and content.get("caption") and sources.captions is None:
        changes["captions"] = path.parent / content["caption"]
    return replace(sources, **changes)
