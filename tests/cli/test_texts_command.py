"""`vlkd data texts`, `split` and `validate` on CSVs, and `vlkd run` and `score` on what they leave, as a newcomer types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from oscar_files import KEYS, features, write_features
from typer.testing import CliRunner

from vlkd.cli import app
from vlkd.data import Corpus
from vlkd.errors import VlkdError

pytestmark = pytest.mark.slow


def vlkd(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.output


@pytest.fixture
def data(tmp_path: Path) -> Path:
    own = write_features(tmp_path / "own.tsv", {key: features(key, 2, 7) for key in KEYS})
    vlkd("data", "import", tmp_path / "data", "--own", own)
    return tmp_path / "data"


def table(folder: Path, *lines: str) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_texts_are_checked_added_and_counted(data: Path, tmp_path: Path) -> None:
    captions = table(tmp_path, "picture,caption", "42.jpg,a dog, running", "7.jpg,two cats")
    told = vlkd("data", "validate", "--captions", captions, "--data", data, status=1)
    assert "line 2 has 3 cells" in told and "1 errors" in told
    with pytest.raises(VlkdError, match="line 2 has 3 cells"):
        vlkd("data", "texts", data, "--split", "train", "--captions", captions)
    assert not (data / "train.json").exists()
    captions = table(tmp_path, "picture,caption", '42.jpg,"a dog, running"', "7.jpg,two cats")
    told = vlkd("data", "validate", "--captions", captions, "--data", data)
    assert "no texts of '101' of 3 pictures" in told and "0 errors, 1 notes" in told
    told = vlkd("data", "texts", data, "--split", "train", "--captions", captions)
    assert (
        "Texts of 2 of the 3 pictures that have regions." in told
        and "2 captions and 0 questions about 2 pictures" in told
    )
    questions = table(tmp_path, "picture,question,answer", "42,what ?,dog", "101,what ?,tree")
    told = vlkd("data", "texts", data, "--split", "train", "--questions", questions)
    assert (
        "The captions of 2 pictures stay as they were." in told
        and "2 captions and 2 questions about 3 pictures" in told
    )


def test_columns_that_nothing_is_read_of_are_told(data: Path, tmp_path: Path) -> None:
    captions = table(tmp_path, "id,picture,caption,split", "1,42.jpg,a dog,train", "2,7.jpg,two cats,test")
    sentence = f"'{captions}': nothing is read of 'id' and 'split', and every row is taken whatever stands there."
    assert f"note: {sentence}" in vlkd("data", "validate", "--captions", captions, "--data", data)
    assert sentence in vlkd("data", "texts", data, "--split", "train", "--captions", captions)
    questions = table(tmp_path, "picture,question,answer,comment", "42.jpg,what ?,dog,x")
    told = vlkd("data", "validate", "--questions", questions)
    assert "nothing is read of 'comment'" in told and "0 errors, 1 notes" in told
    corpus = tmp_path / "corpus.tsv"
    corpus.write_text("42\t0\ta dog\n")
    assert "nothing is read" not in vlkd("data", "validate", "--captions", corpus)


def test_answers_outside_of_the_given_ones_are_told_before_an_import(tmp_path: Path) -> None:
    questions = table(tmp_path, "picture,question,answer", "42.jpg,what ?,dog", "7.jpg,what ?,cat")
    (tmp_path / "answers.json").write_text('{"cat": 0}')
    told = vlkd("data", "validate", "--questions", questions, "--answers", tmp_path / "answers.json")
    assert "1 of 2 questions have an answer that is none of the 1 in" in told and "0 errors, 1 notes" in told


def test_a_file_of_ones_own_among_the_splits_is_named_with_what_to_do(data: Path, tmp_path: Path) -> None:
    (data / "captions.json").write_text('[{"image_id": 42, "caption": "a dog"}]')
    with pytest.raises(VlkdError, match=r"captions\.json' is no corpus: .*put a file of your own into another folder"):
        vlkd("data", "texts", data, "--split", "train", "--captions", data / "captions.json")


def test_a_test_split_without_answers_is_left_out_of_a_run(data: Path, tmp_path: Path) -> None:
    answered = table(tmp_path, "picture,question,answer", *(f"{key},what ?,dog" for key in KEYS))
    vlkd("data", "texts", data, "--split", "train", "--questions", answered)
    asked = {"questions": [{"question_id": int(key), "image_id": int(key), "question": "what ?"} for key in KEYS]}
    (tmp_path / "questions.json").write_text(json.dumps(asked))
    told = vlkd("data", "texts", data, "--split", "test", "--questions", tmp_path / "questions.json")
    assert "3 of 3 questions have no answer: nothing is trained on them, and no accuracy counts them." in told
    assert Corpus.load(data / "test.json").unanswered() == 3
    with pytest.raises(VlkdError, match="share no task: give both captions, or both questions with answers"):
        vlkd("run", "quick", "--data", data, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_needs_two_test_pictures_of_each_task(data: Path, tmp_path: Path) -> None:
    """Told before anything is trained, not when the models are examined with another's picture."""
    answered = table(tmp_path, "picture,question,answer", *(f"{key},what ?,dog" for key in KEYS))
    vlkd("data", "texts", data, "--split", "train", "--questions", answered)
    captions = table(tmp_path, "picture,caption", *(f"{key},a dog" for key in KEYS))
    for split in ("train", "test"):
        vlkd("data", "texts", data, "--split", split, "--captions", captions)
    answered = table(tmp_path, "picture,question,answer", f"{KEYS[0]},what ?,dog")
    vlkd("data", "texts", data, "--split", "test", "--questions", answered)
    with pytest.raises(VlkdError, match=r"The test texts for vqa are about one picture, .* add texts of a second one"):
        vlkd("run", "quick", "--data", data, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_perfect_caption_of_one_picture_is_no_riddle(tmp_path: Path) -> None:
    for name, row in (("results", {}), ("references", {"id": 1})):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"image_id": 1, "caption": "a red star", **row}]))
    told = vlkd("score", "captions", tmp_path / "results.json", tmp_path / "references.json")
    assert "CIDEr of one picture is always 0, even for a perfect caption" in told and "BLEU-1   100.00" in told
