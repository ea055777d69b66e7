"""A tiny hand-made world for the trainer: made-up pictures, words and features, no detector and no tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vlkd.data.collate import picture_id
from vlkd.models import ModelCard, VLForCaptioning, VLForPreTraining, VLForVQA, build_encoder
from vlkd.recipes import Distillation, Encoder, Recipe, Schedule, Schedules
from vlkd.training import Answers, StageInputs

TEXT, REGIONS, VOCABULARY, ANSWERS = 8, 4, 32, 5
STUDENT_DIM, TEACHER_DIM = 10, 12
MASK = 4


class HandMadeSet:
    """``size`` samples of a task, drawn from (epoch, index) only; every second pre-training pair is mismatched."""

    def __init__(self, task: str, size: int = 48, padding: int = 0) -> None:
        self.task, self.size, self.padding = task, size, padding
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def length(self, index: int) -> int:
        return int(self[index]["valid"].sum())

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1000 * self.epoch + index)
        words = torch.randint(5, VOCABULARY, (TEXT,), generator=generator)
        length = int(torch.randint(4, TEXT + 1, (), generator=generator))
        regions = int(torch.randint(2, REGIONS + 1, (), generator=generator))
        valid = torch.cat((torch.arange(TEXT) < length, torch.arange(REGIONS) < regions))
        matched = self.task != "pretraining" or index % 2 == 0
        sample = {
            "token_type_ids": torch.zeros(TEXT, dtype=torch.int64),
            "position_ids": torch.arange(TEXT),
            "student_regions": torch.randn(REGIONS, STUDENT_DIM, generator=generator),
            "teacher_regions": torch.randn(REGIONS, TEACHER_DIM, generator=generator),
            "valid": valid,
            "distill_mask": valid & matched,
            "attention_mask": valid.unsqueeze(0),
            "picture_ids": torch.tensor(index),
        }
        if self.task == "vqa":
            sample["answers"] = torch.rand(ANSWERS, generator=generator)
        else:
            masked = (torch.rand(TEXT, generator=generator) < 0.4) & (torch.arange(TEXT) < length)
            sample["mlm_labels"] = torch.where(masked, words, -100)
            words = torch.where(masked, MASK, words)
        if self.task == "pretraining":
            sample["matched"] = torch.tensor(int(matched))
        sample["input_ids"] = words.where(torch.arange(TEXT) < length, 0)
        return _padded(sample, self.padding) if self.padding else sample


class Poisoned(HandMadeSet):
    """In epoch 1, a value of sample 6 is not finite; its pair matches, so that it is distilled too."""

    def __init__(self, task: str, name: str, value: float) -> None:
        super().__init__(task)
        self._name, self._value = name, value

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = super().__getitem__(index)
        sample["picture_ids"] = torch.tensor(picture_id(f"picture {index}"))
        if index == 6 and self.epoch == 1:
            sample[self._name].view(-1)[0] = self._value
        return sample


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def _padded(sample: dict[str, Tensor], more: int) -> dict[str, Tensor]:
    """The same sample with ``more`` region slots that hold nothing; what they hold is far from zero."""
    sample = dict(sample)
    for name in ("student_regions", "teacher_regions"):
        filler = torch.full((more, sample[name].shape[1]), 7.0)
        sample[name] = torch.cat((sample[name], filler))
    nothing = torch.zeros(more, dtype=torch.bool)
    for name in ("valid", "distill_mask"):
        sample[name] = torch.cat((sample[name], nothing))
    sample["attention_mask"] = torch.cat((sample["attention_mask"], nothing.unsqueeze(0)), dim=1)
    return sample


def make_inputs(task: str, fingerprint: str = "hand-made", **settings) -> StageInputs:
    return StageInputs(
        samples=HandMadeSet(task, **settings),
        collate=collate,
        region_dims={"student": STUDENT_DIM, "teacher": TEACHER_DIM},
        vocab_size=VOCABULARY,
        fingerprint=fingerprint,
        max_length=TEXT + REGIONS + settings.get("padding", 0),
        answers=Answers(torch.zeros(ANSWERS), [[5]] * ANSWERS, mask_id=None) if task == "vqa" else None,
    )


def make_poisoned(task: str = "pretraining", name: str = "student_regions", value: float = float("nan")) -> StageInputs:
    keys = [f"picture {index}" for index in range(48)]
    return replace(make_inputs(task), samples=Poisoned(task, name, value), keys=keys)


def make_recipe(schedule: Schedule, dropout: float = 0.1, **distillation) -> Recipe:
    """Tiny encoders; every stage has the same schedule."""
    settings = {"queue_size": 64, "queue_tokens": 24} | distillation
    return Recipe(
        name="hand-made",
        teacher=Encoder(layers=2, width=16, heads=2, ffn=32, dropout=dropout),
        student=Encoder(layers=2, width=8, heads=2, ffn=16, dropout=dropout),
        distillation=Distillation(**settings),
        schedules=Schedules(**dict.fromkeys(Schedules.model_fields, schedule)),
    )


def save_teacher(task: str, folder: Path) -> None:
    """A random teacher with the head of a task."""
    model_class = {"pretraining": VLForPreTraining, "captioning": VLForCaptioning, "vqa": VLForVQA}[task]
    torch.manual_seed(11)
    shape = Encoder(layers=2, width=16, heads=2, ffn=32)
    answers = ANSWERS if task == "vqa" else 0
    model = build_encoder(shape, TEACHER_DIM, VOCABULARY, model_class=model_class, num_answers=answers)
    with torch.no_grad():  # BERT's initialisation attends and answers almost uniformly: sharpen it
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("query", "key", "value", "pooler", "classifier")):
                parameter.mul_(40)
    facts = {"task": task, "role": "teacher", "view": "paired", "stage": "made by hand", "region_dim": TEACHER_DIM}
    model.config.card = ModelCard(**facts).entry()
    model.save_pretrained(folder)
