"""CSV files of one's own: captions and questions by picture."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import only

from vlkd.data import Corpus, write_store
from vlkd.data.oscar import Sources, import_texts
from vlkd.data.oscar.texts import read_captions
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


BROKEN = {
    "picture,caption\na.png,a square, a star and a ring\nb.png,two cats\n": (
        r"line 2 has 3 cells \('a.png', 'a square', ' a star and a ring'\), but the header has 2 \(picture, caption\): put"
    ),
    "picture,caption\na.png,a cat\n\nb.png\n": r"line 4 has 1 cell \('b.png'\), but the header has 2",
    'picture,caption\na.png,"a sign\nb.png,two cats\nc.png,a big" tree\nd.png,a ball\n': (
        r"line 2: the quote that opens before 'a sign' is closed, 2 lines further down, before 'tree'"
    ),
    'picture,caption\na.png,x\nb.png,"a sign\nc.png,two cats\n': r"line 3: the quote .* before 'a sign' is never closed",
    'picture,caption\na.png,"a sign\nb.png,two cats"\nc.png,x\n': r"line 2: .* takes in line 3, which looks like a row",
    'picture,caption\na.png,x\nb.png,"a\nsign",",\n': r"line 4: the quote that opens before ',' is never closed",
    'picture,caption\na.png,"a \\"big\\" tree"\n': r"line 2: the quote that opens before .* before 'big",
    "photo,caption\na,b\n": "has the columns photo, caption, but one called picture or image or file",
    "a.png,a dog\nb.png,a cat\n": "has the columns a.png, a_dog, but one called picture",
    "": r"has the columns \(none\)",
    "\n\n": r"has the columns \(none\)",
    "picture,caption\na,b\nc,\n": "line 3: the cell of 'caption' is empty",
    "picture,caption\na,b\n  ,c\n": "line 3: the cell of 'picture' is empty",
    "picture,caption\na,b\0\n": "line 2 has a NUL",
    "picture,caption,text\na,b,c\n": "the columns 'caption' and 'text', each of which may be the caption: rename",
    "picture,image,caption\na,b,c\n": "the columns 'picture' and 'image', each of which may be the picture: rename",
    "picture,picture,caption\na,b,c\n": "the columns 'picture' and 'picture', each of which",
    "picture,caption,\na,a square, a star\n": "line 2: ' a star' stands in a column that the header does not name",
    f"picture,caption\na,{'x ' * 6000}\n": "line 2 has 11,999 characters",
    f"picture,caption\n{'x' * 2000},a\n": "line 2 has a name of 2,000 characters",
}


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_table_says_where(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(VlkdError, match=BROKEN[text]) as caught:
        read_captions(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value) and len(str(caught.value)) < 500
    with pytest.raises(VlkdError, match="There is no file"):
        read_caption_table(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("picture,question,answer\na.png,is it red, or blue ?,red\n", r"line 2 has 4 cells .*, but the header has 3"),
        ("picture,question,question,answer\na,b,c,d\n", "the columns 'question' and 'question', each of which"),
        ("picture,question_1,question_2,answer\na,b,c,d\n", "the columns 'question_1' and 'question_2', each of which"),
        ("picture,question,answer1,answer2\na,b,c,d\n", "the columns 'answer1' and 'answer2', each of which"),
        ("picture,question\na,b\n", "one called answer is expected"),
        ("picture,question,answer\na,b, \n", "line 2: the cell of 'answer' is empty"),
    ],
)
def test_a_broken_table_of_questions_says_where(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(VlkdError, match=sentence):
        read_question_table(written(tmp_path, text))


ROWS = {"a": ["a dog, running", "one dog"], "sub/é": ["two cats"]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_whatever_excel_writes_is_read(encoding: str, end: str, mark: str, tmp_path: Path) -> None:
    lines = [
        "File Name,id,Caption ",
        'a.jpg,1,"a dog, running"',
        ",,",
        "",
        "sub/é.PNG,2,two cats",
        "a.jpg,,one dog",
        "",
    ]
    quoted = [
        line.replace('"a dog, running"', "@").replace(",", mark).replace("@", '"a dog, running"') for line in lines
    ]
    path = tmp_path / "captions.CSV"
    path.write_bytes(end.join(quoted).encode(encoding))
    assert read_captions(path) == ROWS
    path.write_bytes((f"sep={mark}{end}" + end.join(quoted)).encode(encoding))
    assert read_captions(path) == ROWS


WORDS = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=20)
NAMES = st.text("abcé/ -_.0", min_size=1, max_size=8).map(lambda name: name.strip() + "x")


@given(
    rows=st.lists(st.tuples(NAMES, WORDS.filter(lambda text: text.strip() != "")), min_size=1, max_size=6),
    mark=st.sampled_from([",", ";", "\t", "|"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
@settings(max_examples=60, deadline=None)
def test_what_another_program_writes_comes_back(
    rows: list[tuple[str, str]], mark: str, end: str, quoting: Literal[0, 1], encoding: str, tmp_path_factory
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=mark, lineterminator=end, quoting=quoting).writerows([("picture", "caption"), *rows])
    path = tmp_path_factory.getbasetemp() / "written.csv"
    path.write_bytes(text.getvalue().encode(encoding))
    expected: dict[str, list[str]] = {}
    for name, caption in rows:
        expected.setdefault(picture_key(name), []).append(caption.strip())
    assert read_caption_table(path) == expected


def test_another_encoding_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_bytes("picture,caption\na,a dog\nb,a café\n".encode("latin-1"))
    with pytest.raises(VlkdError, match=r"line 3: byte 0xe9 is no UTF-8; .* save the file as UTF-8"):
        read_captions(path)
    path.write_bytes("picture,caption\na,a dog\n".encode("utf-16-le"))
    with pytest.raises(VlkdError, match=r"line 1 has a NUL: .* UTF-16 without its byte order mark"):
        read_captions(path)


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("picture,caption,caption\na.png,a man,a woman\n", ["a man", "a woman"]),
        ("picture,caption_1,Caption 2,caption3\na.png,a man,,a woman\n", ["a man", "a woman"]),
        ('picture,caption\na.png, "a man, a woman" \n', ["a man, a woman"]),
        (",picture,caption\n0,a.png,a man\n1,a.png,a woman\n", ["a man", "a woman"]),
        ('picture,caption\na.png,"a ""big"" man"\n', ['a "big" man']),
        ('picture,caption\na.png,a 12" ruler\n', ['a 12" ruler']),
        ('picture,caption\na.png,"a man\nwith a hat\n"\n', ["a man with a hat"]),
        ("image_name| comment_number| comment\na.jpg| 0| a man\na.jpg| 1| a woman\n", ["a man", "a woman"]),
    ],
)
def test_every_caption_of_a_row_is_read(text: str, captions: list[str], tmp_path: Path) -> None:
    assert read_caption_table(written(tmp_path, text)) == {"a": captions}


@pytest.mark.parametrize("name", ["captions.txt", "captions.tsv", "captions.TSV", "captions.Csv"])
def test_a_table_is_known_by_its_suffix_and_header(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("image\tcaption\na.jpg\ta man\n")
    assert read_captions(tmp_path / name) == {"a": ["a man"]}


def test_texts_of_another_split_join_a_store(records, tmp_path: Path) -> None:
    store = write_store(tmp_path / "data" / "store", [only(record, "own") for record in records])
    table = written(tmp_path, "picture,caption\ntest-000001.png,a star\n")
    import_texts(Sources(captions=table), tmp_path / "data", store, split="dev")
    assert Corpus.load(tmp_path / "data" / "dev.json").references() == {"test-000001": ["a star"]}
    coco = tmp_path / "coco.json"
    images = [{"id": 7, "file_name": "test-000002.jpg"}]
    coco.write_text(json.dumps({"images": images, "annotations": [{"image_id": 7, "id": 1, "caption": "a ring"}]}))
    corpus = import_texts(Sources(captions=coco), tmp_path / "data", store, split="dev")
    assert corpus.references() == {"test-000001": ["a star"], "test-000002": ["a ring"]}
    with pytest.raises(VlkdError, match="no features for 1 of 1 pictures with texts, the first 'nobody'"):
        import_texts(Sources(captions=written(tmp_path, "key,text\nnobody,x\n")), tmp_path, store, split="dev")
    with pytest.raises(VlkdError, match="answers, but no questions"):
        import_texts(Sources(annotations=coco), tmp_path, store, split="dev")
