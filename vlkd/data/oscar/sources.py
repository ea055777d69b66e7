"""Which files of Oscar and VinVL make one data set."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import yaml

from vlkd.data.containers import require_text
from vlkd.data.oscar.encoded import StoredAs
from vlkd.errors import VlkdError


@dataclass(frozen=True)
class Sources:
    """The files of one data set.

    Attributes:
        student, teacher: two detectors' features of the same boxes; both or neither.
        own: the teacher's features of its own boxes.
        tags, own_tags: the tags of the student's (``own_tags``: of the teacher's) detector. Features that bring their own need none.
        captions, questions, answers, annotations: texts. Oscar's questions need answers; VQA v2's have annotations.
        stored_as: what base64 features are made of.
        classes, own_classes: names of the class numbers in the student's (``own_classes``: the teacher's own) features, which
            LXMERT's have; without them these have no tags.

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
    classes: Path | None = None
    own_classes: Path | None = None

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
        for option, side in (("tags", "student"), ("own_tags", "own"), ("classes", "student"), ("own_classes", "own")):
            if getattr(found, option) is not None and getattr(found, side) is None:
                raise VlkdError(
                    f"--{option.replace('_', '-')} is given without --{side}, to whose features it belongs: give these too, or leave it "
                    "out."
                )
        if found.student is None and found.own is None:
            raise VlkdError("There are no features: give --student and --teacher, or --own, or all three.")
        return found

    def files(self) -> list[Path]:
        """Every file, once."""
        paths = [getattr(self, field.name) for field in fields(self) if field.name != "stored_as"]
        return list(dict.fromkeys(path for path in paths if path is not None))

    def region_options(self) -> list[str]:
        """The names of the files of regions and tags that are given."""
        names = ("student", "teacher", "own", "tags", "own_tags", "classes", "own_classes")
        return [name for name in names if getattr(self, name) is not None]

    def region_files(self) -> list[Path]:
        """Every file that regions or tags come from, once; questions may have tags beside them."""
        texts = {self.captions, self.answers, self.annotations}
        return [path for path in self.files() if path not in texts]


def _from_yaml(sources: Sources, name: str, tags: str) -> Sources:
    """Replace a YAML by the files that it names, which stand beside it."""
    path: Path | None = getattr(sources, name)
    if path is None or path.suffix.lower() not in (".yaml", ".yml"):
        return sources
    require_text(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise VlkdError(f"'{path}' is no YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict) or not content.get("feature"):
        raise VlkdError(f"'{path}' names no 'feature': expected an Oscar YAML with feature, label and caption.")
    for entry in ("feature", "label", "caption"):
        if content.get(entry) is not None and not isinstance(content[entry], str):
            raise VlkdError(f"'{path}': '{entry}' is {content[entry]!r}, but the name of one file is expected.")
    changes = {name: path.parent / content["feature"]}
    if tags and content.get("label") and getattr(sources, tags) is None:
        changes[tags] = path.parent / content["label"]
    if tags and content.get("caption") and sources.captions is None:
        changes["captions"] = path.parent / content["caption"]
    return replace(sources, **changes)
