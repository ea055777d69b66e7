"""Caption metrics against pycocoevalcap's own evaluation, and the two that need Java."""

from __future__ import annotations

import stat

import pytest

from vlkd.evaluation import JavaMetrics, caption_scores, tokenise
from vlkd.evaluation import java_metrics as java_module
from vlkd.evaluation.java_metrics import why_not

REFERENCES = {
    "a": ["A red circle, left of a blue star!", "there is a small red circle"],
    "b": ["two striped squares", "two squares; both are striped."],
    "c": ["a green ring above the letter B", "the letter B is below a ring"],
}
CANDIDATES = {"a": "a red circle left of a star", "b": "two squares", "c": "a yellow heart"}


@pytest.mark.parametrize(
    ("raw", "tokens"),
    [
        ("A red, striped star!", "a red striped star"),
        ("bottom-left  corner", "bottom left corner"),
        ("it 's the digit 7 .", "it s the digit 7"),
        ("…", ""),
    ],
)
def test_tokenise(raw, tokens):
    assert tokenise(raw) == tokens


def test_scores_are_those_of_pycocoevalcap(capsys):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truth = {key: [tokenise(text) for text in texts] for key, texts in REFERENCES.items()}
    guess = {key: [tokenise(text)] for key, text in CANDIDATES.items()}
    bleu, _ = Bleu(4).compute_score(truth, guess, verbose=0)
    cider, each = Cider().compute_score(truth, guess)
    rouge, _ = Rouge().compute_score(truth, guess)

    found = caption_scores(REFERENCES, CANDIDATES)
    assert [found.scores[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == bleu
    assert found.scores["CIDEr"] == cider and found.scores["ROUGE-L"] == rouge
    assert found.cider_per_picture == dict(zip(truth, each, strict=True))
    assert found.scores["CIDEr"] > 0.5  # the fixture says something
    assert set(found.unavailable) == {"METEOR", "SPICE"}
    assert "Java" in found.tokenisation
    assert capsys.readouterr().out == ""


def test_a_perfect_caption_scores_one_and_an_empty_one_zero():
    perfect = caption_scores({key: texts[:1] for key, texts in REFERENCES.items()},
                             {key: texts[0] for key, texts in REFERENCES.items()})  # fmt: skip
    assert perfect.scores["ROUGE-L"] == pytest.approx(1.0)
    assert perfect.scores["BLEU-1"] == pytest.approx(1.0)
    empty = caption_scores(REFERENCES, dict.fromkeys(REFERENCES, ""))
    assert empty.scores["CIDEr"] == 0 and empty.scores["ROUGE-L"] == 0


def test_keys_must_agree():
    with pytest.raises(ValueError, match="'c'"):
        caption_scores(REFERENCES, {"a": "x", "b": "y"})
    with pytest.raises(ValueError, match="at least one picture"):
        caption_scores({}, {})


def test_without_java_the_reason_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with JavaMetrics() as java:
        found = caption_scores(REFERENCES, CANDIDATES, java)
    assert set(found.scores) == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"}
    assert "no `java` is on the PATH" in found.unavailable["METEOR"]
    assert "no `java` is on the PATH" in found.unavailable["SPICE"]


def fake_java(folder, script: str, monkeypatch) -> None:
    program = folder / "java"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_java_that_does_not_run_is_a_reason(tmp_path, monkeypatch):
    fake_java(tmp_path, "exit 3", monkeypatch)
    reason = why_not("METEOR")
    assert reason is not None and "`java -version` failed" in reason


def test_a_meteor_that_dies_is_a_reason_and_not_a_crash(tmp_path, monkeypatch):
    fake_java(tmp_path, 'test "$1" = "-version" && exit 0\nexit 1', monkeypatch)
    with JavaMetrics(["METEOR"]) as java:
        found = caption_scores(REFERENCES, CANDIDATES, java)
        assert "METEOR's Java program failed" in found.unavailable["METEOR"]
        assert "METEOR" not in found.scores
        again = caption_scores(REFERENCES, CANDIDATES, java)
        assert again.unavailable == found.unavailable


def test_meteor_answers_of_a_working_java_are_passed_on(tmp_path, monkeypatch):
    """METEOR's line protocol, spoken by a stand-in: statistics for SCORE, then one value a picture and the mean."""
    script = """test "$1" = "-version" && exit 0
while read -r line; do
  case "$line" in SCORE*) echo "1 2 3";; EVAL*) printf '0.5\\n0.25\\n0.75\\n0.5\\n';; esac
done"""
    fake_java(tmp_path, script, monkeypatch)
    with JavaMetrics(["METEOR"]) as java:
        found = caption_scores(REFERENCES, {**CANDIDATES, "c": ""}, java)
    assert found.scores["METEOR"] == 0.5
    assert "METEOR" not in found.unavailable


def test_spice_never_downloads(tmp_path, monkeypatch):
    """Without its models SPICE is absent with a reason, before pycocoevalcap could fetch anything."""
    fake_java(tmp_path, "exit 0", monkeypatch)
    monkeypatch.setattr(java_module, "_jars", lambda name: [tmp_path / "stanford-corenlp-3.6.0.jar"])
    reason = why_not("SPICE")
    assert reason is not None
    assert "stanford-corenlp-3.6.0.jar is missing" in reason and "get_stanford_models" in reason


@pytest.mark.parametrize(
    ("references", "hint"),
    [
        ({"a": ["a red star"]}, "CIDEr of one picture is always 0, even for a perfect caption"),
        ({"a": ["a red star"], "b": ["a red star"]}, "CIDEr of 2 of the 2 pictures is always 0"),
        ({"a": ["a star"], "b": ["a star", "a red star"]}, "CIDEr of 1 of the 2 pictures is always 0"),
        ({"a": ["a red star"], "b": ["a red ring"]}, None),
        ({"a": ["star red"], "b": ["red star"]}, None),
    ],
)
def test_pictures_that_cider_cannot_see_are_told(references: dict[str, list[str]], hint: str | None) -> None:
    perfect = caption_scores(references, {key: texts[0] for key, texts in references.items()})
    blind = sum(score == 0 for score in perfect.cider_per_picture.values())
    assert len(perfect.hints) == (hint is not None) == (blind > 0)
    assert hint is None or perfect.hints[0].startswith(hint)
