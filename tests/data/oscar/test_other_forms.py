"""Files in the forms that people have are read to the same numbers, and nothing is asked that they already say."""

from __future__ import annotations

import base64
import json
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from oscar_files import KEYS, SIZES, boxes, encoded, features, write_features
from other_forms import CLASSES, bottom_up_row, class_numbers, lxmert_row, of_own, write_arrays, write_rows

from vlkd.data.oscar import Sources, import_oscar, validate, write_lineidx


def read(sources: Sources, folder: Path) -> dict[str, np.ndarray]:
    """Key -> the own features that an import wrote, once `validate` found no error."""
    assert [finding.problem for finding in validate(sources, dtype="float32") if finding.fatal] == []
    store = import_oscar(sources, folder / "data", dtype="float32").store
    return {one.key: one.features for one in store.read(store.keys, "own")}  # type: ignore[union-attr]


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for key, rows in expected.items():
        np.testing.assert_array_equal(found[key][:, :-6], rows[:, :-6])
        np.testing.assert_allclose(found[key][:, -6:], rows[:, -6:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("row", [lxmert_row, bottom_up_row])
def test_lxmert_and_bottom_up_attention(row: Callable, header: bool, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "own.tsv", [row(key) for key in KEYS], header)
    names = tmp_path / "objects_vocab.txt"
    names.write_text("\n".join(CLASSES) + "\n")
    sources = Sources(own=path, own_classes=names if row is lxmert_row else None)
    same(read(sources, tmp_path), of_own())
    store = import_oscar(sources, tmp_path / "again").store
    for key, one in zip(KEYS, store.read(KEYS, "own"), strict=True):
        assert (one.width, one.height) == SIZES[key]
        np.testing.assert_allclose(one.boxes, boxes(key, 5), rtol=1e-6)
        words = tuple(CLASSES[number].split(",")[0] for number in class_numbers(key, 5))
        assert one.tags == (words if row is lxmert_row else ())


def test_class_numbers_without_names_are_a_note(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "own.tsv", [lxmert_row(key) for key in KEYS])
    notes = [finding for finding in validate(Sources(own=path)) if "class numbers" in finding.problem]
    assert [note.fatal for note in notes] == [False] and "--own-classes" in notes[0].problem
    told: list[str] = []
    store = import_oscar(Sources(own=path), tmp_path / "data", tell=told.append).store
    assert told == [f"note: {notes[0].problem}"] and store.tags(KEYS, "own") == [()] * 3


def test_an_import_tells_a_few_notes(tmp_path: Path) -> None:
    path = write_features(tmp_path / "own.tsv", of_own())
    tags = tmp_path / "own.label.tsv"
    tags.write_text("".join(f'{key}\t[{{"class": "dog"}}]\n' for key in (*KEYS, *range(200, 206))))
    told: list[str] = []
    import_oscar(Sources(own=path, own_tags=tags), tmp_path / "data", tell=told.append)
    assert len(told) == 4 and "key '200': tags, but no features" in told[0]
    assert told[-1] == "3 more notes: `vlkd data validate` lists them."


def test_student_and_teacher_in_two_forms(tmp_path: Path) -> None:
    student = write_rows(tmp_path / "student.tsv", [lxmert_row(key, 0, 5) for key in KEYS])
    teacher = write_features(tmp_path / "teacher.tsv", {key: features(key, 1, 7) for key in KEYS})
    store = import_oscar(Sources(student=student, teacher=teacher), tmp_path / "data", dtype="float32").store
    for key, one in zip(KEYS, store.read(KEYS, "paired"), strict=True):
        assert (one.width, one.height) == SIZES[key]
        np.testing.assert_array_equal(one.student_features[:, :5], features(key, 0, 5)[:, :5])
        np.testing.assert_array_equal(one.teacher_features[:, :7], features(key, 1, 7)[:, :7])


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_arrays(suffix: str, dtype: str, tmp_path: Path) -> None:
    rows = {key: value.astype(dtype) for key, value in of_own().items()}
    path = write_arrays(tmp_path / f"own{suffix}", rows)
    found = read(Sources(own=path), tmp_path)
    expected = {key: rows[key].astype(np.float32) for key in found}
    assert sorted(found) == sorted(KEYS)
    for key in found:
        np.testing.assert_array_equal(found[key][:, :-6], expected[key][:, :-6])


def test_tensors_that_are_no_plain_float32(tmp_path: Path) -> None:
    rows = {int(key): torch.from_numpy(value).requires_grad_() for key, value in of_own().items()}
    torch.save(rows, tmp_path / "a.pt")
    same(read(Sources(own=tmp_path / "a.pt"), tmp_path), of_own())
    torch.save(
        {"42": torch.from_numpy(features("42", 2, 7))}, tmp_path / "old.pt", _use_new_zipfile_serialization=False
    )
    same(read(Sources(own=tmp_path / "old.pt"), tmp_path / "old"), of_own(("42",)))


def rewrite(path: Path, change: Callable[[dict], dict]) -> None:
    """A change of each picture's JSON."""
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    path.write_text("".join(f"{key}\t{json.dumps(change(json.loads(text)))}\n" for key, text in lines))


def wrapped(row: dict) -> dict:
    return row | {"features": textwrap.fill(row["features"], 76) + "\n"}


def for_addresses(row: dict) -> dict:
    return row | {"features": row["features"].replace("+", "-").replace("/", "_")}


def count_as_text(row: dict) -> dict:
    return row | {"num_boxes": str(row["num_boxes"])}


def count_as_float(row: dict) -> dict:
    return row | {"num_boxes": float(row["num_boxes"])}


@pytest.mark.parametrize("change", [wrapped, for_addresses, count_as_text, count_as_float])
def test_json_as_other_tools_write_it(change: Callable[[dict], dict], tmp_path: Path) -> None:
    path = write_features(tmp_path / "own.tsv", of_own())
    assert change is not for_addresses or ("+" in path.read_text() and "/" in path.read_text())
    rewrite(path, change)
    same(read(Sources(own=path), tmp_path), of_own())


BYTES: dict[str, Callable[[bytes], bytes]] = {
    "a mark of UTF-8": lambda text: b"\xef\xbb\xbf" + text,
    "blank lines at the end": lambda text: text + b"\n\r\n  \n",
    "no newline at the end": lambda text: text.rstrip(b"\n"),
    "lines of Windows": lambda text: text.replace(b"\n", b"\r\n"),
    "tabs at the ends": lambda text: text.replace(b"\n", b"\t\n"),
}


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("form", ["captioning", "pre-training", "extractor"])
@pytest.mark.parametrize("name", BYTES)
def test_bytes_around_the_rows(name: str, form: str, indexed: bool, tmp_path: Path) -> None:
    path = write_features(tmp_path / "own.tsv", of_own(), form)
    path.write_bytes(BYTES[name](path.read_bytes()))
    if indexed:
        write_lineidx(path)
    same(read(Sources(own=path), tmp_path), of_own())


def test_an_index_that_counts_blank_lines_at_the_end(tmp_path: Path) -> None:
    """As Oscar's own tool writes it."""
    path = write_features(tmp_path / "own.tsv", of_own())
    size = path.stat().st_size
    write_lineidx(path)
    path.write_bytes(path.read_bytes() + b"\n")
    same(read(Sources(own=path), tmp_path), of_own())
    with path.with_suffix(".lineidx").open("a") as file:
        file.write(f"{size}\n")
    same(read(Sources(own=path), tmp_path / "again"), of_own())


def test_counts_of_the_pretraining_form(tmp_path: Path) -> None:
    path = tmp_path / "own.tsv"
    path.write_text("".join(f"{key}\t{len(rows)}.0\t{encoded(rows)}\n" for key, rows in of_own().items()))
    same(read(Sources(own=path), tmp_path), of_own())


def test_an_extractor_that_appended_the_geometry_itself(tmp_path: Path) -> None:
    path = write_features(tmp_path / "own.tsv", of_own(), "extractor")
    rows = of_own()

    def with_geometry(key: str, content: dict) -> dict:
        for item, row in zip(content["objects"], rows[key], strict=True):
            item["feature"] = encoded(row[None])
        return content

    lines = [line.split("\t") for line in path.read_text().splitlines()]
    path.write_text("".join(f"{key}\t{json.dumps(with_geometry(key, json.loads(text)))}\n" for key, text in lines))
    same(read(Sources(own=path), tmp_path), rows)


def test_a_key_has_one_spelling_in_all_files(tmp_path: Path) -> None:
    """Features spelt as macOS does, tags and captions as everything else."""
    split, joined = "cafe\u0301", "caf\u00e9"
    path = write_features(tmp_path / "own.tsv", {split: features("42", 2, 7)})
    (tmp_path / "own.label.tsv").write_text(f'{joined}\t[{{"class": "dog"}}]\n')
    (tmp_path / "captions.json").write_text(json.dumps([{"image_id": joined, "id": 1, "caption": "a dog"}]))
    sources = Sources(own=path, own_tags=tmp_path / "own.label.tsv", captions=tmp_path / "captions.json")
    assert [finding.problem for finding in validate(sources) if finding.fatal] == []
    imported = import_oscar(sources, tmp_path / "data")
    assert imported.store.keys == (joined,) and imported.store.tags([joined], "own") == [("dog",)]
    assert imported.corpus is not None and imported.corpus.keys == (joined,)


def test_subnormal_and_largest_numbers_survive(tmp_path: Path) -> None:
    rows = {key: value.copy() for key, value in of_own().items()}
    rows["42"][0, :4] = [1e-40, -3e38, 1e-45, 65504]
    path = write_features(tmp_path / "own.tsv", rows)
    same(read(Sources(own=path), tmp_path), rows)


def test_boxes_in_64_bits(tmp_path: Path) -> None:
    """Boxes and class numbers of other widths are told by their bytes."""
    rows = [
        bottom_up_row(key, boxes=base64.b64encode(boxes(key, 5).astype(np.float64).tobytes()).decode()) for key in KEYS
    ]
    same(read(Sources(own=write_rows(tmp_path / "own.tsv", rows)), tmp_path), of_own())
