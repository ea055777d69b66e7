"""A real store, corpus and tokenizer of made-up pictures, whose teacher finds other regions than the student."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from vlkd.data import Corpus, train_tokenizer, write_store
from vlkd.models import ModelCard, VLForCaptioning, VLForPreTraining, VLForVQA, build_encoder
from vlkd.recipes import Encoder, Evaluation, Recipe, Schedule, Schedules, Text
from vlkd.regions import RegionRecord, geometry
from vlkd.scenes import Question
from vlkd.training import StageData

COLOURS = ("red", "green", "blue", "pink")
STUDENT_DIM, TEACHER_DIM = 5 + 6, 7 + 6
TAGS, OWN_TAGS = ("star", "ring", "star"), ("moon", "tree")


def make_data(folder: Path, pictures: int) -> StageData:
    """Pictures with a caption and a question each; one or three student regions, two of the teacher's own."""
    rng = np.random.default_rng(0)
    keys = tuple(f"train-{number:06d}" for number in range(pictures))
    colours = [COLOURS[number % 4] for number in range(pictures)]
    captions = tuple((f"a {colour} star near a ring",) for colour in colours)
    questions = tuple((Question("colour", "what colour is the star?", colour),) for colour in colours)
    corpus = Corpus("train", keys, captions, questions)
    tokenizer = train_tokenizer([*corpus.texts(), " ".join((*TAGS, *OWN_TAGS))], 96)
    store = write_store(folder, (_record(key, rng) for key in keys), "made up")
    return StageData(store, {"train": corpus}, tokenizer, seed=0)


def make_recipe() -> Recipe:
    """Tiny encoders; two steps a stage."""
    return Recipe(
        name="hand-made",
        text=Text(vocabulary=96, caption=12, question=10, tags=6, mismatched=0.25),
        teacher=Encoder(layers=1, width=16, heads=2, ffn=16),
        student=Encoder(layers=1, width=8, heads=2, ffn=16),
        schedules=Schedules(**dict.fromkeys(Schedules.model_fields, Schedule(steps=2, batch=8, lr=1e-3))),
        evaluation=Evaluation(max_tokens=10),
    )


def _record(key: str, rng: np.random.Generator) -> RegionRecord:
    def boxes(count: int) -> np.ndarray:
        corners = rng.uniform(0, 40, (count, 2))
        return np.concatenate([corners, corners + rng.uniform(5, 20, (count, 2))], 1).astype(np.float32)

    def features(of: np.ndarray, width: int) -> np.ndarray:
        return np.concatenate([rng.normal(size=(len(of), width - 6)).astype(np.float32), geometry(of, 64, 64)], 1)

    student, own = boxes(rng.choice([1, 3])), boxes(2)
    return RegionRecord(
        key, 64, 64, student, features(student, STUDENT_DIM), features(student, TEACHER_DIM), TAGS[: len(student)],
        own, features(own, TEACHER_DIM), OWN_TAGS,
    )  # fmt: skip


def save_model(folder: Path, card: ModelCard | None) -> Path:
    """A random model of the recipe's shapes with a card, in ``folder``."""
    recipe = make_recipe()
    task = card.task if card else "pretraining"
    model_class = {"pretraining": VLForPreTraining, "captioning": VLForCaptioning, "vqa": VLForVQA}[task]
    teacher = card is None or card.role == "teacher"
    shape, dim = (recipe.teacher, TEACHER_DIM) if teacher else (recipe.student, STUDENT_DIM)
    torch.manual_seed(5)
    answers = len(COLOURS) if task == "vqa" else 0
    vocabulary = (card and card.vocabulary) or 96
    model = build_encoder(shape, dim, vocabulary, model_class=model_class, num_answers=answers)
    model.config.card = card and card.entry()
    model.save_pretrained(folder)
    return folder
