"""Files of Oscar and VinVL become a store and a corpus, or are refused with file, line and key."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from oscar_files import ANSWERS, CAPTIONS, KEYS, SIZES, boxes, features, write_all, write_features

import vlkd.data.oscar.importing
from vlkd.data import AnswerVocabulary, Corpus
from vlkd.data.oscar import Sources, import_oscar
from vlkd.data.oscar.pictures import Pictures
from vlkd.data.oscar.plain_pickle import read_plain_pickle
from vlkd.data.oscar.texts import read_captions
from vlkd.errors import VlkdError
from vlkd.regions.paired import RegionRecord, geometry

FORMS = ("captioning", "pre-training", "extractor", "tensors")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_numbers(form: str, tmp_path: Path) -> None:
    sources = write_all(tmp_path, form)
    store = import_oscar(sources, tmp_path / "data", dtype="float32").store
    assert store.keys == KEYS and store.views == ("paired", "own")
    assert (store.student_dim, store.teacher_dim, store.max_regions) == (11, 13, 5)
    for key, paired, own in zip(KEYS, store.read(KEYS, "paired"), store.read(KEYS, "own"), strict=True):
        np.testing.assert_allclose(paired.student_features, features(key, 0, 5), rtol=0, atol=1e-6)
        np.testing.assert_allclose(paired.teacher_features, features(key, 1, 7), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(own.features[:, :7], features(key, 2, 7)[:, :7])
        assert len(paired.tags) == 3 + KEYS.index(key)
        if form == "extractor":  # which knows the picture's size
            assert (paired.width, paired.height) == SIZES[key]
            np.testing.assert_allclose(paired.boxes, boxes(key), rtol=1e-5)
        else:  # boxes are parts of the picture
            assert (paired.width, paired.height) == (1, 1)
            np.testing.assert_allclose(paired.boxes, features(key, 0, 5)[:, -6:-2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes_are_read_when_they_are_named(dtype: str, tmp_path: Path) -> None:
    path = write_features(tmp_path / "a.tsv", {key: features(key, 2, 7) for key in KEYS}, "pre-training", dtype)
    with pytest.raises(
        VlkdError, match=rf"line 1, key '42': .* but they are 13 of {dtype}: say so with --stored-as {dtype}"
    ):
        import_oscar(Sources(own=path), tmp_path / "data")
    store = import_oscar(Sources(own=path, stored_as=dtype), tmp_path / "other", dtype="float32").store
    expected = features("42", 2, 7).astype(dtype)
    np.testing.assert_array_equal(store.read(["42"], "own")[0].features[:, :7], expected[:, :7].astype(np.float32))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_an_import_takes_no_more_memory_for_more_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """400 pictures of 130 KB and twice that as text: between the 40th and the last, nothing gathers."""
    kept: list[int] = []

    def watched(pictures: Pictures, key: str) -> RegionRecord:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        kept.append(1024 * int(line.split()[1]))
        return record(pictures, key)

    record = Pictures.record
    monkeypatch.setattr(Pictures, "record", watched)
    corners = np.array([[0, 0, 10, 10]] * 32, np.float32)
    rows = np.concatenate([np.ones((32, 1018), np.float32), geometry(corners, 64, 64)], axis=1)
    paths = [tmp_path / f"{name}.tsv" for name in ("student", "teacher")]
    for path in paths:
        write_features(path, {str(number): rows for number in range(400)}, "pre-training")
    assert sum(path.stat().st_size for path in paths) > 130_000_000
    import_oscar(Sources(student=paths[0], teacher=paths[1]), tmp_path / "data")
    assert len(kept) == 400 and max(kept[40:]) - kept[40] < 10_000_000


def test_a_size_that_one_file_knows_holds_for_all(tmp_path: Path) -> None:
    sources = write_all(tmp_path)
    assert sources.tags is not None
    sizes = {key: {"image_w": width, "image_h": height} for key, (width, height) in SIZES.items()}
    rows = (f"{key}\t{json.dumps({'objects': [{'class': 'dog'}], **sizes[key]})}\n" for key in KEYS)
    sources.tags.write_text("".join(rows))
    store = import_oscar(sources, tmp_path / "data", dtype="float32").store
    for key, paired, own in zip(KEYS, store.read(KEYS, "paired"), store.read(KEYS, "own"), strict=True):
        assert (paired.width, paired.height) == (own.width, own.height) == SIZES[key]
        np.testing.assert_allclose(paired.boxes, boxes(key), rtol=1e-5)
        np.testing.assert_allclose(own.boxes, boxes(key, 5), rtol=1e-5)


def test_rows_are_matched_by_key_and_not_by_order(tmp_path: Path) -> None:
    sources = write_all(tmp_path)
    assert sources.teacher is not None
    write_features(sources.teacher, {key: features(key, 1, 7) for key in reversed(KEYS)})
    store = import_oscar(sources, tmp_path / "data", dtype="float32").store
    for key, paired in zip(KEYS, store.read(KEYS, "paired"), strict=True):
        np.testing.assert_array_equal(paired.teacher_features[:, :7], features(key, 1, 7)[:, :7])


def test_texts_and_answers(tmp_path: Path) -> None:
    imported = import_oscar(write_all(tmp_path), tmp_path / "data", split="train")
    corpus, answers = (
        Corpus.load(tmp_path / "data" / "train.json"),
        AnswerVocabulary.load(tmp_path / "data" / "answers.json"),
    )
    assert corpus == imported.corpus and answers.answers == tuple(ANSWERS)
    assert corpus.references() == CAPTIONS
    (question,) = corpus.questions[corpus.keys.index("42")]
    assert (question.answer, question.scores, question.id) == ("red", (("yes", 0.3), ("red", 1.0)), 420)
    np.testing.assert_array_equal(answers.target(question), np.array([0.3, 0, 1], np.float32))
    (unanswered,) = corpus.questions[corpus.keys.index("7")]
    assert not answers.target(unanswered).any()


def test_tags_beside_questions_serve_where_there_are_no_others(tmp_path: Path) -> None:
    sources = replace(write_all(tmp_path), tags=None, own_tags=None)
    store = import_oscar(sources, tmp_path / "data").store
    assert store.tags(KEYS, "paired") == [("dog", "tall tree"), ("cat",), ()]


def test_an_oscar_yaml_names_the_files(tmp_path: Path) -> None:
    sources = write_all(tmp_path)
    text = "label: own.label.tsv\nfeature: own.feature.tsv\ncaption: train_caption.json\n"
    (tmp_path / "train.yaml").write_text(text)
    imported = import_oscar(Sources(own=tmp_path / "train.yaml"), tmp_path / "data")
    assert imported.store.views == ("own",) and imported.corpus is not None
    assert imported.corpus.references() == CAPTIONS
    assert imported.store.tags(["42"], "own") == [("tag0", "tag1", "tag2")]
    with pytest.raises(VlkdError, match="--student is given without --teacher"):
        import_oscar(replace(sources, teacher=None), tmp_path / "other")
    with pytest.raises(VlkdError, match="--tags is given without --student, to whose features it belongs"):
        import_oscar(replace(sources, student=None, teacher=None), tmp_path / "other")
    with pytest.raises(VlkdError, match="--own-classes is given without --own,"):
        import_oscar(replace(sources, own=None, own_tags=None, own_classes=tmp_path / "a"), tmp_path / "other")
    with pytest.raises(VlkdError, match="There are no features"):
        import_oscar(Sources(), tmp_path / "other")
    with pytest.raises(VlkdError, match="has numbers for answers: give --answers too"):
        import_oscar(replace(sources, answers=None), tmp_path / "other")


def test_other_files_of_captions(tmp_path: Path) -> None:
    rows = [{"image_id": 42, "id": 1, "caption": "a dog"}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": [{"id": 42}], "annotations": rows}))
    (tmp_path / "corpus.tsv").write_text("42\t1\ta dog\n")
    assert read_captions(tmp_path / "coco.json") == read_captions(tmp_path / "corpus.tsv") == {"42": ["a dog"]}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_stopped_import_goes_on_with_the_parts_that_are_missing(jobs: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(vlkd.data.oscar.importing, "PICTURES_A_PART", 1)
    sources = write_all(tmp_path)
    whole = import_oscar(sources, tmp_path / "whole").store
    original = vlkd.data.oscar.importing.write_part

    def stops(path: Path, *arguments) -> None:
        if path.name == "part-00001.arrow":
            raise KeyboardInterrupt
        original(path, *arguments)

    monkeypatch.setattr(vlkd.data.oscar.importing, "write_part", stops)
    with pytest.raises(KeyboardInterrupt):
        import_oscar(sources, tmp_path / "data")
    unfinished = tmp_path / "data" / ".store.unfinished"
    first = (unfinished / "part-00000.arrow").stat().st_mtime_ns
    assert not (tmp_path / "data" / "store").exists()
    with pytest.raises(VlkdError, match="unfinished import of other files"):
        import_oscar(replace(sources, own=None, own_tags=None), tmp_path / "data")
    monkeypatch.setattr(vlkd.data.oscar.importing, "write_part", original)
    store = import_oscar(sources, tmp_path / "data", jobs=jobs).store
    assert (store.folder / "part-00000.arrow").stat().st_mtime_ns == first
    assert store.keys == whole.keys and not unfinished.exists()
    for part in ("part-00000.arrow", "part-00001.arrow", "part-00002.arrow"):
        assert (store.folder / part).read_bytes() == (whole.folder / part).read_bytes()
    with pytest.raises(VlkdError, match="exists already"):
        import_oscar(sources, tmp_path / "data")


class Boom:
    def __reduce__(self) -> tuple:
        return (pytest.fail, ("a pickle was executed",))


def test_no_pickle_is_executed(tmp_path: Path) -> None:
    path = tmp_path / "trainval_ans2label.pkl"
    path.write_bytes(pickle.dumps({"yes": Boom()}))
    with pytest.raises(VlkdError, match="no pickle of plain values"):
        read_plain_pickle(path)
    torch.save({"42": Boom()}, tmp_path / "features.pt")
    with pytest.raises(VlkdError, match="no tensors that can be loaded without running code"):
        import_oscar(Sources(own=tmp_path / "features.pt"), tmp_path / "data")
    path.write_bytes(pickle.dumps({"yes": 0, "no": [1, 2.5, None]}))
    assert read_plain_pickle(path) == {"yes": 0, "no": [1, 2.5, None]}


def test_labels_that_are_not_those_of_the_answers(tmp_path: Path) -> None:
    sources = write_all(tmp_path)
    assert sources.questions is not None and sources.answers is not None
    rows = json.loads(sources.questions.read_text())
    sources.questions.write_text(json.dumps([rows[0] | {"an": [0, 3]}]))
    with pytest.raises(VlkdError, match=r"Labels \[0, 3\] .* in row 0 .* labels from 0 to 2, are expected"):
        import_oscar(sources, tmp_path / "data")
    sources.answers.write_bytes(pickle.dumps({"yes": 0, "no": 2}))
    with pytest.raises(VlkdError, match="must map every answer to its label"):
        import_oscar(sources, tmp_path / "data")
