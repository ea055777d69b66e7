"""What stages say of the models that they train, and which models they refuse to read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_store import STUDENT_DIM, TEACHER_DIM, make_data, make_recipe
from tiny_store import save_model as save

from vlkd.data import tokenizer_fingerprint
from vlkd.errors import VlkdError
from vlkd.models import Layout, ModelCard, read_card
from vlkd.pipeline import run_method
from vlkd.recipes import Recipe
from vlkd.regions.identity import DetectorIdentity
from vlkd.training import Stage, StageData, adapt, distill, finetune, pretrain, train_stage
from vlkd.training.cards import check_models, stage_card
from vlkd.training.run import build_trainer

pytestmark = pytest.mark.slow

LIGHT = DetectorIdentity(name="light", fingerprint="aa", score_threshold=0.2, max_regions=10)
STRONG = DetectorIdentity(name="strong", fingerprint="bb", score_threshold=0.2, max_regions=10)
OTHER = DetectorIdentity(name="other", fingerprint="cc", score_threshold=0.2, max_regions=10)
NOWHERE = Path("nowhere")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StageData:
    data = make_data(tmp_path_factory.mktemp("regions") / "store", pictures=8)
    data.store.detectors = {"student": LIGHT, "teacher": STRONG}
    return data


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return make_recipe()


def stage_of(recipe: Recipe, name: str, start: Path = NOWHERE, teacher: Path = NOWHERE) -> Stage:
    return {
        "pretrain": pretrain(recipe, "teacher"),
        "adapt": adapt(recipe, start),
        "distill": distill(recipe, teacher),
        "misaligned": distill(recipe, teacher, view="misaligned"),
        "caption own": finetune(recipe, "captioning", "teacher", start, view="own"),
        "caption": finetune(recipe, "captioning", "student", start, teacher=teacher),
        "vqa": finetune(recipe, "vqa", "student", start, teacher=teacher),
    }[name]


@pytest.mark.parametrize(
    ("name", "task", "role", "view", "boxes", "features"),
    [
        ("pretrain", "pretraining", "teacher", "own", STRONG, STRONG),
        ("adapt", "pretraining", "teacher", "paired", LIGHT, STRONG),
        ("distill", "pretraining", "student", "paired", LIGHT, LIGHT),
        ("misaligned", "pretraining", "student", "paired", LIGHT, LIGHT),
        ("caption own", "captioning", "teacher", "own", STRONG, STRONG),
        ("caption", "captioning", "student", "paired", LIGHT, LIGHT),
        ("vqa", "vqa", "student", "paired", LIGHT, LIGHT),
    ],
)
def test_a_card_says_what_a_stage_trains(data, recipe, name, task, role, view, boxes, features) -> None:
    stage = stage_of(recipe, name)
    card = stage_card(recipe, stage, data.inputs(recipe, stage))
    assert (card.task, card.role, card.view, card.stage) == (task, role, view, stage.name)
    assert (card.boxes, card.features) == (boxes, features)
    assert card.region_dim == {"student": STUDENT_DIM, "teacher": TEACHER_DIM}[role]
    assert (card.vocabulary, card.tokenizer) == (len(data.tokenizer), tokenizer_fingerprint(data.tokenizer))
    assert card.layout == Layout(caption=12, question=10, tags=6, answer_from="cls") and card.layout.tags_start == 12
    assert card.regions == data.store.max_regions == 3
    assert card.answers == (data.answer_vocabulary().fingerprint if task == "vqa" else None)
    assert (card.beam, card.max_tokens) == ((3, 10) if task == "captioning" else (None, None))


def test_a_trained_model_has_its_card_in_its_configuration(data, recipe, tmp_path) -> None:
    stage = pretrain(recipe, "student")
    model = train_stage(tmp_path / "run", recipe, stage, data)
    assert read_card(model) == stage_card(recipe, stage, data.inputs(recipe, stage))
    assert json.loads((model / "config.json").read_text())["card"]["features"]["name"] == "light"
    other = Stage("go on", "pretraining", "student", "paired", recipe.schedules.student, start=model)
    assert read_card(train_stage(tmp_path / "next", recipe, other, data)).stage == "go on"  # not that of its start


def card_of(recipe: Recipe, data: StageData, name: str, **changes: Any) -> ModelCard:
    """The card of what a stage trains, with changes."""
    stage = stage_of(recipe, name)
    return stage_card(recipe, stage, data.inputs(recipe, stage)).model_copy(update=changes)


def layout(**changes: Any) -> Layout:
    return Layout(**{"caption": 12, "question": 10, "tags": 6, "answer_from": "cls", **changes})


STARTS = {  # of a student that is fine-tuned for captioning
    "a teacher": ({"role": "teacher"}, "is a teacher, but a student is expected"),
    "another task": ({"task": "vqa"}, "answers questions, but one that captions pictures is expected"),
    "another tokenizer": ({"tokenizer": "other"}, r"a tokenizer of \d+ tokens \(other\), but the data's is another"),
    "other positions": ({"layout": layout(caption=20)}, "tags begin at position 20, but text.caption = 12 and"),
    "another detector": ({"features": OTHER}, r"features of the detector 'other' \(weights cc\), but .* 'light' \(w"),
    "nothing wrong": ({}, None),
    "the same task": ({"task": "captioning"}, None),
    "other limits": ({"features": LIGHT.model_copy(update={"max_regions": 4})}, None),
    "boxes of another detector": ({"boxes": OTHER}, None),
    "longer questions": ({"layout": layout(question=11, tags=9)}, None),
    "nothing known": ({"tokenizer": None, "vocabulary": None, "layout": None, "features": None}, None),
}


@pytest.mark.parametrize("name", STARTS)
def test_a_stage_goes_on_only_from_a_model_of_its_kind(data, recipe, tmp_path, name) -> None:
    changes, refused = STARTS[name]
    save(tmp_path / "start", card_of(recipe, data, "distill", **changes))
    stage = finetune(recipe, "captioning", "student", tmp_path / "start")
    if refused is None:
        check_models(recipe, stage, data.inputs(recipe, stage))
        return
    with pytest.raises(VlkdError, match=refused) as caught:
        train_stage(tmp_path / "run", recipe, stage, data)
    assert "\n" not in str(caught.value) and str(tmp_path / "start") in str(caught.value)
    assert not (tmp_path / "run").exists()


TEACHERS = {  # of a student that is fine-tuned; the last is the task
    "a student": ({"role": "student"}, "is a student, but a teacher is expected", "captioning"),
    "another task": ({"task": "pretraining"}, "is pre-trained and not fine-tuned, but one that captions", "captioning"),
    "not adapted": (
        {"view": "own"},
        "was trained on the teacher's own regions, .* from an adapted teacher",
        "captioning",
    ),
    "another tokenizer": ({"tokenizer": "other"}, r"a tokenizer of \d+ tokens \(other\)", "captioning"),
    "other captions": ({"layout": layout(caption=11)}, "text.caption = 11, but the recipe's is 12", "captioning"),
    "other tags": ({"layout": layout(tags=5)}, "text.tags = 5, but the recipe's is 6", "captioning"),
    "other positions": ({"layout": layout(caption=20)}, "tag's position = 20, but the recipe's is 12", "vqa"),
    "other questions": ({"layout": layout(question=9)}, "text.question = 9, but the recipe's is 10", "vqa"),
    "from elsewhere": ({"layout": layout(answer_from="mask")}, "answer_from = mask, but the recipe's is cls", "vqa"),
    "other answers": ({"answers": "other"}, r"chooses among other answers \(other\)", "vqa"),
    "other boxes": ({"boxes": OTHER}, "boxes and tags of the detector 'other'", "captioning"),
    "another detector": ({"features": OTHER}, "features of the detector 'other'", "captioning"),
    "another threshold": (
        {"boxes": LIGHT.model_copy(update={"score_threshold": 0.5})},
        "'light' with --score-threshold 0.5, but these are of 'light' with --score-threshold 0.2",
        "captioning",
    ),
    "nothing wrong": ({}, None, "captioning"),
    "nothing wrong in VQA": ({}, None, "vqa"),
    "questions do not matter": ({"layout": layout(question=9, answer_from="mask")}, None, "captioning"),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_stage_is_taught_only_by_a_teacher_of_its_inputs(data, recipe, tmp_path, name) -> None:
    changes, refused, task = TEACHERS[name]
    fitting = {"task": task, "role": "teacher", "region_dim": TEACHER_DIM, "features": STRONG, "boxes": LIGHT}
    teacher = save(
        tmp_path / "teacher", card_of(recipe, data, "vqa" if task == "vqa" else "caption", **(fitting | changes))
    )
    start = save(tmp_path / "start", card_of(recipe, data, "distill"))
    stage = finetune(recipe, task, "student", start, teacher=teacher)
    if refused is None:
        check_models(recipe, stage, data.inputs(recipe, stage))
        return
    with pytest.raises(VlkdError, match=refused):
        train_stage(tmp_path / "run", recipe, stage, data)
    assert not (tmp_path / "run").exists()


def test_a_misaligned_student_is_taught_by_a_teacher_of_its_own_regions(data, recipe, tmp_path) -> None:
    for name in ("pretrain", "adapt"):
        save(tmp_path / name, card_of(recipe, data, name))
    for name, view in (("adapt", "paired"), ("pretrain", "misaligned")):
        stage = distill(recipe, tmp_path / name, view=view)
        check_models(recipe, stage, data.inputs(recipe, stage))
    stage = distill(recipe, tmp_path / "pretrain")
    with pytest.raises(VlkdError, match="adapt it first, with `vlkd adapt … --start "):
        check_models(recipe, stage, data.inputs(recipe, stage))
    stage = distill(recipe, tmp_path / "adapt", view="misaligned")
    with pytest.raises(VlkdError, match="was trained on the student's boxes, but here it would read the teacher's own"):
        check_models(recipe, stage, data.inputs(recipe, stage))


def test_a_student_has_no_view_of_the_teachers_regions(recipe) -> None:
    with pytest.raises(VlkdError, match="trains a student, which reads its own detector's boxes"):
        finetune(recipe, "vqa", "student", NOWHERE, view="own")


def test_a_method_starts_from_a_teacher_of_its_data(data, recipe, tmp_path, monkeypatch) -> None:
    """Refused before a folder is made and before hours of training."""
    both = dict.fromkeys(("train", "test"), data.corpora["train"])
    monkeypatch.setattr("vlkd.pipeline.workshop.Workshop.data", replace(data, corpora=both))
    for number, (changes, refused) in enumerate((
        ({"role": "student"}, "is a student, but a teacher"),
        ({"task": "captioning"}, "captions pictures, but one that is pre-trained"),
        ({"tokenizer": "other"}, "with a tokenizer of"),
        ({"features": OTHER}, "features of the detector 'other'"),
        ({"layout": layout(caption=20)}, "tags begin at position 20"),
        ({"view": "paired"}, "trained on the student's boxes, but here it would read the teacher's own regions"),
    )):  # fmt: skip
        start = save(tmp_path / str(number), card_of(recipe, data, "pretrain", **changes))
        with pytest.raises(VlkdError, match=refused):
            run_method(recipe, tmp_path / "run", imported=tmp_path, start=start)
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_card_is_refused_with_what_to_do(data, recipe, tmp_path) -> None:
    save(tmp_path / "start", None)
    for stage in (adapt(recipe, tmp_path / "start"), distill(recipe, tmp_path / "start")):
        with pytest.raises(VlkdError, match=r"does not say what it is.* `vlkd card .* --task … --role … --view …"):
            train_stage(tmp_path / "run", recipe, stage, data)


def test_a_finished_stage_is_left_as_it_is_whatever_it_started_from(data, recipe, tmp_path) -> None:
    start = save(tmp_path / "start", card_of(recipe, data, "pretrain"))
    trained = train_stage(tmp_path / "run", recipe, adapt(recipe, start), data)
    entries = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps({**entries, "card": None}))
    assert train_stage(tmp_path / "run", recipe, adapt(recipe, start), data) == trained


@pytest.mark.parametrize(("name", "changed"), [("layers", 5), ("width", 64), ("heads", 1), ("ffn", 99)])
def test_a_recipe_describes_the_encoder_that_a_stage_goes_on_from(
    data, recipe, tmp_path, monkeypatch, name, changed
) -> None:
    """Or the run would record sizes that its model has not."""
    start = save(tmp_path / "start", card_of(recipe, data, "pretrain"))
    known = getattr(recipe.teacher, name)
    other = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={name: changed})})
    refused = rf"teacher.{name} = {known}, but the recipe's is {changed}: .* set teacher.{name}={known}\.$"
    with pytest.raises(VlkdError, match=refused):
        train_stage(tmp_path / "run", other, adapt(other, start), data)
    both = dict.fromkeys(("train", "test"), data.corpora["train"])
    monkeypatch.setattr("vlkd.pipeline.workshop.Workshop.data", replace(data, corpora=both))
    with pytest.raises(VlkdError, match=refused):
        run_method(other, tmp_path / "run", imported=tmp_path, start=start)
    assert not (tmp_path / "run").exists()


def test_a_stage_has_the_dropout_that_its_recipe_says(data, recipe, tmp_path) -> None:
    """Not that of the model which it goes on from."""
    start = save(tmp_path / "start", card_of(recipe, data, "pretrain"))
    other = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"dropout": 0.375})})
    stage = adapt(other, start)
    trainer = build_trainer(tmp_path / "run", other, stage, data.inputs(other, stage), seed=0)
    config = trainer.trained.model.config
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.375


def test_a_finished_captioner_keeps_its_beam(data, recipe, tmp_path) -> None:
    start = save(tmp_path / "start", card_of(recipe, data, "adapt"))
    stage = finetune(recipe, "captioning", "teacher", start)
    train_stage(tmp_path / "run", recipe, stage, data)
    wider = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"beam": 7})})
    with pytest.raises(VlkdError, match=r"says evaluation.beam = 3, but the recipe's is 7: .* another --beam"):
        train_stage(tmp_path / "run", wider, stage, data)


def test_weights_do_not_depend_on_cards(data, recipe, tmp_path) -> None:
    """The same bits from data that know their detectors and from data that do not."""
    unknown = StageData(data.store, data.corpora, data.tokenizer, seed=0)
    stage = pretrain(recipe, "student")
    known = train_stage(tmp_path / "known", recipe, stage, data)
    data.store.detectors = {}
    try:
        other = train_stage(tmp_path / "unknown", recipe, stage, unknown)
    finally:
        data.store.detectors = {"student": LIGHT, "teacher": STRONG}
    assert read_card(known).features == LIGHT and read_card(other).features is None
    assert (known / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
