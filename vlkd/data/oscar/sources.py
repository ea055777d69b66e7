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
        found = {name: None if file is None else file.read(key) for name, file in self._files()}
        tags, size = self._tags(key, found["student"], self.tags)
        own_tags, own_size = self._tags(key, found["own"], self.own_tags)
        sizes = [(of.width, of.height) for of in found.values() if of is not None and of.width > 1]
        width, height = next((known for known in (*sizes, size, own_size) if known is not None), (1, 1))
        boxes, student = _placed(found["student"], width, height)
        _, teacher = _placed(found["teacher"], width, height, boxes)
        own_boxes, own = _placed(found["own"], width, height)
        if found["student"] is not None and found["teacher"] is not None and self.teacher is not None:
            difference = differing_box(found["student"].features, found["teacher"].features)
            if difference:
                raise VlkdError(f"{self.teacher.place(key)}: {difference} ('{self.sources.student}').")
        return RegionRecord(key, width, height, boxes, student, teacher, tags, own_boxes, own, own_tags)

    def _files(self) -> tuple[tuple[str, FeatureFile | None], ...]:
        return ("student", self.student), ("teacher", self.teacher), ("own", self.own)

    def _tags(
        self, key: str, found: Found | None, file: TagFile | None
    ) -> tuple[tuple[str, ...], tuple[int, int] | None]:
        """A side's tags, and the picture's size where its file of tags has it."""
        if found is None:
            return (), None
        return file.read(key) if file is not None else (found.tags or self._other_tags.get(key, ()), None)


def _placed(
    found: Found | None, width: int, height: int, boxes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [n, 4] in a picture of this size and features [n, D + 6]; ``boxes``, or those that the features end with.

    Geometry is written anew: what rounding left of it differs from file to file. n is 0 where nothing was found.
    """
    if found is None:
        return np.empty((0, 4), np.float32), np.empty((0, GEOMETRY_DIM + 1), np.float32)
    if boxes is None or len(boxes) != len(found.features):
        scale = np.array([width, height, width, height], dtype=np.float32)
        boxes = found.features[:, -GEOMETRY_DIM:-2] * scale
    return boxes, np.concatenate([found.features[:, :-GEOMETRY_DIM], geometry(boxes, width, height)], axis=1)


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
