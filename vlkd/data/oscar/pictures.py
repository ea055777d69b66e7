"""One picture out of all files of a data set, with all that is wrong with it: what an import refuses and `validate` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vlkd.data.oscar.features import open_features
from vlkd.data.oscar.found import FeatureFile, Found
from vlkd.data.oscar.six_numbers import joined_rows
from vlkd.data.oscar.sources import Sources
from vlkd.data.oscar.tags import TagFile, read_classes
from vlkd.errors import VlkdError
from vlkd.keys import shown
from vlkd.regions.paired import GEOMETRY_DIM, RegionRecord, geometry
from vlkd.regions.soundness import half_problem

Kept = Literal["float16", "float32"]

_SAME_BOX = 2e-3  # of geometries that were float16 once
_TRIED = 16  # pictures of a file that are read to learn its width, should the first ones be broken


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        problem: a sentence that names file, line and key, and says what to do.
        fatal: whether an import refuses it.
    """

    problem: str
    fatal: bool = True


class Pictures:
    """The sources, opened; one picture at a time.

    Attributes:
        keys: the pictures, in the order of the student's file, or of the teacher's own where there is no student's.
        findings: what is wrong with the files before any picture is read. With a fatal one, pictures cannot be imported.
        files: the files of features that could be opened, by ``student``, ``teacher`` and ``own``.
        other_tags: by key, of pictures whose features and files have none; to be set once the keys are known.
    """

    def __init__(self, sources: Sources, dtype: Kept = "float16") -> None:
        """Open the files.

        Args:
            sources: the files.
            dtype: what a store is to keep features in.

        Raises:
            VlkdError: files that belong together are not all given.
        """
        self.sources = sources = sources.resolved()
        self.findings: list[Finding] = []
        self._dtype = dtype
        self.other_tags: Mapping[str, tuple[str, ...]] = {}
        names = {"student": self._opened(sources.classes, read_classes)}
        names["own"] = self._opened(sources.own_classes, read_classes)
        self.files: dict[str, FeatureFile] = {}
        self._given = sum(path is not None for path in (sources.student, sources.teacher, sources.own))
        for name in ("student", "teacher", "own"):
            file = self._opened(
                getattr(sources, name),
                lambda path, of=name: open_features(path, sources.stored_as, names.get(of) or ()),
            )
            if file is not None:
                self.files[name] = file
        self._tags = {
            "student": self._opened(sources.tags, TagFile),
            "own": self._opened(sources.own_tags, TagFile),
        }
        first = next(iter(self.files.values()), None)
        self.keys = () if first is None else first.keys
        self._widths: dict[str, tuple[int, str] | None] = {}
        for file in (*self.files.values(), *(tags for tags in self._tags.values() if tags is not None)):
            self._found(*file.problems)
        self._check_classes(names)
        self._note_same_file()
        self._check_keys()

    def without_index(self) -> list[Path]:
        """The TSV files that have no ``.lineidx`` beside them."""
        opened = [*self.files.values(), *(tags for tags in self._tags.values() if tags is not None)]
        return [file.path for file in opened if file.indexed is False]

    def _opened(self, path: Path | None, opener: Callable):
        """What a file holds; None where none is given, or where it cannot be opened, which is then found."""
        try:
            return None if path is None else opener(path)
        except VlkdError as error:
            self._found(str(error))
            return None

    def _found(self, *problems: str, fatal: bool = True) -> None:
        self.findings += [Finding(problem, fatal) for problem in problems]

    def _note_same_file(self) -> None:
        """One file in two places is rarely meant, though one detector may serve both models."""
        sides = list(self.files)
        for place, side in enumerate(sides):
            for other in sides[:place]:
                if self.files[side].path.resolve() == self.files[other].path.resolve():
                    self._found(
                        f"--{other} and --{side} are one file, '{self.files[side].path}': student and teacher then read the same "
                        "numbers, or the teacher's own boxes are the student's.",
                        fatal=False,
                    )

    def _check_classes(self, names: Mapping[str, tuple[str, ...] | None]) -> None:
        """Names of classes belong to files with class numbers."""
        for side, option in (("student", "classes"), ("own", "own_classes")):
            file, path = self.files.get(side), getattr(self.sources, option)
            if file is not None and path is not None and not file.numbered:
                self._found(f"'{path}' names class numbers, but '{file.path}' has none: leave it out.")
            if file is not None and file.numbered and path is None and self._tags[side] is None:
                self._found(
                    f"'{file.path}' has class numbers, but no file says their names (--{option.replace('_', '-')}): its pictures "
                    "get no tags.",
                    fatal=False,
                )

    def _check_keys(self) -> None:
        """All files of features have the same pictures; their order, and tags of other pictures, are worth a note."""
        files = list(self.files.values())
        for file in files[1:]:
            for one, other in ((files[0], file), (file, files[0])):
                missing = lacking(one, other)
                if missing:
                    self._found(missing, fatal=one is files[0])
            self._note_order(files[0].path, files[0].keys, file.path, file.keys)
        for side, tags in self._tags.items():
            if tags is None or side not in self.files:
                continue
            features = self.files[side]
            self._found(
                *(
                    f"{tags.place(key)}: tags, but no features in '{features.path}': extract that picture too, or remove the line."
                    for key in tags.keys
                    if key not in features
                ),
                fatal=False,
            )
            self._note_order(features.path, features.keys, tags.path, tags.keys)

    def _note_order(self, path: Path, keys: Sequence[str], other: Path, others: Sequence[str]) -> None:
        if set(keys) != set(others):
            return
        for row, (one, two) in enumerate(zip(keys, others, strict=True)):
            if one != two:
                self._found(
                    f"'{other}', line {row + 1}: key '{shown(two)}', where '{path}' has '{shown(one)}': Oscar matches the two by order "
                    "and would mix up pictures; an import here matches them by key.",
                    fatal=False,
                )
                return

    def record(self, key: str) -> RegionRecord:
        """One picture, verified.

        Raises:
            VlkdError: its rows are broken or do not belong together; file, line and key are named.
        """
        record, problems = self.examine(key)
        if record is None:
            raise VlkdError(problems[0])
        return record

    def examine(self, key: str) -> tuple[RegionRecord | None, list[str]]:
        """One picture, or all that is wrong with it."""
        problems: list[str] = []
        found: dict[str, Found] = {}
        for name, file in self.files.items():
            if key in file:
                self._try(problems, lambda name=name: found.update({name: self._features(name, key)}))
        tags: dict[str, tuple[str, ...]] = {}
        sizes = {self.files[name].place(key): of.size for name, of in found.items() if of.size is not None}
        for name in self.files:
            if name != "teacher":
                self._try(
                    problems, lambda name=name: tags.update({name: self._tags_of(name, key, found.get(name), sizes)})
                )
        problems += filter(None, (_differing_sizes(sizes), self._differing_box(key, found)))
        if problems or len(found) < self._given:
            return None, problems
        record = _record(key, next(iter(sizes.values()), (1, 1)), found, tags)
        self._try(problems, lambda: self._check(record))
        return (None if problems else record), problems

    def _try(self, problems: list[str], step: Callable[[], None]) -> None:
        try:
            step()
        except VlkdError as error:
            problems.append(str(error))

    def _features(self, name: str, key: str) -> Found:
        """One file's regions of a picture, as wide as those of its first picture."""
        file = self.files[name]
        found = file.read(key)
        width, expected = found.features.shape[1], self._width(name)
        if expected is not None and width != expected[0]:
            raise VlkdError(
                f"{file.place(key)}: {width} numbers a region, but {expected[0]} of '{shown(expected[1])}': one file holds the features "
                "of one detector."
            )
        if name == "own" and "teacher" in self.files:
            teacher = self._width("teacher")
            if teacher is not None and width != teacher[0]:
                raise VlkdError(
                    f"{file.place(key)}: {width} numbers a region, but {teacher[0]} in '{self.files['teacher'].path}': both are to be "
                    "of the teacher's detector."
                )
        self._check_half(file, key, found)
        return found

    def _check_half(self, file: FeatureFile, key: str, found: Found) -> None:
        problem = half_problem(found.features[:, :-GEOMETRY_DIM]) if self._dtype == "float16" else None
        if problem:
            raise VlkdError(f"{file.place(key)}: {problem} (--dtype).")

    def _width(self, name: str) -> tuple[int, str] | None:
        """Numbers a region of a file's first picture, and its key; None while no picture of it can be read."""
        if name not in self._widths:
            file = self.files[name]
            self._widths[name] = None
            for key in file.keys[:_TRIED]:
                try:
                    features = file.read(key).features
                except VlkdError:
                    continue
                boxes = joined_rows(features)
                if boxes is not None:
                    raise VlkdError(
                        f"{file.place(key)}: {features.shape[1]} numbers a region, which are {boxes} regions of "
                        f"{features.shape[1] // boxes}: the number of boxes is too small."
                    )
                self._widths[name] = features.shape[1], key
                break
        return self._widths[name]

    def _tags_of(self, name: str, key: str, found: Found | None, sizes: dict[str, tuple[int, int]]) -> tuple[str, ...]:
        """A side's tags; what its file of tags knows of the picture's size is added to ``sizes``."""
        file = self._tags[name]
        if file is None:
            of_features = None if found is None else found.tags
            return of_features or self.other_tags.get(key, ())
        tags, size = file.read(key)
        if size is not None:
            sizes[file.place(key)] = size
        return tags

    def _differing_box(self, key: str, found: Mapping[str, Found]) -> str | None:
        """What differs between the two sides' boxes."""
        if not {"student", "teacher"} <= found.keys():
            return None
        difference = differing_box(found["student"].features, found["teacher"].features)
        return difference and f"{self.files['teacher'].place(key)}: {difference} ('{self.sources.student}')."

    def _check(self, record: RegionRecord) -> None:
        """What a store requires of a record."""
        try:
            record.check()
        except VlkdError as error:
            places = " and ".join(f"'{file.path}'" for file in self.files.values())
            raise VlkdError(f"{places}: {error}") from None


def _record(
    key: str, size: tuple[int, int], found: Mapping[str, Found], tags: Mapping[str, tuple[str, ...]]
) -> RegionRecord:
    boxes, student = _placed(found.get("student"), *size)
    _, teacher = _placed(found.get("teacher"), *size, boxes)
    own_boxes, own = _placed(found.get("own"), *size)
    return RegionRecord(
        key, *size, boxes, student, teacher, tags.get("student", ()), own_boxes, own, tags.get("own", ())
    )


def _placed(
    found: Found | None, width: int, height: int, boxes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [n, 4] in a picture of this size and features [n, D + 6]; ``boxes``, the file's, or those that the features end with.

    Geometry is written anew: what rounding left of it differs from file to file. n is 0 where nothing was found.
    """
    if found is None:
        return np.empty((0, 4), np.float32), np.empty((0, GEOMETRY_DIM + 1), np.float32)
    if boxes is None:
        boxes = found.boxes
    if boxes is None:
        scale = np.array([width, height, width, height], dtype=np.float32)
        boxes = found.features[:, -GEOMETRY_DIM:-2] * scale
    return boxes, np.concatenate([found.features[:, :-GEOMETRY_DIM], geometry(boxes, width, height)], axis=1)


def _differing_sizes(sizes: Mapping[str, tuple[int, int]]) -> str | None:
    """A sentence if two files say different sizes of a picture."""
    (place, size), *others = sizes.items() or [("", (1, 1))]
    for other, another in others:
        if another != size:
            return (
                f"{other}: the picture has {another[0]} x {another[1]} pixels, but {size[0]} x {size[1]} in {place}: both are to be of "
                "the same picture."
            )
    return None


def lacking(one: FeatureFile, other: FeatureFile) -> str | None:
    """A sentence if ``other`` lacks a picture of ``one``."""
    missing = [key for key in one.keys if key not in other]
    if not missing:
        return None
    return (
        f"'{other.path}' has no features of {len(missing)} of the {len(one.keys)} pictures in '{one.path}', the first "
        f"'{shown(missing[0])}': extract both from the same pictures."
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
