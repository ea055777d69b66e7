"""The stages of the method on transformers' Trainer: pretrain, adapt, distill, finetune."""

from vlkd.training.inputs import Answers, StageData, StageInputs
from vlkd.training.run import MODEL, train, train_stage
from vlkd.training.stages import Stage, adapt, distill, finetune, pretrain

__all__ = [
    "MODEL",
    "Answers",
    "Stage",
    "StageData",
    "StageInputs",
    "adapt",
    "distill",
    "finetune",
    "pretrain",
    "train",
    "train_stage",
]
