"""Models on pictures of one's own: through the detector that they were trained on, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vlkd.cli import app
from vlkd.data import AnswerVocabulary, save_tokenizer, tokenizer_fingerprint, train_tokenizer
from vlkd.errors import VlkdError
from vlkd.models import Layout, ModelCard, VLForCaptioning, VLForVQA, build_encoder, find_card, read_card
from vlkd.pipeline import exported as module
from vlkd.pipeline.exported import ExportedModel, load_detector_of
from vlkd.pipeline.finished import FinishedRun
from vlkd.pipeline.prepare import detectors_of, identities
from vlkd.recipes import Encoder, load_recipe
from vlkd.regions.identity import DetectorIdentity
from vlkd.regions.zoo import load_detector
from vlkd.runs import Run
from vlkd.scenes import make_picture

pytestmark = pytest.mark.slow

DIM = 128 + 6  # of demo-student
ANSWERS = AnswerVocabulary(["red", "blue"])
LAYOUT = Layout(caption=12, question=10, tags=6, answer_from="cls")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a red star near a blue ring"], 64)


@pytest.fixture(scope="module")
def light() -> DetectorIdentity:
    return load_detector("demo-student").identity(0.2, 3)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(make_picture(7, "test", 0, size=128).pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def make(tmp_path: Path, tokenizer, light):
    """An exported folder with a random model and a card."""

    def made(folder: Path = tmp_path / "student", **changes: Any) -> Path:
        facts = {
            "task": "captioning", "role": "student", "view": "paired", "stage": "by hand", "region_dim": DIM, "regions": 3,
            "vocabulary": len(tokenizer), "tokenizer": tokenizer_fingerprint(tokenizer), "layout": LAYOUT, "boxes": light,
            "features": light, "beam": 2, "max_tokens": 4,
        }  # fmt: skip
        card = ModelCard(**{**facts, **changes})
        torch.manual_seed(0)
        answers = {"num_answers": len(ANSWERS)} if card.task == "vqa" else {}
        model_class = VLForVQA if card.task == "vqa" else VLForCaptioning
        shape = Encoder(layers=1, width=16, heads=2, ffn=16)
        model = build_encoder(shape, card.region_dim, len(tokenizer), model_class=model_class, **answers)
        model.config.card = card.entry()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        ANSWERS.save(folder / "answers.json")
        return folder

    return made


def vlkd(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refuses(match: str, call, *arguments, **options) -> None:
    with pytest.raises(VlkdError, match=match) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_an_exported_model_finds_its_detector_and_its_limits(make, picture) -> None:
    model = ExportedModel.open(make())
    assert model.detector.fingerprint() == load_detector("demo-student").fingerprint()
    memory, corpus = model.regions(picture, "captioning")
    (found,) = memory.read(corpus.keys, "paired")
    assert 1 <= len(found.boxes) <= 3
    assert vlkd("caption", picture, "--exported", model.folder).strip() == model.caption(picture)


def test_an_exported_model_answers(make, picture) -> None:
    folder = make(task="vqa", answers=ANSWERS.fingerprint)
    assert vlkd("answer", picture, "what colour ?", "--exported", folder).strip() in ANSWERS.answers
    AnswerVocabulary(["green", "blue"]).save(folder / "answers.json")
    refuses("chooses among other answers", vlkd, "answer", picture, "what colour ?", "--exported", folder)
    refuses("answers questions, but one that captions", vlkd, "caption", picture, "--exported", folder)


def test_what_of_a_question_is_not_read_is_said(make, picture, caplog) -> None:
    """LAYOUT leaves seven tokens between [CLS] and [MASK] [SEP]; an answer to the rest would be one to another question."""
    folder = make(task="vqa", answers=ANSWERS.fingerprint, layout=LAYOUT.model_copy(update={"answer_from": "mask"}))
    model = ExportedModel.open(folder)
    assert model.answer(picture, "a red star near a blue ring") and not caplog.messages
    assert model.answer(picture, "A red star near a blue ring near a star or a 猫 ?")
    assert caplog.messages == [
        "The model was not trained on 'or', '猫', '?', which it reads as unknown words.",
        "The model reads at most 7 tokens of a question, so it was asked no more than 'A red star near a blue ring'.",
    ]


def test_another_detector_of_the_same_width_is_refused(make) -> None:
    folder, other = make(), load_detector("demo-student")
    with torch.no_grad():
        other.model.roi_heads.box_head.fc7.bias[0] += 1
    refuses(r"was trained on regions of the detector 'demo-student' \(weights", ExportedModel.open, folder, other)
    right = load_detector("demo-student")
    refuses("--score-threshold 0.2, but this is .* --score-threshold 0.3", ExportedModel.open, folder, right, 0.3)
    assert ExportedModel.open(folder, right, 0.2).max_regions == 3


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_model_of_imported_features_asks_for_its_detector(make, picture, role) -> None:
    folder = make(boxes=None, features=None, role=role, view="own" if role == "teacher" else "paired")
    command = ("caption", picture, "--exported", folder)
    refuses("do not say which detector made their regions: name it", vlkd, *command)
    refuses("the least score of a region", vlkd, *command, "--detector", "demo-student")
    named = ("--detector", "demo-student", "--score-threshold", 0.2)
    assert vlkd(*command, *named).strip() == ExportedModel.open(folder, load_detector("demo-student"), 0.2).caption(
        picture
    )
    refuses(
        "reads regions of 134 numbers, but this detector gives 262",
        vlkd,
        *command,
        *named[2:],
        "--detector",
        "demo-teacher",
    )


def test_an_adapted_teacher_needs_two_detectors(make) -> None:
    refuses("is an adapted teacher", ExportedModel.open, make(role="teacher"))


def test_other_words_in_an_exported_folder_are_refused(make, picture) -> None:
    folder = make()
    train_tokenizer(["quite another corpus"], 64).save_pretrained(folder)
    refuses("with a tokenizer of", ExportedModel.open(folder).caption, picture)


def test_the_files_of_a_detector_are_those_of_training(make, light, tmp_path, monkeypatch) -> None:
    """Where they are no longer there, options say where."""
    asked = []
    monkeypatch.setattr(module, "load_detector", lambda *arguments: asked.append(arguments))
    there, gone = tmp_path / "there.pth", tmp_path / "gone.pth"
    there.touch()
    for weights, classes in ((None, None), ("random", None), (str(there), str(there)), (str(there), None)):
        known = light.model_copy(update={"weights": weights, "classes": classes})
        folder = make(features=known)
        load_detector_of(read_card(folder), folder)
        assert asked.pop() == ("demo-student", weights, Path(classes) if classes else None)
    card = read_card(make(features=light.model_copy(update={"weights": str(gone), "classes": str(gone)})))
    refuses(
        "The weights of the detector .* are not in '.*gone.pth', .* with --weights", load_detector_of, card, Path("m")
    )
    refuses("The classes of .* with --classes", load_detector_of, card, Path("m"), weights=str(there))
    load_detector_of(card, Path("m"), "demo-student", str(there), there)
    assert asked.pop() == ("demo-student", str(there), there)
    refuses("but 'demo-teacher' is named", load_detector_of, card, Path("m"), "demo-teacher")
    assert not asked


def test_a_detectors_options_go_with_an_exported_model(picture) -> None:
    for option in (("--detector", "demo-student"), ("--weights", "random"), ("--score-threshold", 0.3)):
        refuses("go with --exported", vlkd, "caption", picture, *option)


def test_a_model_of_a_run_is_not_asked_for_beside_an_exported_one(make, picture) -> None:
    for option in (("--run", "runs/demo"), ("--model", "teacher")):
        refuses("give these or that", vlkd, "caption", picture, "--exported", make(), *option)


@pytest.fixture
def finished(make, tokenizer, tmp_path) -> Path:
    """A finished run of the demo whose student only captions, made by hand."""
    recipe = load_recipe("quick", ["text.caption=12", "text.question=10", "text.tags=6", "evaluation.max_tokens=4"])
    folder = tmp_path / "run"
    run = Run.begin(folder, recipe.settings())
    run.finish()
    save_tokenizer(tokenizer, folder / "tokenizer")
    ANSWERS.save(folder / "answers.json")
    light = identities(recipe, folder, *detectors_of(recipe, folder))["student"]
    make(folder / "student" / "captioning" / "model", boxes=light, features=light, layout=Layout.of(recipe.text))
    return folder


MIXED = {
    "a teacher": ({"role": "teacher"}, "is a teacher, but a student"),
    "another task": ({"task": "vqa"}, "answers questions, but"),
    "other words": ({"tokenizer": "other"}, "with a tokenizer of"),
    "other budgets": ({"layout": Layout(caption=9, question=10, tags=6, answer_from="cls")}, "text.caption = 9, but"),
    "another detector": ({"features": None}, r"features of the detector 'x' \(weights 1\)"),
    "no card": (None, "does not say what it is"),
}


@pytest.mark.parametrize("name", MIXED)
def test_a_run_in_which_another_runs_model_lies_is_refused(finished, make, picture, name) -> None:
    assert vlkd("caption", picture, "--run", finished, "--model", "student").strip()
    folder = finished / "student" / "captioning" / "model"
    changes, refused = MIXED[name]
    card = read_card(folder)
    if changes is not None and changes.get("features", ...) is None:
        stranger = DetectorIdentity(name="x", fingerprint="1", score_threshold=0.2, max_regions=3)
        changes = {"features": stranger}
    kept = {"boxes": card.boxes, "features": card.features, "layout": card.layout}
    make(folder, **(kept | (changes or {})))
    if changes is None:
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace('"card"', '"drac"'))
    refuses(refused, FinishedRun.open(finished).caption, picture, "student")


def test_the_card_command_shows_what_a_model_is(make) -> None:
    shown = vlkd("card", make())
    for words in ("captioning", "student", "at most 3, 134 numbers", "caption 12", "beam 2", "demo-student (weights"):
        assert words in shown
    assert "answers" not in shown and "not known" not in shown
    assert "not known" in vlkd("card", make(boxes=None))


def test_the_card_command_completes_a_model_that_does_not_know_itself(make, tmp_path) -> None:
    folder = make()
    whole = read_card(folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"card"', '"drac"'))
    assert find_card(folder) is None
    refuses("does not say what it is", vlkd, "card", folder)
    refuses("does not say its task: give --task", vlkd, "card", folder, "--role", "student")
    facts = ("--role", "student", "--view", "paired")
    refuses("cannot be read as a VLForVQA", vlkd, "card", folder, "--task", "vqa", *facts)
    budgets = ("--recipe", "quick", "text.caption=12", "text.question=10", "text.tags=6", "text.answer_from=cls")
    captions = ("evaluation.beam=2", "evaluation.max_tokens=4")
    vlkd("card", folder, "--task", "captioning", *facts, *budgets, *captions)
    found = read_card(folder)
    assert (found.task, found.role, found.view) == ("captioning", "student", "paired")
    assert (found.layout, found.beam, found.max_tokens, found.region_dim) == (whole.layout, 2, 4, DIM)
    refuses("says role = student, but teacher was given", vlkd, "card", folder, "--role", "teacher")
    refuses("text.tags = 6, but the recipe's is 5", vlkd, "card", folder, *budgets, *captions, "text.tags=5")
    assert read_card(folder) == found


def test_a_card_that_cannot_be_read_is_one_sentence(make) -> None:
    folder = make()
    path = folder / "config.json"
    whole = path.read_text()
    for before, after in (('"format": 1', '"format": 2'), ('"role"', '"roll"'), ('"captioning"', '"singing"')):
        path.write_text(whole.replace(before, after))
        refuses("has a card that cannot be read", read_card, folder)
    path.write_text(whole[:40])
    refuses("is no JSON", read_card, folder)
    path.write_text("[]")
    refuses("holds no named entries", read_card, folder)
    path.unlink()
    refuses("There is no model in", read_card, folder)
