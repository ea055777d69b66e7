"""Rows and arrays of another layout: one sentence, the same from `validate` and from an import."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oscar_files import KEYS, boxes, encoded, features, write_features
from other_forms import CLASSES, bottom_up_row, lxmert_row, of_own, refused, write_arrays, write_rows

from vlkd.data.oscar import Sources, write_lineidx

Make = Callable[[Path], Sources]


def json_row(change: dict[str, Any], form: str = "captioning") -> Make:
    """Picture 7's JSON with some entries replaced; ``...`` takes one out."""

    def make(folder: Path) -> Sources:
        path = write_features(folder / "own.tsv", of_own(), form)
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        content = json.loads(lines[1][1]) | change
        lines[1][1] = json.dumps({name: value for name, value in content.items() if value is not ...})
        path.write_text("".join("\t".join(line) + "\n" for line in lines))
        return Sources(own=path)

    return make


def json_object(**change: Any) -> Make:
    """The same of picture 7's second object, as VinVL's extractor has it."""

    def make(folder: Path) -> Sources:
        path = write_features(folder / "own.tsv", of_own(), "extractor")
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        content = json.loads(lines[1][1])
        changed = content["objects"][1] | change
        content["objects"][1] = {name: value for name, value in changed.items() if value is not ...}
        lines[1][1] = json.dumps(content)
        path.write_text("".join("\t".join(line) + "\n" for line in lines))
        return Sources(own=path)

    return make


def text_of(change: Callable[[str], str | bytes], form: str = "captioning", name: str = "own.tsv") -> Make:
    """The whole file changed."""

    def make(folder: Path) -> Sources:
        path = write_features(folder / name, of_own(), form)
        changed = change(path.read_text())
        path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
        return Sources(own=path)

    return make


def columns(row: Callable = lxmert_row, **change: str) -> Make:
    """Picture 7's columns replaced."""

    def make(folder: Path) -> Sources:
        rows = [row(key) | (change if key == "7" else {}) for key in KEYS]
        return Sources(own=write_rows(folder / "own.tsv", rows))

    return make


def line(number: int, content: str, form: str = "captioning") -> Make:
    def change(text: str) -> str:
        lines = text.splitlines()
        lines[number] = content
        return "\n".join(lines) + "\n"

    return text_of(change, form)


def indexed(change: Callable[[list[str]], list[str]]) -> Make:
    """A .lineidx beside the file, changed."""

    def make(folder: Path) -> Sources:
        path = write_features(folder / "own.tsv", of_own())
        index = write_lineidx(path)
        index.write_text("\n".join(change(index.read_text().split())) + "\n")
        return Sources(own=path)

    return make


def int64(*values: int) -> str:
    return base64.b64encode(np.array(values, np.int64).tobytes()).decode()


def with_classes(make: Make, text: str = "\n".join(CLASSES)) -> Make:
    def both(folder: Path) -> Sources:
        (folder / "names.txt").write_text(text)
        return replace(make(folder), own_classes=folder / "names.txt")

    return both


def as_float16(form: str) -> Make:
    def make(folder: Path) -> Sources:
        rows = {key: np.concatenate([of[:, :1], of], axis=1) for key, of in of_own().items()}
        return Sources(own=write_features(folder / "own.tsv", rows, form, "float16"))

    return make


def joined_boxes(folder: Path) -> Sources:
    rows = {key: of[:4].reshape(2, -1) for key, of in of_own().items()}
    return Sources(own=write_features(folder / "own.tsv", rows))


ROWS: dict[str, tuple[Make, str]] = {
    "no boxes": (json_row({"num_boxes": 0}), "0 boxes, but a whole number of at least 1"),
    "null boxes": (json_row({"num_boxes": None}), "null boxes"),
    "true boxes": (json_row({"num_boxes": True}), "true boxes"),
    "text boxes": (json_row({"num_boxes": "many"}), "'many' boxes"),
    "half a box": (json_row({"num_boxes": 4.5}), "4.5 boxes"),
    "boxes that are nan": (json_row({"num_boxes": float("nan")}), "nan boxes"),
    "too many boxes": (json_row({"num_boxes": 6}), "no float32 rows of equal length for 6 boxes"),
    "too few boxes in all rows": (joined_boxes, "26 numbers a region, which are 2 regions of 13"),
    "features null": (json_row({"features": None}), "features must be base64, but are null"),
    "features as a list": (json_row({"features": [[1.0, 2.0]]}), "must be base64, but are a list of 1"),
    "features empty": (json_row({"features": ""}), "0 bytes of features"),
    "features with b''": (json_row({"features": "b'AAAA'"}), "base64 with Python's b'…' around it"),
    "features of no base64": (json_row({"features": "§§§§"}), "broken base64"),
    "no features": (json_row({"features": ...}), "expected JSON with 'num_boxes' and 'features'"),
    "a list in the place of JSON": (line(1, "7\t[1, 2]"), "expected JSON with 'num_boxes' and 'features'"),
    "a word in the place of JSON": (line(1, "7\tdog"), "expected JSON behind the key, but"),
    "only a key": (line(1, "7"), "1 columns, but a key and JSON are expected"),
    "an empty line between": (line(1, ""), "line 2: no key of a picture"),
    "an empty key": (line(1, "\t{}"), "line 2: no key of a picture"),
    "the key twice": (line(1, "42\t{}"), "line 2: key '42' stands in line 1 already"),
    "columns exchanged": (
        text_of(lambda text: "".join("\t".join(row.split("\t")[::-1]) + "\n" for row in text.splitlines()), "pre-training"),
        r"line 1: .*1 columns|line 1, key 'm?|stands where a key is expected|boxes, but|columns, but",
    ),
    "base64 wrapped over lines": (
        text_of(lambda text: re.sub(r"([A-Za-z0-9+/]{76})", r"\1\n", text), "pre-training"),
        "columns, but a key and JSON are expected.*are lines wrapped|no whole|bytes of features",
    ),
    "an entry twice": (
        text_of(lambda text: text.replace('"num_boxes": 5', '"num_boxes": 4, "num_boxes": 5')), "'num_boxes' stands in one object twice"),
    "two lines joined": (
        text_of(lambda text: text.replace("\n7\t", "7\t"), "pre-training"), "line 1, key '42': 5 columns, but a key and JSON"),
    "an entry of an object twice": (
        text_of(lambda text: text.replace('"conf"', '"class"'), "extractor"), "'class' stands in one object twice"),
    "half of a character": (json_object(**{"class": "\ud800"}), r"'class' is '.ud800', but a name"),
    "the key twice but for blanks": (line(1, "42 \t{}"), "line 2: key '42' stands in line 1 already"),
    "objects null": (json_row({"objects": None}, "extractor"), "'objects' is null, but a list"),
    "objects empty": (json_row({"objects": []}, "extractor"), "'objects' is a list of 0, but a list of at least one"),
    "objects of numbers": (json_row({"objects": [1]}, "extractor"), "object 0 .*: expected a JSON list of objects"),
    "width null": (json_row({"image_w": None}, "extractor"), "width and height are null and 375"),
    "width nan": (json_row({"image_w": float("nan")}, "extractor"), "width and height are nan and 375"),
    "height negative": (json_row({"image_h": -375}, "extractor"), "width and height are 500 and -375"),
    "height missing": (json_row({"image_h": ...}, "extractor"), "width and height are 500 and null"),
    "the size of another picture": (json_row({"image_w": 100}, "extractor"), "reaches beyond the picture of 100 x 375"),
    "rect null": (json_object(rect=None), "'rect' is null, but four numbers"),
    "rect of three": (json_object(rect=[1, 2, 3]), "'rect' is a list of 3, but four numbers"),
    "rect of text": (json_object(rect=["1", 2, 3, 4]), "'rect' holds '1', but four numbers"),
    "rect of true": (json_object(rect=[True, 2, 3, 4]), "'rect' holds true, but four numbers"),
    "rect of nan": (json_object(rect=[float("nan"), 2, 3, 4]), "not finite"),
    "class null": (json_object(**{"class": None}), "object 1 .*: 'class' is null, but a name"),
    "class a number": (json_object(**{"class": 7}), "'class' is 7, but a name"),
    "class empty": (json_object(**{"class": "  "}), "'class' is '  ', but a name"),
    "class missing": (json_object(**{"class": ...}), "object 1 .* objects with 'class'"),
    "score nan": (json_object(conf=float("nan")), "the score nan, but a number from 0 to 1"),
    "score 5": (json_object(conf=5), "the score 5, but"),
    "score -1": (json_object(conf=-1), "the score -1, but"),
    "score true": (json_object(conf=True), "the score true, but"),
    "feature missing": (json_object(feature=...), "object 1 .*: no 'feature'"),
    "feature of another width": (
        json_object(feature=encoded(np.ones((1, 9), np.float32))), "objects with features of 28 and 36 bytes"),
    "objects in float16": (as_float16("extractor"), "do as float16: say so with --stored-as float16"),
    "rows in float16": (as_float16("captioning"), "14 of float16: say so with --stored-as float16"),
    "LXMERT's boxes cut": (columns(boxes=encoded(boxes("7", 4))), "line 2, key '7', boxes: 64 bytes, but"),
    "LXMERT's count": (columns(num_boxes="4"), "line 2, key '7'"),
    "LXMERT's count in words": (columns(num_boxes="five"), "'five' boxes|five"),
    "LXMERT's size of another picture": (columns(img_h="100"), "reaches beyond the picture of 500 x 100"),
    "LXMERT's size missing": (columns(img_h=""), "width and height are '500' and ''"),
    "LXMERT's scores": (columns(objects_conf=encoded(np.array([1, 2, 3, 4, 5.0]))), "the score 2.0, but"),
    "LXMERT's class beyond the names": (
        with_classes(columns(objects_id=int64(0, 1, 2, 3, 5))), "class number 5, but the file of classes has 5 names"),
    "LXMERT's class below 0": (with_classes(columns(objects_id=int64(0, 1, 2, 3, -1))), "class number -1"),
    "an empty class name": (with_classes(columns(), "a\n\nb\n"), "names.txt', line 2: no name"),
    "names for a file that has them": (with_classes(json_row({}, "extractor")), "names class numbers, but .* has none"),
    "bottom-up's features cut": (
        columns(bottom_up_row, features=encoded(features("7", 2, 7)[:4, :7])), "no float32 rows of equal length"),
    "bottom-up's base64": (columns(bottom_up_row, features="AAA"), "line 2, key '7', features: broken base64"),
    "gzip": (text_of(lambda text: gzip.compress(text.encode())), "is compressed.*gunzip -k"),
    "UTF-16": (text_of(lambda text: text.encode("utf-16")), "is in UTF-16, but UTF-8 is expected"),
    "UTF-16 without a mark": (text_of(lambda text: text.encode("utf-16-le")), "is in UTF-16, .*iconv -f UTF-16LE"),
    "a key in latin-1": (
        text_of(lambda text: text.encode().replace(b"7\t", b"caf\xe9\t", 1)), "line 2: 'café' is not in UTF-8"),
    "a class in latin-1": (
        text_of(lambda text: text.encode().replace(b"thing1", b"caf\xe9"), "extractor"), "line is not in UTF-8"),
    "a pickle": (text_of(lambda text: pickle.dumps({"a": 1})), "is a pickle, and no pickle is ever loaded"),
    "a pickle by its name": (text_of(lambda text: pickle.dumps({}), name="own.pkl"), "no pickle is ever loaded"),
    ".npy by its name": (text_of(lambda text: b"\x93NUMPY", name="own.npy"), "one array without keys"),
    "HDF5 by its name": (text_of(lambda text: b"\x89HDF", name="own.h5"), "is HDF5, which is not read"),
    "an index shuffled": (indexed(lambda rows: [rows[0], rows[2], rows[1]]), "own.lineidx' says that row 3 begins at byte"),
    "an index with a gap": (indexed(lambda rows: [rows[0], rows[2]]), "own.lineidx' says that row 1 goes from byte 0 to"),
    "an index too short": (indexed(lambda rows: rows[:2]), "own.lineidx' has 2 rows, but the TSV has more"),
    "an index beyond": (indexed(lambda rows: [*rows, "99999"]), "own.lineidx' says that row 4 begins at byte 99999"),
    "an index that begins late": (indexed(lambda rows: rows[1:]), "own.lineidx' says that the first row begins"),
    "an index of words": (indexed(lambda rows: ["zero"]), "own.lineidx' is no list of numbers"),
    "an empty index": (indexed(lambda rows: []), "own.lineidx' says that the first row"),
    "nothing": (text_of(lambda text: ""), "own.tsv' is empty"),
    "blank lines only": (text_of(lambda text: "\n\n"), "own.tsv' is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_refused_by_one_sentence(name: str, tmp_path: Path) -> None:
    make, sentence = ROWS[name]
    told = refused(make(tmp_path), tmp_path, sentence)
    assert re.search(r"'[^']*(own|names)\.(tsv|lineidx|txt|pkl|npy|h5)'", told)


def torch_of(content: Any, name: str = "own.pt") -> Make:
    def make(folder: Path) -> Sources:
        torch.save(content() if callable(content) else content, folder / name)
        return Sources(own=folder / name)

    return make


def tensor() -> torch.Tensor:
    return torch.from_numpy(features("42", 2, 7))


def archive(**arrays: np.ndarray) -> Make:
    def make(folder: Path) -> Sources:
        return Sources(own=write_arrays(folder / "own.npz", arrays))

    return make


ARRAYS: dict[str, tuple[Make, str]] = {
    "a list": (torch_of(lambda: [tensor()]), "holds a list of 1, but a dict"),
    "a bare tensor": (torch_of(tensor), r"holds a Tensor of \[5, 13\], but a dict"),
    "an empty dict": (torch_of({}), "holds a dict with nothing"),
    "a dict in the dict": (torch_of(lambda: {"42": {"features": tensor()}}), "key '42': a dict with 'features' came"),
    "a list in the dict": (torch_of(lambda: {"42": [tensor()]}), "key '42': a list of 1 came"),
    "a number in the dict": (torch_of({"42": 1.5}), "key '42': a float came"),
    "a first dimension of 1": (torch_of(lambda: {"42": tensor()[None]}), r"\[1, 5, 13\] has a first dimension of 1"),
    "one dimension": (torch_of(lambda: {"42": tensor()[0]}), r"\[13\] came"),
    "no region": (torch_of(lambda: {"42": tensor()[:0]}), r"\[0, 13\] came"),
    "transposed": (torch_of(lambda: {"42": tensor().T.contiguous()}), r"\[13, 5\] is \[D \+ 6, n\].*transpose"),
    "whole numbers": (torch_of(lambda: {"42": tensor().long()}), "numbers of int64 came"),
    "complex numbers": (torch_of(lambda: {"42": tensor().cfloat()}), "numbers of complex64 came"),
    "sparse": (torch_of(lambda: {"42": tensor().to_sparse()}), "key '42': a Tensor"),
    "keys that are pairs": (torch_of(lambda: {("a", 1): tensor()}), "the key \\('a', 1\\) is no text"),
    "a key twice": (torch_of(lambda: {42: tensor(), "42": tensor()}), "the keys 42 and '42' are the same"),
    "no geometry": (torch_of(lambda: {"42": tensor()[:, :7]}), "7 numbers a region that do not end"),
    "no tensors": (text_of(lambda text: "hello", name="own.pt"), "holds no tensors that can be loaded"),
    "cut off": (text_of(lambda text: "PK\x03\x04", name="own.pth"), "holds no tensors that can be loaded"),
    "an archive of one picture": (
        archive(x=features("42", 2, 7), bbox=boxes("42", 5), num_bbox=np.array(5)), "key 'bbox': 4 numbers|key 'x'|key 'num"),
    "an archive of objects": (archive(a=np.array([{"x": 1}], dtype=object)), "key 'a': no array that can be read"),
    "no archive": (text_of(lambda text: "hello", name="own.npz"), "is no .npz of arrays"),
    "no safetensors": (text_of(lambda text: "hello", name="own.safetensors"), "is no .safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_another_layout_are_named(name: str, tmp_path: Path) -> None:
    make, sentence = ARRAYS[name]
    refused(make(tmp_path), tmp_path, sentence)
