"""How a feature store lies on disk.

A folder holds ``regions.json`` (:data:`METADATA`) and parts, ``part-00000.arrow`` and so on: Arrow files of a row a picture, in
batches of :data:`ROWS_A_BATCH` rows, which are mapped into memory and read where they lie. A list's numbers stand end to
end: row after row of the picture's regions. Geometry is apart from its features and float32 even where these are float16, so
that it can be verified exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pyarrow

View = Literal["paired", "own"]
FeatureType = Literal["float32", "float16"]
Role = Literal["student", "teacher"]

FORMAT = "vlkd regions 2"
METADATA = "regions.json"
ROWS_A_BATCH = 16

FEATURES: dict[View, tuple[str, ...]] = {
    "paired": ("student_features", "teacher_features"),
    "own": ("own_features",),
}
BOXES: dict[View, str] = {"paired": "student_boxes", "own": "own_boxes"}
TAGS: dict[View, str] = {"paired": "tags", "own": "own_tags"}


def geometry_of(features: str) -> str:
    """The column of the six box numbers that belong to a column of features."""
    return features.removesuffix("_features") + "_geometry"


def part_name(number: int) -> str:
    """The file of a part; names sort as numbers do."""
    return f"part-{number:05d}.arrow"


def schema(dtype: FeatureType) -> pyarrow.Schema:
    """The columns of a part."""
    import pyarrow

    half = pyarrow.float16() if dtype == "float16" else pyarrow.float32()
    features = [name for names in FEATURES.values() for name in names]
    fields = [("key", pyarrow.string()), ("width", pyarrow.int32()), ("height", pyarrow.int32())]
    fields += [(name, pyarrow.list_(half)) for name in features]
    fields += [(name, pyarrow.list_(pyarrow.float32())) for name in (*BOXES.values(), *map(geometry_of, features))]
    fields += [(name, pyarrow.list_(pyarrow.string())) for name in TAGS.values()]
    return pyarrow.schema(fields)
