"""What a recipe costs before anything runs: parameters, tokens, steps, memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vlkd.models import VLForCaptioning, VLForPreTraining, VLModel, build_config
from vlkd.recipes import Encoder, Recipe
from vlkd.regions.paired import GEOMETRY_DIM

# Bytes of float32 activations that a layer keeps for its backward, for each token and unit of width: 34 numbers of two bytes
# in arXiv 2205.05198, section 4, without the attention map, which fused attention does not keep.
_ACTIVATIONS = 2 * 34
_TRAINED = 16  # bytes a parameter: itself, its gradient, AdamW's two moments
_FROZEN = 4


@dataclass(frozen=True)
class StageBudget:
    """One training stage.

    Attributes:
        memory: bytes that a step takes at about most, in float32.
    """

    name: str
    steps: int
    batch: int
    memory: int

    @property
    def samples(self) -> int:
        return self.steps * self.batch


@dataclass(frozen=True)
class Budget:
    """All of it.

    Attributes:
        parameters: part -> (teacher's, student's).
        sequence: the tokens of a sample, in words.
        stages: in their order.
        about_memory: what the estimate counts, in words.
    """

    parameters: dict[str, tuple[int, int]]
    sequence: str
    stages: tuple[StageBudget, ...]
    about_memory: str


def budget(recipe: Recipe) -> Budget:
    """Parameters by building the models without storage; memory by formula."""
    text, regions = recipe.text, recipe.detectors.max_regions
    captioning = text.caption + text.tags + regions
    answering = text.question + text.tags + regions
    teacher, student = (
        _parameters(encoder, detector.feature_dim + GEOMETRY_DIM, text.vocabulary)
        for encoder, detector in (
            (recipe.teacher, recipe.detectors.teacher),
            (recipe.student, recipe.detectors.student),
        )
    )
    sequence = (
        f"{text.caption} caption + {text.tags} tags + {regions} regions = {captioning}; "
        f"{text.question} question + {text.tags} + {regions} = {answering}"
    )
    stages = []
    for name, of in recipe.schedules:
        tokens = answering if name.endswith("vqa") else captioning
        of_teacher = name.startswith(("teacher", "adapt"))
        encoder, counts = (recipe.teacher, teacher) if of_teacher else (recipe.student, student)
        micro = of.batch // of.accumulation
        memory = (
            _TRAINED * counts["with language and matching heads"]
            + micro * tokens * encoder.layers * encoder.width * _ACTIVATIONS
        )
        if not of_teacher:
            memory += (
                _FROZEN * teacher["with language and matching heads"] + 8 * micro * tokens * recipe.teacher.width * 4
            )
        stages.append(StageBudget(name, of.steps, of.batch, memory))
    return Budget(
        {part: (teacher[part], student[part]) for part in teacher},
        sequence,
        tuple(stages),
        "memory: weights, gradients and AdamW's moments in float32 (16 bytes a parameter), 68 bytes of activations a token, layer and "
        "unit of width (arXiv 2205.05198, with fused attention), and for a student its frozen teacher; one process, no gradient "
        "checkpointing.",
    )


def _parameters(encoder: Encoder, region_dim: int, vocabulary: int) -> dict[str, int]:
    config = build_config(encoder, region_dim, vocabulary)
    classes = {
        "encoder with pooler": VLModel,
        "with the language head": VLForCaptioning,
        "with language and matching heads": VLForPreTraining,
    }
    with torch.device("meta"):
        counts = {name: model(config).num_parameters() for name, model in classes.items()}
        counts["with the language head"] += sum(p.numel() for p in VLModel(config).pooler.parameters())  # type: ignore[union-attr]
    return counts
