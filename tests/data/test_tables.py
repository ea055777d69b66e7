"""CSV files of one's own: captions and questions by picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_store import only

from vlkd.data import Corpus, write_store
from vlkd.data.oscar import Sources, import_texts
from vlkd.data.tables import picture_key, read_caption_table, read_question_table
from vlkd.errors import VlkdError


def written(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_captions_by_picture(tmp_path: Path) -> None:
    table = written(tmp_path, 'Image , caption\na.jpg,"a dog, running"\nsub\\b.PNG,two cats\na.jpg,one dog\n')
    assert read_caption_table(table) == {"a": ["a dog, running", "one dog"], "sub/b": ["two cats"]}


def test_questions_by_picture(tmp_path: Path) -> None:
    table = written(tmp_path, "picture,question,answer\na,is it red ?,Yes\n")
    ((question,),) = read_question_table(table).values()
    assert (question.text, question.answer, question.id) == ("is it red ?", "yes", 2)


@pytest.mark.parametrize(
    ("name", "key"), [("a.jpg", "a"), ("./x/a.b.jpeg", "x/a.b"), ("v1.5", "v1.5"), ("x\\y.webp", "x/y"), ("42", "42")]
)
def test_a_key_is_a_path_without_the_suffix_of_a_picture(name: str, key: str) -> None:
    assert picture_key(name) == key


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("photo,caption\na,b\n", "has the columns photo, caption, but one called picture or image or file"),
        ("", r"has the columns \(none\)"),
        ("picture,caption\na,b\nc,\n", "line 3: the cell of 'caption' is empty"),
    ],
)
def test_a_broken_table_says_where(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(VlkdError, match=sentence):
        read_caption_table(written(tmp_path, text))
    with pytest.raises(VlkdError, match="There is no file"):
        read_caption_table(tmp_path / "nowhere.csv")


def test_texts_of_another_split_join_a_store(records, tmp_path: Path) -> None:
    store = write_store(tmp_path / "data" / "store", [only(record, "own") for record in records])
    table = written(tmp_path, "picture,caption\ntest-000001.png,a star\n")
    import_texts(Sources(captions=table), tmp_path / "data", store, split="dev")
    assert Corpus.load(tmp_path / "data" / "dev.json").references() == {"test-000001": ["a star"]}
    coco = tmp_path / "coco.json"
    images = [{"id": 7, "file_name": "test-000002.jpg"}]
    coco.write_text(json.dumps({"images": images, "annotations": [{"image_id": 7, "id": 1, "caption": "a ring"}]}))
    corpus = import_texts(Sources(captions=coco), tmp_path / "data", store, split="dev")
    assert corpus.references() == {"test-000002": ["a ring"]}
    with pytest.raises(VlkdError, match="no features for 1 of 1 pictures with texts, the first 'nobody'"):
        import_texts(Sources(captions=written(tmp_path, "key,text\nnobody,x\n")), tmp_path, store, split="dev")
    with pytest.raises(VlkdError, match="answers, but no questions"):
        import_texts(Sources(annotations=coco), tmp_path, store, split="dev")
