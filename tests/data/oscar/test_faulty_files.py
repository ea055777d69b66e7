"""Faulty tags, what files say of each other, and what a failed import leaves: one sentence from `validate` and from an import."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oscar_files import KEYS, encoded, features, write_features, write_tags
from other_forms import numbers, of_own, refused

from vlkd.data.oscar import Sources, import_oscar, importing
from vlkd.errors import VlkdError

Make = Callable[[Path], Sources]


def tags_of(content: Any) -> Make:
    """Picture 7's tags replaced; bytes are the whole line."""

    def make(folder: Path) -> Sources:
        own = write_features(folder / "own.tsv", of_own())
        path = write_tags(folder / "own.label.tsv")
        lines = path.read_bytes().splitlines()
        lines[1] = content if isinstance(content, bytes) else b"7\t" + json.dumps(content).encode()
        path.write_bytes(b"\n".join(lines) + b"\n")
        return Sources(own=own, own_tags=path)

    return make


TAGS: dict[str, tuple[Make, str]] = {
    "null class": (tags_of([{"class": "dog"}, {"class": None}]), "object 1 .*: 'class' is null, but a name"),
    "empty class": (tags_of([{"class": ""}]), "object 0 .*: 'class' is '', but a name"),
    "a number for a class": (tags_of([{"class": 3}]), "'class' is 3, but a name"),
    "true for a class": (tags_of([{"class": True}]), "'class' is true, but a name"),
    "no class": (tags_of([{"name": "dog"}]), "expected a JSON list of objects with 'class'"),
    "score nan": (tags_of([{"class": "dog", "conf": float("nan")}]), "the score nan, but"),
    "score 5": (tags_of({"objects": [{"class": "dog", "conf": 5}]}), "the score 5, but"),
    "score -1": (tags_of([{"class": "dog", "conf": -1}]), "the score -1, but"),
    "score as text": (tags_of([{"class": "dog", "conf": "0.5"}]), "the score '0.5', but"),
    "score null": (tags_of([{"class": "dog", "conf": None}]), "the score null, but"),
    "words": (tags_of(["dog"]), "object 0 .*: expected a JSON list of objects with 'class'.* 'dog'"),
    "null": (tags_of(None), "expected a JSON list of objects"),
    "objects null": (tags_of({"objects": None}), "expected a JSON list of objects"),
    "no JSON": (tags_of(b"7\tdog cat"), "expected JSON behind the key"),
    "only a key": (tags_of(b"7"), "expected a JSON list of objects"),
    "a key twice": (tags_of(b'42\t[{"class": "dog"}]'), "line 2: key '42' stands in line 1 already"),
    "latin-1": (tags_of(b'7\t[{"class": "caf\xe9"}]'), "not in UTF-8"),
    "half a size": (tags_of({"objects": [], "image_w": 500}), "width and height are 500 and null"),
    "no size": (tags_of({"objects": [], "image_w": 0, "image_h": 375}), "width and height are 0 and 375"),
    "another size": (
        tags_of({"objects": [], "image_w": 1, "image_h": "tall"}), "width and height are 1 and 'tall'"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAGS)
def test_tags_are_refused_by_one_sentence(name: str, tmp_path: Path) -> None:
    make, sentence = TAGS[name]
    told = refused(make(tmp_path), tmp_path, sentence)
    assert "own.label.tsv', line 2" in told


def test_two_sizes_of_a_picture(tmp_path: Path) -> None:
    sources = tags_of({"objects": [], "image_w": 600, "image_h": 375})(tmp_path)
    own = write_features(tmp_path / "own.tsv", of_own(), "extractor")
    refused(
        replace(sources, own=own),
        tmp_path,
        r"own.label.tsv', line 2, key '7': .* 600 x 375 pixels, but 500 x 375 in '.*own.tsv'",
    )


def test_a_teacher_of_two_widths(tmp_path: Path) -> None:
    sides = [
        write_features(tmp_path / f"{n}.tsv", {key: features(key, side, 7) for key in KEYS})
        for side, n in enumerate("st")
    ]
    own = write_features(tmp_path / "own.tsv", {key: features(key, 2, 9) for key in KEYS})
    refused(Sources(*sides, own), tmp_path, r"own.tsv', line 1, key '42': 15 numbers a region, but 13 in '.*t.tsv'")


def test_a_key_in_two_spellings_comes_twice(tmp_path: Path) -> None:
    rows = {"cafe\u0301": features("42", 2, 7), "caf\u00e9": features("42", 2, 7)}
    for form in ("captioning", "tensors"):
        refused(Sources(own=write_features(tmp_path / "own.tsv", rows, form)), tmp_path, "already|are the same")


def test_features_in_the_place_of_keys_are_not_printed(tmp_path: Path) -> None:
    """106 kB of base64."""
    text = encoded(np.random.default_rng(0).standard_normal((20, 1000)).astype(np.float32))
    assert len(text) > 106_000
    (tmp_path / "own.tsv").write_text(f"{text}\t20\t42\n{text[:900]}\t20\n")
    told = refused(
        Sources(own=tmp_path / "own.tsv"), tmp_path, r"line 1: '.*… \(106,668 characters\)' stands where a key"
    )
    assert len(told) < 300
    torch.save({text: torch.zeros(2)}, tmp_path / "own.pt")
    assert len(refused(Sources(own=tmp_path / "own.pt"), tmp_path, "came, but")) < 300


def test_a_mended_file_is_imported_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "PICTURES_A_PART", 1)
    path = write_features(tmp_path / "own.tsv", numbers(np.nan)())
    told = refused(Sources(own=path), tmp_path, "is nan")
    importing._begin_process(Sources(own=path), {}, "float16")  # as each of several processes does
    with pytest.raises(VlkdError) as caught:
        importing._write_block(tmp_path / "part", ["42", "7"])
    assert str(caught.value) == told and not (tmp_path / "part").exists()
    write_features(path, of_own())
    assert import_oscar(Sources(own=path), tmp_path / "data").store.keys == KEYS


def test_a_file_that_changed_after_a_stop_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed, so that nothing could be swept away; then mended: no part of the file before stays."""
    monkeypatch.setattr(importing, "PICTURES_A_PART", 1)
    original = importing.write_part

    def stops(part: Path, *arguments: Any) -> None:
        if part.name == "part-00002.arrow":
            raise KeyboardInterrupt
        original(part, *arguments)

    path = write_features(tmp_path / "own.tsv", numbers(5)())
    monkeypatch.setattr(importing, "write_part", stops)
    with pytest.raises(KeyboardInterrupt):
        import_oscar(Sources(own=path), tmp_path / "data")
    assert (tmp_path / "data" / ".store.unfinished" / "part-00001.arrow").exists()
    monkeypatch.setattr(importing, "write_part", original)
    write_features(path, numbers(6)())
    store = import_oscar(Sources(own=path), tmp_path / "data").store
    assert store.read(["7"], "own")[0].features[1, 3] == 6  # type: ignore[union-attr]
