"""COCO's caption files, and their scores against those of COCO's own tools.

``fixtures/coco_expected.json`` holds what pycocoevalcap's COCOEvalCap, in the versions it names, made of the files
beside it.
"""

from __future__ import annotations

import json
import math
import stat
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlkd.errors import VlkdError
from vlkd.evaluation import JavaMetrics, caption_scores
from vlkd.evaluation.captioning import TOKENISATION
from vlkd.evaluation.coco import (
    PTB_TOKENISATION,
    evaluate_captions_file,
    read_captions,
    read_references,
    write_captions,
)
from vlkd.evaluation.java_metrics import why_not

FIXTURES = Path(__file__).parent / "fixtures"
RESULTS, ANNOTATIONS = FIXTURES / "coco_results.json", FIXTURES / "coco_annotations.json"
OFFICIAL = json.loads((FIXTURES / "coco_expected.json").read_text(encoding="utf-8"))

EQUAL = 1e-6
WITHOUT_JAVA = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")
needs_java = pytest.mark.skipif(why_not("METEOR") is not None, reason=str(why_not("METEOR")))


def written(folder: Path, content: object, name: str = "made_up.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def stand_in_java(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `java` whose sixth argument is the tokenizer's file."""
    program = folder / "java"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.fixture
def official_tokens(tmp_path, monkeypatch) -> None:
    """The official tokens of the fixture's captions, on a machine without Java too."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokens = {" ".join(raw.splitlines()): done for raw, done in OFFICIAL["tokens"]} | {"the last line": "the last line"}

    def tokenize(_: PTBTokenizer, captions: dict[Any, list[dict[str, str]]]) -> dict[Any, list[str]]:
        return {key: [tokens[row["caption"]] for row in rows] for key, rows in captions.items()}

    stand_in_java(tmp_path, "exit 3", monkeypatch)
    monkeypatch.setattr(PTBTokenizer, "tokenize", tokenize)


def assert_official(found, official: dict[str, Any], metrics: tuple[str, ...] = WITHOUT_JAVA) -> None:
    assert {name: found.scores[name] for name in metrics} == pytest.approx(
        {name: official["scores"][name] for name in metrics}, abs=EQUAL
    )
    assert found.cider_per_picture == pytest.approx(official["cider_per_picture"], abs=EQUAL)
    assert found.tokenisation == PTB_TOKENISATION


@needs_java
def test_scores_are_those_of_coco():
    assert_official(evaluate_captions_file(RESULTS, ANNOTATIONS), OFFICIAL["all"])


def test_scores_from_official_tokens_are_those_of_coco(official_tokens):
    found = evaluate_captions_file(RESULTS, ANNOTATIONS)
    assert_official(found, OFFICIAL["all"])
    assert "not asked for" in found.unavailable["METEOR"] and "not asked for" in found.unavailable["SPICE"]


def some_results(folder: Path) -> Path:
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    wanted = {int(key) for key in OFFICIAL["subset"]["cider_per_picture"]}
    return written(folder, [row for row in rows if row["image_id"] in wanted])


def test_a_subset_is_scored_as_coco_scores_it(official_tokens, tmp_path):
    """Document frequencies come from the images scored, as with COCOEvalCap's ``params["image_id"]``."""
    assert_official(evaluate_captions_file(some_results(tmp_path), ANNOTATIONS, subset=True), OFFICIAL["subset"])


@pytest.mark.slow
@needs_java
def test_meteor_is_that_of_coco(tmp_path):
    with JavaMetrics(["METEOR"]) as java:
        some = evaluate_captions_file(some_results(tmp_path), ANNOTATIONS, java, subset=True)
        every = evaluate_captions_file(RESULTS, ANNOTATIONS, java)  # one of them an empty caption
    assert_official(some, OFFICIAL["subset"], (*WITHOUT_JAVA, "METEOR"))
    assert_official(every, OFFICIAL["all"], (*WITHOUT_JAVA, "METEOR"))


@needs_java
def test_scores_are_those_of_the_installed_cocoevalcap(monkeypatch):
    import pycocoevalcap.eval as tools
    from pycocotools.coco import COCO

    class Silent:
        """In place of METEOR and SPICE."""

        def method(self) -> str:
            return "none"

        def compute_score(self, truth, guess):
            return 0.0, [0.0] * len(truth)

    monkeypatch.setattr(tools, "Meteor", Silent)
    monkeypatch.setattr(tools, "Spice", Silent)
    truth = COCO(str(ANNOTATIONS))
    official = tools.COCOEvalCap(truth, truth.loadRes(str(RESULTS)))
    official.evaluate()
    found = evaluate_captions_file(RESULTS, ANNOTATIONS)
    names = {"ROUGE-L": "ROUGE_L"} | {f"BLEU-{n}": f"Bleu_{n}" for n in (1, 2, 3, 4)}
    assert found.scores == pytest.approx(
        {name: official.eval[names.get(name, name)] for name in WITHOUT_JAVA}, abs=EQUAL
    )
    each = {str(image): values["CIDEr"] for image, values in official.imgToEval.items()}
    assert found.cider_per_picture == pytest.approx(each, abs=EQUAL)


def test_without_java_the_label_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = evaluate_captions_file(RESULTS, ANNOTATIONS)
    own = caption_scores(read_references(ANNOTATIONS), read_captions(RESULTS))
    assert found.scores == own.scores and found.cider_per_picture == own.cider_per_picture
    assert found.scores["CIDEr"] != pytest.approx(OFFICIAL["all"]["scores"]["CIDEr"], abs=1e-3)
    assert found.tokenisation.startswith(TOKENISATION) and "no `java` is on the PATH" in found.tokenisation


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "did not give back every caption"),
        ('head -n 3 "$6"', "did not give back every caption"),
        ('printf "a\\n"; cat "$6"', "did not give back every caption"),
    ],
)
def test_a_tokenizer_that_fails_is_a_reason_and_not_a_crash(tmp_path, monkeypatch, script, reason):
    stand_in_java(tmp_path, script, monkeypatch)
    found = evaluate_captions_file(RESULTS, ANNOTATIONS)
    assert found.scores == caption_scores(read_references(ANNOTATIONS), read_captions(RESULTS)).scores
    assert found.tokenisation.startswith(TOKENISATION) and reason in found.tokenisation


@pytest.mark.parametrize("error", [PermissionError("no room"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no room")])
def test_a_tokenizer_that_raises_is_a_reason_and_not_a_crash(tmp_path, monkeypatch, error):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    def tokenize(_: PTBTokenizer, captions: object) -> None:
        raise error

    stand_in_java(tmp_path, "exit 3", monkeypatch)
    monkeypatch.setattr(PTBTokenizer, "tokenize", tokenize)
    found = evaluate_captions_file(RESULTS, ANNOTATIONS)
    assert found.tokenisation.startswith(TOKENISATION) and "failed" in found.tokenisation
    assert "no room" in found.tokenisation and found.scores["CIDEr"] > 0


CAPTIONS = {"1": "a\rred\u2028star", "2": "", "3": "two\nstars\n"}


def scored_without_line_feeds(folder: Path) -> None:
    references = [{"image_id": key, "id": key, "caption": " ".join(text.split())} for key, text in CAPTIONS.items()]
    references[1]["caption"] = "a star"
    results = folder / "results.json"
    write_captions(results, CAPTIONS)
    found = evaluate_captions_file(results, written(folder, references))
    assert found.tokenisation == PTB_TOKENISATION
    assert found.cider_per_picture["2"] == 0
    brevity = math.exp(1 - 7 / 5)  # 5 words, all of them right, against references of 7
    assert found.scores["BLEU-1"] == pytest.approx(brevity, abs=EQUAL)


def test_captions_of_several_lines_stay_with_their_images(tmp_path, monkeypatch):
    """The tokenizer takes a carriage return for the end of a caption; a stand-in does the same."""
    stand_in_java(tmp_path, "tr '\\r' '\\n' < \"$6\"", monkeypatch)
    scored_without_line_feeds(tmp_path)


@needs_java
def test_captions_of_several_lines_stay_with_their_images_in_java(tmp_path):
    scored_without_line_feeds(tmp_path)


@given(st.dictionaries(st.text(), st.text()))
def test_results_survive_writing_and_reading(captions):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.json"
        write_captions(path, captions)
        assert read_captions(path) == captions


def test_written_ids_are_numbers_where_they_can_be(tmp_path):
    path = tmp_path / "results.json"
    write_captions(path, {"391895": "a", "007": "b", "star.png": "c", "٣": "d"})
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert [row["image_id"] for row in rows] == [391895, "007", "star.png", "٣"]
    assert all(row.keys() == {"image_id", "caption"} for row in rows)
    with pytest.raises(VlkdError, match="caption of image '1' to be text, but got None"):
        write_captions(path, {"1": None})  # type: ignore[dict-item]


def test_references_of_coco_and_of_oscar_are_the_same(tmp_path):
    content = json.loads(ANNOTATIONS.read_text(encoding="utf-8"))
    of_oscar = [row | {"image_id": str(row["image_id"])} for row in content["annotations"]]
    references = read_references(ANNOTATIONS)
    assert read_references(written(tmp_path, of_oscar)) == references
    assert references["193271"] == ["A desk with a lap-top and a T.V. on it", "a laptop on a desk"]
    assert list(references) == [str(image["id"]) for image in content["images"]]


def test_an_image_without_captions_is_left_out(tmp_path):
    content = {"images": [{"id": 1}, {"id": 2}], "annotations": [{"image_id": 2, "id": 1, "caption": "a star"}]}
    assert read_references(written(tmp_path, content)) == {"2": ["a star"]}


CAPTION = {"image_id": 1, "id": 5, "caption": "a star"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a star", "to be a JSON list of objects, but got str"),
        ({"annotations": [CAPTION]}, "a list 'images', but got an object with .'annotations'."),
        ({"images": [{"id": 1}]}, "a list 'annotations', but got an object with .'images'."),
        ({"images": [{"id": 1}, {"id": "1"}], "annotations": []}, "image id '1' comes a second time in row 1"),
        ({"images": [{"id": 2}], "annotations": [CAPTION]}, "image_id '1' in row 0 .* is not among the 'images'"),
        ([CAPTION, CAPTION], "caption id '5' comes a second time in row 1 .from 0. of .*made_up.json'"),
        ([{"image_id": 1, "caption": "a star"}], "key 'id' in row 0"),
        ([CAPTION | {"image_id": 1.5}], "'image_id' to be int or str in row 0 .* but got float 1.5"),
        ([CAPTION | {"caption": ["a star"]}], "'caption' to be str in row 0 .* but got list"),
    ],
)
def test_annotations_that_are_none_are_refused(tmp_path, content, message):
    with pytest.raises(VlkdError, match=message):
        read_references(written(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"1": "a star"}, "to be a JSON list of objects, but got dict"),
        ([{"image_id": 1}], "key 'caption' in row 0"),
        (
            [{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}],
            "image_id '1' comes a second time in row 1",
        ),
    ],
)
def test_results_that_are_none_are_refused(tmp_path, content, message):
    with pytest.raises(VlkdError, match=message):
        read_captions(written(tmp_path, content))


def test_results_and_annotations_must_be_of_the_same_images(tmp_path):
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))
    few = written(tmp_path, rows[4:], "few.json")
    with pytest.raises(VlkdError, match=r"few\.json' has no caption for image_id .* and 1 more of 12 in .*subset=True"):
        evaluate_captions_file(few, ANNOTATIONS)
    more = written(tmp_path, [*rows, {"image_id": 4, "caption": "a star"}])
    with pytest.raises(
        VlkdError, match=r"made_up\.json' describes image_id '4' of 13, which have no reference caption"
    ):
        evaluate_captions_file(more, ANNOTATIONS, subset=True)
    with pytest.raises(VlkdError, match="at least one caption, but got none"):
        evaluate_captions_file(written(tmp_path, []), ANNOTATIONS, subset=True)


def test_names_meet_however_their_accents_are_written(tmp_path):
    names = [unicodedata.normalize(form, "été") for form in ("NFC", "NFD")]
    assert names[0] != names[1]
    results = written(tmp_path, [{"image_id": names[1], "caption": "a red star"}], "results.json")
    rows = [{"image_id": name, "id": number, "caption": "a red star"} for number, name in enumerate((names[0], "b"))]
    found = evaluate_captions_file(results, written(tmp_path, rows), subset=True)
    assert found.scores["BLEU-1"] == pytest.approx(1)
    assert found.hints == (
        "CIDEr of one picture is always 0, even for a perfect caption: it counts the words that tell pictures apart.",
    )
    assert found.scores["CIDEr"] == 0
