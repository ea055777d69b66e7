"""All stages of the method in their order, on a real store, corpus and tokenizer of eight made-up pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlkd.data import Corpus, train_tokenizer, write_store
from vlkd.errors import VlkdError
from vlkd.models import VLForCaptioning, VLForPreTraining, VLForVQA, load_model
from vlkd.recipes import Encoder, Evaluation, Recipe, Schedule, Schedules, Text
from vlkd.regions import RegionRecord, geometry
from vlkd.scenes import Question
from vlkd.training import StageData, adapt, distill, finetune, pretrain, train_stage

pytestmark = pytest.mark.slow

COLOURS = ("red", "green", "blue", "pink")


def _record(key: str, rng: np.random.Generator) -> RegionRecord:
    def boxes(count: int) -> np.ndarray:
        corners = rng.uniform(0, 40, (count, 2))
        return np.concatenate([corners, corners + rng.uniform(5, 20, (count, 2))], 1).astype(np.float32)

    def features(of: np.ndarray, width: int) -> np.ndarray:
        return np.concatenate([rng.normal(size=(len(of), width)).astype(np.float32), geometry(of, 64, 64)], 1)

    student, own = boxes(3), boxes(2)
    return RegionRecord(
        key, 64, 64, student, features(student, 5), features(student, 7), ("star", "ring", "star"),
        own, features(own, 7), ("star", "ring"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StageData:
    rng = np.random.default_rng(0)
    keys = tuple(f"train-{number:06d}" for number in range(8))
    captions = tuple(
        (f"a {COLOURS[i % 4]} star near a ring", f"one ring and a {COLOURS[i % 4]} star") for i in range(8)
    )
    questions = tuple((Question("colour", "what colour is the star?", COLOURS[i % 4]),) for i in range(8))
    corpus = Corpus("train", keys, captions, questions)
    store = write_store(tmp_path_factory.mktemp("regions") / "store", (_record(key, rng) for key in keys), "made up")
    return StageData(store, {"train": corpus}, train_tokenizer([*corpus.texts(), "star ring"], 64), seed=0)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    schedule = Schedule(steps=2, batch=4, lr=1e-3)
    return Recipe(
        name="hand-made",
        text=Text(vocabulary=64, caption=12, question=10, tags=6),
        teacher=Encoder(layers=1, width=16, heads=2, ffn=16),
        student=Encoder(layers=1, width=8, heads=2, ffn=16),
        schedules=Schedules(**dict.fromkeys(Schedules.model_fields, schedule)),
        evaluation=Evaluation(max_tokens=10),
    )


def _terms(folder: Path) -> set[str]:
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {name.removeprefix("raw/") for name in row if name.startswith("raw/")}


def test_every_stage_runs_on_what_the_one_before_left(data: StageData, recipe: Recipe, tmp_path: Path) -> None:
    teacher = train_stage(tmp_path / "teacher", recipe, pretrain(recipe, "teacher"), data)
    adapted = train_stage(tmp_path / "adapted", recipe, adapt(recipe, teacher), data)
    alone = train_stage(tmp_path / "student", recipe, pretrain(recipe, "student"), data)
    student = train_stage(tmp_path / "distilled", recipe, distill(recipe, adapted), data)
    assert _terms(tmp_path / "teacher") == _terms(tmp_path / "student") == {"language", "matching"}
    assert _terms(tmp_path / "distilled") == {"language", "matching", "attention", "hidden"}
    assert load_model(VLForPreTraining, adapted).config.region_dim == 13
    assert load_model(VLForPreTraining, alone).config.region_dim == 11

    for task, model_class, own_term in (("captioning", VLForCaptioning, "captioning"), ("vqa", VLForVQA, "answers")):
        tuned = train_stage(tmp_path / f"teacher-{task}", recipe, finetune(recipe, task, "teacher", adapted), data)
        stage = finetune(recipe, task, "student", student, teacher=tuned)
        folder = tmp_path / f"student-{task}"
        model = load_model(model_class, train_stage(folder, recipe, stage, data))
        assert _terms(folder) == {own_term, "attention", "hidden", "classes"}
        assert model.config.hidden_size == 8
        assert model.config.num_answers == (4 if task == "vqa" else 0)

    unadapted = finetune(recipe, "vqa", "teacher", teacher, view="own")
    train_stage(tmp_path / "teacher-own", recipe, unadapted, data)
    assert _terms(tmp_path / "teacher-own") == {"answers"}


def test_texts_that_a_budget_cuts_are_counted(data: StageData, recipe: Recipe) -> None:
    assert data.cut(recipe, "captioning") == data.cut(recipe, "vqa") == []
    corpus = data.corpora["train"]
    captions = (("a red star " * 9, "a red star"), *corpus.captions[1:])
    asked = tuple(replace(question, text="what is it ? " * 9) for question in corpus.questions[0])
    long = replace(corpus, captions=captions, questions=(asked, *corpus.questions[1:]))
    changed = replace(data, corpora={"train": long, "test": replace(long, split="test")})
    narrow = recipe.model_copy(update={"text": recipe.text.model_copy(update={"tags": 3})})
    tags = "The tags of 8 of 8 pictures of the split 'train' are longer than text.tags = 3 tokens, and are cut."
    cut = "1 of 16 captions of the split 'train' are longer than text.caption = 12 tokens, and are cut."
    assert changed.cut(narrow, "pretraining") == changed.cut(narrow, "captioning") == [cut, tags]
    cut = "1 of 8 questions of the split '{}' are longer than text.question = 10 tokens, and are cut."
    assert changed.cut(recipe, "vqa") == [cut.format("train"), cut.format("test")]


def test_questions_without_an_answer_are_left_out_and_counted(data: StageData, recipe: Recipe) -> None:
    corpus = data.corpora["train"]
    unknown = tuple(replace(question, answer="") for question in corpus.questions[0])
    some = replace(corpus, questions=(unknown, *corpus.questions[1:]))
    stage = finetune(recipe, "vqa", "teacher", Path("anywhere"))
    whole, part = (replace(data, corpora={"train": of}) for of in (corpus, some))
    samples = part.inputs(recipe, stage).samples
    assert len(samples) == len(whole.inputs(recipe, stage).samples) - len(unknown)
    assert all(samples[index].answers.any() for index in range(len(samples)))
    assert whole.left_out("vqa") is None and part.left_out("captioning") is None
    total = sum(map(len, corpus.questions))
    assert part.left_out("vqa") == f"Not trained on: {len(unknown)} of {total} questions, which have no answer."
    none = replace(corpus, questions=tuple(tuple(replace(q, answer="") for q in asked) for asked in corpus.questions))
    with pytest.raises(VlkdError, match=f"None of the {total} questions of the split 'train' has an answer"):
        replace(data, corpora={"train": none}).inputs(recipe, stage)


def test_other_texts_are_other_data(data: StageData) -> None:
    corpus = data.corpora["train"]
    changed = Corpus("train", corpus.keys, (("another caption",), *corpus.captions[1:]), corpus.questions)
    assert StageData(data.store, {"train": changed}, data.tokenizer, 0).fingerprint != data.fingerprint
    assert StageData(data.store, {"train": corpus}, data.tokenizer, 0).fingerprint == data.fingerprint
