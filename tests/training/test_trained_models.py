"""Evaluating and exporting models that say themselves what they are."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_store import STUDENT_DIM, TEACHER_DIM, make_data, make_recipe, save_model

from vlkd.data import AnswerVocabulary, load_tokenizer, train_tokenizer
from vlkd.errors import VlkdError
from vlkd.evaluation import Exam, evaluate_model, examine_captioner, export_model
from vlkd.models import Layout, ModelCard, VLForCaptioning, load_model, read_card, write_card
from vlkd.pipeline.method import Trained
from vlkd.regions.identity import DetectorIdentity
from vlkd.training import StageData
from vlkd.training.cards import complete_card

pytestmark = pytest.mark.slow

LIGHT = DetectorIdentity(name="light", fingerprint="aa", score_threshold=0.2, max_regions=10)
STRONG = DetectorIdentity(name="strong", fingerprint="bb", score_threshold=0.2, max_regions=10)
LAYOUT = Layout(caption=12, question=10, tags=6, answer_from="cls")
ENOUGH = {"beam": 2, "max_tokens": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StageData:
    made = make_data(tmp_path_factory.mktemp("regions") / "store", pictures=6)
    made.store.detectors = {"student": LIGHT, "teacher": STRONG}
    train = made.corpora["train"]
    return replace(made, corpora={"train": train, "test": replace(train, split="test")})


def card(data: StageData, **changes: Any) -> ModelCard:
    """Of a student that captions these data; of a teacher on its own regions with ``role="teacher"``."""
    known, teacher = data.identity, changes.get("role") == "teacher"
    facts = {
        "task": "captioning", "role": "student", "view": "own" if teacher else "paired", "stage": "by hand",
        "region_dim": TEACHER_DIM if teacher else STUDENT_DIM, "vocabulary": known.vocabulary, "tokenizer": known.tokenizer,
        "regions": 3, "layout": LAYOUT, "boxes": STRONG if teacher else LIGHT, "features": STRONG if teacher else LIGHT, **ENOUGH,
    }  # fmt: skip
    return ModelCard(**{**facts, **changes})


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_captioner_is_evaluated_as_it_was_trained(data, tmp_path, role) -> None:
    """The same captions as by an examination that is told everything."""
    facts = card(data, role=role)
    model = save_model(tmp_path / "model", facts)
    evaluate_model(model, tmp_path / "out", data, "test")
    recipe = make_recipe().model_copy(update={"evaluation": make_recipe().evaluation.model_copy(update=ENOUGH)})
    exam = Exam(recipe, data.corpora["test"], data.store, data.tokenizer, data.answer_vocabulary())
    told = examine_captioner(load_model(VLForCaptioning, model), role, facts.view, exam, conditions=("picture",))
    found = json.loads((tmp_path / "out" / "results.json").read_text())["captioning"]["picture"]
    assert found["captions"] == told["picture"]["captions"] and len(found["captions"]) == 6
    assert found["scores"]["CIDEr"] == told["picture"]["scores"]["CIDEr"]


def test_an_answerer_is_evaluated_without_options_and_has_none_of_captioning(data, tmp_path) -> None:
    model = save_model(tmp_path / "model", card(data, task="vqa", answers=data.identity.answers))
    assert "all" in evaluate_model(model, tmp_path / "out", data, "test")["picture"]
    assert "all" in evaluate_model(model, tmp_path / "out", data, "test", batch=1)["picture"]  # the same examination
    with pytest.raises(VlkdError, match="answers questions, for which there is no beam"):
        evaluate_model(model, tmp_path / "other", data, "test", beam=2)


CONTRADICTIONS = {
    "pre-trained only": ({"task": "pretraining"}, "is pre-trained only: fine-tune it"),
    "another tokenizer": ({"tokenizer": "other"}, "was trained with a tokenizer of"),
    "another vocabulary": ({"vocabulary": 90, "tokenizer": None}, "a tokenizer of 90 tokens .* of [0-9]+"),
    "other answers": ({"task": "vqa", "answers": "other"}, "chooses among other answers"),
    "another detector": ({"features": STRONG}, r"features of the detector 'strong' \(weights bb\)"),
    "other boxes": ({"boxes": STRONG}, "boxes and tags of the detector 'strong'"),
    "another limit": (
        {"features": LIGHT.model_copy(update={"max_regions": 5})}, "'light' with --max-regions 5, but these are of 'light' with"
    ),
    "no budgets": ({"layout": None}, "does not know its token budgets: .* `vlkd card .* --recipe RECIPE`"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_what_contradicts_a_model_is_refused_before_anything_is_made(data, tmp_path, name) -> None:
    changes, refused = CONTRADICTIONS[name]
    model = save_model(tmp_path / "model", card(data, **changes))
    with pytest.raises(VlkdError, match=refused) as caught:
        evaluate_model(model, tmp_path / "out", data, "test")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_captions_longer_than_training_knew_are_refused(data, tmp_path) -> None:
    model = save_model(tmp_path / "model", card(data))
    with pytest.raises(VlkdError, match=r"Captions of 11 tokens were asked for, .* on at most 10"):
        evaluate_model(model, tmp_path / "out", data, "test", max_tokens=11)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, None),
        ({"view": "own"}, None),  # as of the teacher that was not adapted
        ({"role": "teacher"}, "is a teacher, but a student is expected"),
        ({"task": "vqa"}, "answers questions, but one that captions pictures"),
        ({"tokenizer": "other"}, "with a tokenizer of"),
        ({"layout": LAYOUT.model_copy(update={"tags": 5})}, "text.tags = 5, but the recipe's is 6"),
        ({"features": STRONG}, "features of the detector 'strong'"),
    ],
)
def test_a_runs_table_has_only_models_of_the_run(data, tmp_path, changes, refused) -> None:
    """As where folders of two runs were mixed."""
    made = card(data).model_copy(update=changes)
    trained = Trained({"captioning": save_model(tmp_path / "model", made)}, "student", "paired")
    if refused is None:
        trained.check(make_recipe(), data)
        return
    with pytest.raises(VlkdError, match=refused):
        trained.check(make_recipe(), data)


@pytest.mark.parametrize("task", ["captioning", "vqa"])
def test_an_exported_model_is_itself_again(data, tmp_path, task) -> None:
    facts = card(data, task=task, answers=data.identity.answers if task == "vqa" else None)
    model, out = save_model(tmp_path / "model", facts), tmp_path / "student"
    export_model(model, out, data)
    assert read_card(out) == facts
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, model))
    assert all(tensor.equal(theirs[name]) for name, tensor in ours.items()) and ours.keys() == theirs.keys()
    assert len(load_tokenizer(out)) == facts.vocabulary and (out / "answers.json").exists() == (task == "vqa")
    modes = {path.stat().st_mode & 0o666 for path in out.iterdir()}
    assert modes == {out.stat().st_mode & 0o666}  # as the umask says
    half = tmp_path / "half"
    export_model(model, half, data, "bfloat16")
    assert read_card(half) == facts


def test_a_model_is_told_what_its_data_know(data, tmp_path) -> None:
    whole = card(data, task="vqa", answers=data.identity.answers)
    nothing = dict.fromkeys(("tokenizer", "vocabulary", "regions", "layout", "answers", "boxes", "features"))
    folder = save_model(tmp_path / "model", whole)
    write_card(folder, whole.model_copy(update=nothing))
    assert complete_card(folder, {}, make_recipe(), data) == whole
    write_card(folder, whole)
    assert read_card(folder) == complete_card(folder, {}, data=data) == whole


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"role": "teacher", "view": "paired"}, "has 11 numbers a region, but the data have 13"),
        ({"vocabulary": 90, "tokenizer": None}, "has 90 tokens of vocabulary, but the data have"),
        ({"tokenizer": "other"}, "with a tokenizer of"),
        ({"features": STRONG}, "features of the detector 'strong'"),
    ],
)
def test_data_that_cannot_be_a_models_are_refused(data, tmp_path, changes, refused) -> None:
    facts = {"boxes": None, "features": None, "region_dim": STUDENT_DIM} | changes
    folder = save_model(tmp_path / "model", card(data, **facts))
    if facts.get("tokenizer", ...) is None:
        write_card(folder, read_card(folder).model_copy(update={"vocabulary": None}))
    with pytest.raises(VlkdError, match=refused):
        complete_card(folder, {}, data=data)


def test_an_export_takes_no_other_words(data, tmp_path) -> None:
    model = save_model(tmp_path / "model", card(data, task="vqa", answers=data.identity.answers))
    words = replace(data, tokenizer=train_tokenizer(["quite another corpus"], 64))
    fewer = replace(data, answers=AnswerVocabulary(["red"]))
    for other, refused in ((words, "with a tokenizer of"), (fewer, "chooses among other answers")):
        with pytest.raises(VlkdError, match=refused):
            export_model(model, tmp_path / "student", other)
    with pytest.raises(VlkdError, match="pre-trained only"):
        export_model(save_model(tmp_path / "pretrained", card(data, task="pretraining")), tmp_path / "student", data)
    assert not (tmp_path / "student").exists()
