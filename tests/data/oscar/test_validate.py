"""Each mistake in files of Oscar and VinVL has a sentence of its own, with file, line and key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oscar_files import KEYS, features, write_all, write_features, write_tags

from vlkd.data.oscar import Sources, TsvFile, import_oscar, validate, write_lineidx
from vlkd.errors import VlkdError


def sound(folder: Path) -> Sources:
    """Files in which nothing is to be found."""
    sources = write_all(folder)
    for path in sources.files():
        if path.suffix == ".tsv":
            write_lineidx(path)
    return sources


def rewritten(
    path: Path | None, change: Callable[[str, np.ndarray], np.ndarray], side: int, dim: int, **options
) -> None:
    """The same features with a change of each picture's rows, and their index."""
    assert path is not None
    write_features(path, {key: change(key, features(key, side, dim)) for key in KEYS}, **options)
    write_lineidx(path)


def no_index(folder: Path, sources: Sources) -> None:
    (folder / "teacher.feature.lineidx").unlink()


def index_of_another_file(folder: Path, sources: Sources) -> None:
    (folder / "teacher.feature.lineidx").write_text("0\n5\n")


def index_too_short(folder: Path, sources: Sources) -> None:
    (folder / "teacher.feature.lineidx").write_text("0\n")


def another_order(folder: Path, sources: Sources) -> None:
    assert sources.teacher is not None
    write_features(sources.teacher, {key: features(key, 1, 7) for key in reversed(KEYS)})
    write_lineidx(sources.teacher)


def half_precision(folder: Path, sources: Sources) -> None:
    rewritten(sources.teacher, lambda key, rows: np.concatenate([rows[:, :1], rows], axis=1), 1, 7, dtype="float16")


def double_precision(folder: Path, sources: Sources) -> None:
    rewritten(sources.teacher, lambda key, rows: rows, 1, 7, dtype="float64")


def without_geometry(folder: Path, sources: Sources) -> None:
    rewritten(sources.teacher, lambda key, rows: rows[:, :-6], 1, 2048)


def height_before_width(folder: Path, sources: Sources) -> None:
    rewritten(sources.teacher, lambda key, rows: rows[:, [*range(11), 12, 11]], 1, 7)


def another_dimension(folder: Path, sources: Sources) -> None:
    rewritten(sources.teacher, lambda key, rows: rows[:, 1:] if key == "7" else rows, 1, 7)


def other_boxes(folder: Path, sources: Sources) -> None:
    rewritten(sources.teacher, lambda key, rows: rows[::-1] if key == "7" else rows, 1, 7)


def other_count(folder: Path, sources: Sources) -> None:
    rewritten(sources.teacher, lambda key, rows: rows[1:] if key == "7" else rows, 1, 7)


def tags_without_features(folder: Path, sources: Sources) -> None:
    assert sources.tags is not None
    write_lineidx(write_tags(sources.tags, (*KEYS, "9999")))


def features_without_tags(folder: Path, sources: Sources) -> None:
    assert sources.tags is not None
    write_lineidx(write_tags(sources.tags, KEYS[:2]))


def captions_without_features(folder: Path, sources: Sources) -> None:
    assert sources.captions is not None
    rows = json.loads(sources.captions.read_text())
    sources.captions.write_text(json.dumps([*rows, {"image_id": 9999, "id": 1, "caption": "nobody saw this"}]))


def cut(path: Path | None, marker: str, away: int) -> None:
    """Take characters out of the base64 of the second line."""
    assert path is not None
    lines = path.read_text().split("\n")
    end = lines[1].rindex(marker)
    lines[1] = lines[1][: end - away] + lines[1][end:]
    path.write_text("\n".join(lines))
    write_lineidx(path)


def truncated_base64(folder: Path, sources: Sources) -> None:
    cut(sources.teacher, '"}', 3)


def truncated_rows(folder: Path, sources: Sources) -> None:
    cut(sources.teacher, '"}', 4)


def truncated_line(folder: Path, sources: Sources) -> None:
    assert sources.teacher is not None
    sources.teacher.write_text(sources.teacher.read_text()[:-40])


def a_key_twice(folder: Path, sources: Sources) -> None:
    assert sources.teacher is not None
    text = sources.teacher.read_text()
    sources.teacher.write_text(text + text.split("\n", 1)[0] + "\n")
    write_lineidx(sources.teacher)


def a_picture_too_few(folder: Path, sources: Sources) -> None:
    assert sources.teacher is not None
    write_features(sources.teacher, {key: features(key, 1, 7) for key in KEYS[:2]})
    write_lineidx(sources.teacher)


def broken_tags(folder: Path, sources: Sources) -> None:
    assert sources.tags is not None
    sources.tags.write_text(sources.tags.read_text().replace('"class"', '"name"', 1))
    write_lineidx(sources.tags)


# what each says, and whether an import refuses the files
MISTAKES: dict[Callable[[Path, Sources], None], tuple[str, bool]] = {
    no_index: (r"teacher.feature.tsv' has no .lineidx beside it: .*`vlkd data index", False),
    index_of_another_file: (
        r"teacher.feature.lineidx' says that row 2 begins at byte 5, where no row begins: it is of another file",
        True,
    ),
    index_too_short: (r"teacher.feature.lineidx' has 1 rows, but the TSV has more", True),
    another_order: (
        r"teacher.feature.tsv', line 1: key '101', where .*student.feature.tsv' has '42': .* by order",
        False,
    ),
    half_precision: (
        r"teacher.feature.tsv', line 1, key '42': 7 numbers a region if they were float32, but they are 14 of float16",
        True,
    ),
    double_precision: (r"line 1, key '42': 26 numbers a region if they were float32, but they are 13 of float64", True),
    without_geometry: (r"line 1, key '42': 2048 numbers a region that do not end with x1/W.* append these six", True),
    height_before_width: (r"line 1, key '42': rows end with h/H, w/W, but w/W, h/H is expected", True),
    another_dimension: (r"line 2, key '7': 12 numbers a region, but 13 of '42'", True),
    other_boxes: (
        r"teacher.feature.tsv', line 2, key '7': region 0 is \(.*\) of the picture for the teacher, but \(",
        True,
    ),
    other_count: (r"teacher.feature.tsv', line 2, key '7': 2 regions for the teacher, but 3 for the student", True),
    tags_without_features: (r"student.label.tsv', line 4, key '9999': tags, but no features", False),
    features_without_tags: (r"student.label.tsv' has no tags of picture '101'", True),
    captions_without_features: (
        r"train_caption.json': no features for 1 of 4 pictures with texts, the first '9999': extract them, or remove",
        True,
    ),
    truncated_base64: (r"teacher.feature.tsv', line 2, key '7': broken base64 \(", True),
    truncated_rows: (r"line 2, key '7': 153 bytes of features are no float32 rows of equal length for 3 boxes", True),
    truncated_line: (r"line 3, key '101': expected JSON", True),
    a_key_twice: (r"teacher.feature.tsv', line 4: key '42' stands in line 1 already", True),
    a_picture_too_few: (r"teacher.feature.tsv' has no features of 1 of the 3 pictures .* the first '101'", True),
    broken_tags: (
        r"student.label.tsv', line 1, key '42', object 0 .*: expected a JSON list of objects with 'class'",
        True,
    ),
}


def test_sound_files_have_nothing_to_be_found(tmp_path: Path) -> None:
    assert list(validate(sound(tmp_path))) == []


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_named_and_refused_if_it_must_be(mistake: Callable[[Path, Sources], None], tmp_path: Path) -> None:
    sources = sound(tmp_path)
    mistake(tmp_path, sources)
    sentence, fatal = MISTAKES[mistake]
    found = list(validate(sources))
    assert [finding.fatal for finding in found if re.search(sentence, finding.problem)] == [fatal] or (
        mistake in (half_precision, double_precision, without_geometry, height_before_width)
        and len(found) == len(KEYS)
        and re.search(sentence, found[0].problem)
    ), [finding.problem for finding in found]
    assert all(re.search(r"'[^']*\.(tsv|json|lineidx)'", finding.problem) for finding in found)
    if fatal:
        with pytest.raises(VlkdError):
            import_oscar(sources, tmp_path / "data")
        assert not (tmp_path / "data" / "store").exists()
    else:
        assert len(import_oscar(sources, tmp_path / "data").store) == len(KEYS)


def test_an_index_is_made_as_oscar_has_it(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"one\t1\ntwo\t\xc3\xa9\nthree\t3")
    plain = TsvFile(tmp_path / "a.tsv")
    assert not plain.indexed and plain.offsets == [0, 6, 13]
    assert write_lineidx(tmp_path / "a.tsv").read_text() == "0\n6\n13\n"
    file = TsvFile(tmp_path / "a.tsv")
    assert file.indexed and [file.row(i) for i in range(3)] == [[b"one", b"1"], [b"two", b"\xc3\xa9"], [b"three", b"3"]]
    assert [file.first_column(i) for i in range(3)] == ["one", "two", "three"]


def test_an_index_of_another_file_is_made_anew_and_one_of_no_file_is_kept(tmp_path: Path) -> None:
    path = write_features(tmp_path / "a.tsv", {"42": features("42", 2, 7)})
    index = tmp_path / "a.lineidx"
    index.write_text("0\n7\n")
    assert write_lineidx(path).read_text() == "0\n"
    path.write_bytes(b"")
    with pytest.raises(VlkdError, match="is empty"):
        write_lineidx(path)
    assert index.read_text() == "0\n"


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (finding,) = validate(Sources(own=tmp_path / "nowhere.tsv"))
    assert "There is no file" in finding.problem
    (tmp_path / "empty.tsv").write_bytes(b"")
    (finding,) = validate(Sources(own=tmp_path / "empty.tsv"))
    assert "is empty" in finding.problem
    with pytest.raises(VlkdError, match="without --teacher"):
        list(validate(replace(Sources(), student=tmp_path / "x.tsv")))


def test_one_file_in_two_places_is_noted(tmp_path: Path) -> None:
    sources = sound(tmp_path)
    (found,) = validate(replace(sources, own=sources.teacher))
    assert not found.fatal and "--teacher and --own are one file" in found.problem
    (found,) = validate(replace(sources, teacher=sources.student, own=None, own_tags=None))
    assert not found.fatal and "--student and --teacher are one file" in found.problem
