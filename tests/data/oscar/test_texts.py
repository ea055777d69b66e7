"""Captions, questions and answers as files have them: read, or one sentence that names file and row."""

from __future__ import annotations

import gzip
import json
import pickle
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from oscar_files import KEYS, write_all

from vlkd.data.json_rows import read_json
from vlkd.data.oscar import Sources, import_oscar, validate
from vlkd.data.oscar.corpora import matched, matched_tags, read_texts
from vlkd.data.oscar.texts import file_names, read_answers, read_captions, read_questions
from vlkd.data.oscar.validate import _tags
from vlkd.data.splitting import hold_out
from vlkd.errors import VlkdError

ANSWERS = ["yes", "two", "red"]
QUESTION = {"q": "what ?", "o": "dog ; cat", "an": [0, 2], "s": [0.3, 1], "img_id": 42, "q_id": 420}


def written(folder: Path, content: Any, name: str = "file.json") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def refused(read: Callable[[Path], Any], path: Path, sentence: str) -> None:
    with pytest.raises(VlkdError, match=sentence) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


CAPTION_ROWS = [
    ({"caption": None}, "Expected 'caption' to be str in row 1 .*, but got NoneType None"),
    ({"caption": 3}, "Expected 'caption' to be str in row 1 .*, but got int 3"),
    ({"caption": ["a", "b"]}, r"but got list \['a', 'b'\]"),
    ({"caption": ""}, "The 'caption' in row 1 .* is empty"),
    ({"caption": " \n "}, "The 'caption' in row 1 .* is empty"),
    ({"caption": "\u200b\t"}, "The 'caption' in row 1 .* is empty"),
    ({"caption": "x" * 20_000}, "The 'caption' in row 1 .* has 20,000 characters"),
    ({"caption": "a \ud800"}, "The 'caption' in row 1 .* half of a character"),
    ({"image_id": None}, "Expected 'image_id' to be int or str in row 1 .*, but got NoneType None"),
    ({"image_id": 3.0}, "but got float 3.0"),
    ({"image_id": True}, "but got bool True"),
    ({"image_id": [3]}, r"but got list \[3\]"),
    ({"image_id": " "}, "The picture in row 1 .* has no name"),
    ({"image_id": "A" * 106_000}, "The picture in row 1 .* has a name of 106,000 characters"),
]


@pytest.mark.parametrize(("change", "sentence"), CAPTION_ROWS, ids=range(len(CAPTION_ROWS)))
def test_a_caption_that_is_none_is_named(change: dict, sentence: str, tmp_path: Path) -> None:
    good = {"image_id": 42, "id": 1, "caption": "a dog"}
    for content in ([good, good | change], {"annotations": [good, good | change]}):
        refused(read_captions, written(tmp_path, content), sentence)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([], "holds no caption, but at least one is expected"),
        ({"annotations": []}, "holds no caption"),
        ({}, "to hold a JSON object with a list 'annotations', but got an object with"),
        ("text", "Expected .* to be a JSON list of objects, but got str 'text'"),
        ([{"image_id": 1, "caption": "a"}, None], "Expected an object in row 1"),
        ([[1, "a"]], "Expected an object in row 0"),
        ([{"image": 1, "caption": "a"}], "Expected the key 'image_id' in row 0"),
        (b'[{"image_id": 1, "caption": "a", "caption": "b"}]', "an object with the key 'caption' twice"),
        (b"[" * 100_000, "is no captions file: expected JSON"),
        (b"", "is no captions file: expected JSON"),
        (b'[{"image_id": 1, "caption": "caf\xe9"}]', "line 1: byte 0xe9 is no UTF-8"),
    ],
)
def test_a_file_that_is_none_of_captions_is_named(content: Any, sentence: str, tmp_path: Path) -> None:
    refused(read_captions, written(tmp_path, content), sentence)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_is_read_in_every_encoding_that_says_which_it_is(encoding: str, tmp_path: Path) -> None:
    text = json.dumps([{"image_id": "3", "caption": "a café"}, {"image_id": 3, "caption": "a bar"}], ensure_ascii=False)
    assert read_captions(written(tmp_path, text.encode(encoding), "x.JSON")) == {"3": ["a café", "a bar"]}
    assert read_json(written(tmp_path, b"[1]"), "numbers") == [1]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"42\t1\ta dog\n7\tcaf\xe9\ta cat\n", "line 2 is no UTF-8"),
        (b"42\t1\ta dog\n7\ta cat\n", "line 2: 2 columns, but image id, label id and text"),
        (b"42\t1\ta dog\n7\t1\ta cat\tand more\n", "line 2: 4 columns"),
        (b"42\t1\ta dog\n7\t1\t \n", "The text in .*line 2 is empty"),
        (b"42\t1\ta dog\n\t1\ta cat\n", "The picture in .*line 2 has no name"),
    ],
)
def test_a_corpus_that_is_none_is_named(content: bytes, sentence: str, tmp_path: Path) -> None:
    refused(read_captions, written(tmp_path, content, "corpus.tsv"), sentence)
    assert read_captions(written(tmp_path, b"\xef\xbb\xbf42\t1\ta dog\n\n", "fine.tsv")) == {"42": ["a dog"]}


QUESTION_ROWS = [
    ({"q": None}, "Expected 'q' to be str in row 1 .*, but got NoneType None"),
    ({"q": "  "}, "The 'q' in row 1 .* is empty"),
    ({"o": ["dog"]}, r"Expected 'o' to be str or NoneType in row 1 .*, but got list \['dog'\]"),
    ({"type": 3}, "Expected 'type' to be str in row 1"),
    ({"an": [0, True]}, r"Labels \[0, True\] .* in row 1"),
    ({"an": [0, 1.0]}, r"Labels \[0, 1.0\] .* in row 1"),
    ({"an": [0, "1"]}, r"Labels \[0, '1'\] .* in row 1"),
    ({"an": [0, -1]}, r"Labels \[0, -1\] .* in row 1"),
    ({"an": [0]}, r"Labels \[0\] with scores \[0.3, 1\] in row 1"),
    ({"an": [0, 0]}, r"Labels \[0, 0\] in row 1 .* each may come once"),
    ({"s": [0.3, float("nan")]}, "A score of nan in row 1 .* a number from 0 to 1 is expected"),
    ({"s": [0.3, float("inf")]}, "A score of inf in row 1"),
    ({"s": [0.3, 5]}, "A score of 5 in row 1"),
    ({"s": [0.3, -1]}, "A score of -1 in row 1"),
    ({"s": [0.3, True]}, "A score of True in row 1"),
    ({"s": [0.3, "1"]}, "A score of '1' in row 1"),
    ({"s": [0.3, None]}, "A score of None in row 1"),
    ({"img_id": None}, "Expected 'img_id' to be int or str in row 1"),
    ({"q_id": 1.5}, "Expected 'q_id' to be int or str in row 1"),
    ({"q_id": "x"}, "Expected 'q_id' to be a whole number in row 1"),
    ({"q_id": 420}, "The q_id 420 comes a second time in row 1"),
    ({"q_id": "420"}, "The q_id 420 comes a second time in row 1"),
]


@pytest.mark.parametrize(("change", "sentence"), QUESTION_ROWS, ids=range(len(QUESTION_ROWS)))
def test_a_question_that_is_none_is_named(change: dict, sentence: str, tmp_path: Path) -> None:
    path = written(tmp_path, [QUESTION, QUESTION | {"q_id": 421} | change])
    refused(lambda path: read_questions(path, ANSWERS), path, sentence)


def test_no_labels_are_no_answer_and_an_empty_list_among_others_is_a_wrong_one(tmp_path: Path) -> None:
    def answered(*rows: dict) -> list[bool]:
        numbered = [QUESTION | {"q_id": number} | row for number, row in enumerate(rows)]
        (questions,) = read_questions(written(tmp_path, numbered), ANSWERS)[0].values()
        assert all(question.answer == "" for question, row in zip(questions, rows, strict=True) if not row.get("an", 1))
        return [question.answered for question in questions]

    empty, null = {"an": [], "s": []}, {"an": None, "s": None}
    assert answered({}, empty, null) == [True, True, False]
    assert answered(empty, empty, null) == [False, False, False]  # a test split


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "holds no answer"),
        (["yes"], "must map every answer to its label"),
        ({"yes": 0, "no": 0}, "must map every answer to its label"),
        ({"yes": True, "no": 0}, "must map every answer to its label"),
        ({"yes": 0, " ": 1}, "has ' ' for an answer, but text is expected"),
        (b'{"yes": 0, "yes": 1}', "an object with the key 'yes' twice"),
    ],
)
def test_answers_that_are_none_are_named(content: Any, sentence: str, tmp_path: Path) -> None:
    refused(read_answers, written(tmp_path, content), sentence)


def test_a_pickle_is_known_by_its_suffix_in_any_case(tmp_path: Path) -> None:
    assert read_answers(written(tmp_path, pickle.dumps({"no": 1, "yes": 0}), "a.PKL")) == ["yes", "no"]
    refused(read_answers, written(tmp_path, pickle.dumps({1: 0}), "b.pkl"), "has 1 for an answer")


def test_images_that_are_none_are_named(tmp_path: Path) -> None:
    good = {"id": 1, "file_name": "a.jpg"}
    for images, sentence in (
        (None, "to be a JSON list of objects, but got NoneType None"),
        ([good, 3], "Expected an object in row 1"),
        ([good, {"id": 2, "file_name": None}], "Expected 'file_name' to be int or str in row 1"),
        ([good, good], "The image id '1' comes a second time in row 1"),
    ):
        refused(file_names, written(tmp_path, {"images": images, "annotations": []}), sentence)
    assert file_names(written(tmp_path, {"images": [good, {"id": 3}], "annotations": []})) == {"1": "a"}


@pytest.mark.parametrize("ours", ["NFC", "NFD"])
@pytest.mark.parametrize("theirs", ["NFC", "NFD"])
def test_names_meet_however_their_accents_are_written(
    ours: Literal["NFC", "NFD"], theirs: Literal["NFC", "NFD"], tmp_path: Path
) -> None:
    name, other = (unicodedata.normalize(form, "été") for form in (ours, theirs))
    captions = written(tmp_path, f"picture,caption\n{name}.png,summer\n".encode(), "captions.csv")
    questions = written(tmp_path, f"picture,question,answer\n{other},what ?,summer\n".encode(), "questions.csv")
    corpus, _, _ = read_texts(Sources(captions=captions, questions=questions), "train")
    assert corpus is not None
    found = matched(corpus, ["a", other], Sources(captions=captions))
    assert found.keys == (other,) and found.captions == (("summer",),) and len(found.questions[0]) == 1


def test_texts_are_validated_by_what_imports_them(tmp_path: Path) -> None:
    captions = written(tmp_path, b"picture,caption\na.png,a square, a star\n", "captions.csv")
    questions = written(tmp_path, [QUESTION | {"s": [5, 1]}], "questions.json")
    answers = written(tmp_path, {answer: label for label, answer in enumerate(ANSWERS)}, "answers.json")
    found = list(validate(Sources(captions=captions, questions=questions, answers=answers)))
    assert [finding.fatal for finding in found] == [True, True]
    assert "line 2 has 3 cells" in found[0].problem and "A score of 5 in row 0" in found[1].problem
    captions.write_text('picture,caption\na.png,"a square, a star"\n')
    assert list(validate(Sources(captions=captions))) == []
    (lost,) = validate(Sources(captions=captions), ["b", "c"])
    assert lost.fatal and "no features for 1 of 1 pictures with texts, the first 'a'" in lost.problem
    (silent,) = validate(Sources(captions=captions), ["a", "b", "c"])
    assert not silent.fatal and "no texts of 'b', 'c' of 3 pictures" in silent.problem


def test_validation_knows_the_tags_beside_questions(tmp_path: Path) -> None:
    """An import takes them, so their lack is none."""
    sources = replace(write_all(tmp_path), tags=None, own_tags=None)
    assert [finding.problem for finding in validate(sources) if finding.fatal] == []
    assert _tags(sources, "train", KEYS)["42"] == ("dog", "tall tree")


def test_what_would_undo_a_split_is_found_and_refused_before_features_are_read(tmp_path: Path) -> None:
    sources = write_all(tmp_path)
    (tmp_path / "data").mkdir()
    corpus, _, _ = read_texts(sources, "train")
    assert corpus is not None
    corpus.save(tmp_path / "data" / "train.json")
    hold_out(tmp_path / "data", "test", 0.34)
    (found,) = (finding for finding in validate(sources, folder=tmp_path / "data") if finding.fatal)
    assert "was held out of training" in found.problem
    with pytest.raises(VlkdError, match="was held out of training"):
        import_oscar(sources, tmp_path / "data")
    assert not (tmp_path / "data" / ".store.unfinished").exists()


@pytest.mark.parametrize(
    ("image_id", "picture"),
    [
        ("a.jpg", "a"),
        ("x\\a.PNG", "x/a"),
        (7, "COCO_val2014_000000000007"),
        ("7", "7"),
        ("v1.5", "v1.5"),
        ("a.jpg", "a.jpg"),
        ("a", "a.jpg"),
        (7, "7.png"),
    ],
)
def test_an_image_id_finds_its_picture(image_id: object, picture: str, tmp_path: Path) -> None:
    sources = Sources(captions=written(tmp_path, [{"image_id": image_id, "caption": "a star"}]))
    corpus, _, _ = read_texts(sources, "train")
    assert corpus is not None and matched(corpus, ["other", picture], sources).keys == (picture,)


def coco(folder: Path, files: dict[int, str]) -> Path:
    """COCO's captions, each of which says which file it is of."""
    images = [{"id": number, "file_name": file} for number, file in files.items()]
    rows = [{"image_id": number, "id": number, "caption": f"of {file}"} for number, file in files.items()]
    return written(folder, {"images": images, "annotations": rows}, "coco.json")


def test_an_id_that_is_another_pictures_key_means_the_file_that_it_names(tmp_path: Path) -> None:
    captions = coco(tmp_path, {1: "1.jpg", 2: "10.jpg", 3: "2.jpg"})
    asked = {"questions": [{"question_id": 5, "image_id": 2, "question": "what ?"}]}
    sources = Sources(captions=captions, questions=written(tmp_path, asked, "questions.json"))
    corpus, _, _ = read_texts(sources, "train")
    assert corpus is not None
    found = matched(corpus, ["1", "2", "3", "10"], sources)
    assert dict(zip(found.keys, found.captions, strict=True)) == {
        "1": ("of 1.jpg",),
        "10": ("of 10.jpg",),
        "2": ("of 2.jpg",),
    }
    assert [len(of) for of in found.questions] == [0, 1, 0]
    with pytest.raises(VlkdError, match="no features for 1 of 3 pictures with texts, the first '10'"):
        matched(corpus, ["1", "2", "3"], sources)


def test_captions_and_questions_may_name_pictures_differently(tmp_path: Path) -> None:
    questions = written(tmp_path, b"picture,question,answer\n1.png,what ?,dog\n", "questions.csv")
    sources = Sources(captions=coco(tmp_path, {1: "b.png"}), questions=questions)
    corpus, _, _ = read_texts(sources, "train")
    assert corpus is not None
    found = matched(corpus, ["1", "b"], sources)
    assert found.keys == ("b", "1") and found.captions == (("of b.png",), ())
    assert [len(of) for of in found.questions] == [0, 1]


def test_tags_beside_questions_go_where_the_questions_go(tmp_path: Path) -> None:
    sources = Sources(
        questions=written(tmp_path, [QUESTION]), answers=written(tmp_path, {"yes": 0, "two": 1, "red": 2}, "a.json")
    )
    corpus, _, tags = read_texts(sources, "train")
    assert matched_tags(tags, corpus, ["COCO_train2014_000000000042", "7"], sources) == {
        "COCO_train2014_000000000042": ("dog", "cat")
    }


@pytest.mark.parametrize("name", ["captions.csv", "captions.csv.gz", "captions.json", "captions.xlsx"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (gzip.compress(b"picture,caption\na,x\n"), "is compressed, .*: `gunzip -k` it first"),
        (b"PK\x03\x04" + bytes(20), r"is compressed, .* \(a spreadsheet: save it as CSV\)"),
        (pickle.dumps({"a": "x"}), "is a pickle, and no pickle is ever loaded"),
    ],
    ids=["gzip", "zip", "pickle"],
)
def test_texts_that_are_no_text_are_called_what_they_are(
    name: str, content: bytes, sentence: str, tmp_path: Path
) -> None:
    refused(read_captions, written(tmp_path, content, name), sentence)


@pytest.mark.parametrize("name", ["captions.csv", "captions.json"])
def test_a_folder_in_the_place_of_texts_is_called_one(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    refused(read_captions, tmp_path / name, "is a folder, but a file is expected")


@pytest.mark.parametrize("option", ["tags", "own_tags", "classes", "own_classes"])
def test_files_beside_texts_are_never_passed_over(option: str, tmp_path: Path) -> None:
    sources = Sources(captions=written(tmp_path, [{"image_id": 1, "caption": "a star"}]), **{option: tmp_path / "none"})
    with pytest.raises(VlkdError, match=f"--{option.replace('_', '-')} is given without"):
        list(validate(sources))
