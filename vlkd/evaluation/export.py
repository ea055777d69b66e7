"""A trained model by itself: weights, tokenizer, and what its inputs must look like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch

from vlkd.data import AnswerVocabulary
from vlkd.disk import whole_folder
from vlkd.errors import VlkdError
from vlkd.evaluation.model import MODELS
from vlkd.models import load_model
from vlkd.recipes import Recipe
from vlkd.runs import write_atomically
from vlkd.training import StageData

INPUTS = "inputs.json"
Precision = Literal["float32", "float16", "bfloat16"]


def export_model(
    model: Path,
    out: Path,
    recipe: Recipe,
    data: StageData,
    task: Literal["captioning", "vqa"],
    precision: Precision = "float32",
) -> None:
    """Write ``out``: ``config.json``, ``model.safetensors``, the tokenizer's files, ``inputs.json`` and, for VQA, ``answers.json``.

    ``VLForCaptioning.from_pretrained(out)`` (or ``VLForVQA``) and ``AutoTokenizer.from_pretrained(out)`` load it; nothing of
    teacher, queue or projection is in there. ``inputs.json`` has the budgets of tokens that the model was trained with.

    Args:
        model: the ``model`` folder of a fine-tuning run.
        out: must not exist yet.
        recipe: of that run.
        data: what it was trained on.
        task: what it was fine-tuned for.
        precision: of the weights in the file.

    Raises:
        VlkdError: ``out`` exists, or ``model`` holds no model of that task.
        OSError: ``out`` cannot be written.
    """
    if out.exists():
        raise VlkdError(f"'{out}' exists already: choose another folder for the model, or delete it first.")
    with whole_folder(out) as unfinished:
        loaded = load_model(MODELS[task], model).to(getattr(torch, precision))
        loaded.save_pretrained(unfinished)
        data.tokenizer.save_pretrained(unfinished)
        text = recipe.text
        inputs = {
            "task": task, "region_dim": loaded.config.region_dim, "most_regions": data.store.max_regions,
            "caption_tokens": text.caption, "question_tokens": text.question, "tag_tokens": text.tags,
            "tag_positions_start_at": max(text.caption, text.question), "answers_from": text.answer_from,
            "beam": recipe.evaluation.beam, "most_caption_words": recipe.evaluation.max_tokens,
        }  # fmt: skip
        write_atomically(unfinished / INPUTS, json.dumps(inputs, indent=2) + "\n")
        if task == "vqa":
            answers: AnswerVocabulary = data.answer_vocabulary()
            answers.save(unfinished / "answers.json")
