"""A trained model by itself: weights, tokenizer, answers, and its card, which says what it reads and how."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from vlkd.data.corpus import ANSWERS
from vlkd.disk import whole_folder
from vlkd.errors import VlkdError
from vlkd.evaluation.model import MODELS, fine_tuned_for
from vlkd.models import load_model, quiet_transformers, read_card
from vlkd.models.card import check_answers, check_words
from vlkd.training import StageData

Precision = Literal["float32", "float16", "bfloat16"]


def export_model(model: Path, out: Path, data: StageData, precision: Precision = "float32") -> None:
    """Write ``out``: ``config.json`` with the card, ``model.safetensors``, the tokenizer's files and, for VQA, ``answers.json``.

    ``VLForCaptioning.from_pretrained(out)`` (or ``VLForVQA``) and ``AutoTokenizer.from_pretrained(out)`` load it; nothing of
    teacher, queue or projection is in there. :func:`vlkd.models.read_card` gives the budgets of tokens that the model was
    trained with and the detector whose regions it reads.

    Args:
        model: the ``model`` folder of a fine-tuning run.
        out: must not exist yet.
        data: what it was trained on.
        precision: of the weights in the file.

    Raises:
        VlkdError: ``out`` exists, ``model`` holds no fine-tuned model, or the data have another tokenizer or other answers than
            it was trained with.
        OSError: ``out`` cannot be written.
    """
    card = read_card(model)
    task = fine_tuned_for(card, model)
    check_words(card, model, data.identity)
    check_answers(card, model, data.identity)
    card.recipe(model)  # knows its budgets
    if out.exists():
        raise VlkdError(f"'{out}' exists already: choose another folder for the model, or delete it first.")
    with quiet_transformers(), whole_folder(out) as unfinished:
        loaded = load_model(MODELS[task], model).to(getattr(torch, precision))
        loaded.save_pretrained(unfinished)
        data.tokenizer.save_pretrained(unfinished)
        if task == "vqa":
            data.answer_vocabulary().save(unfinished / ANSWERS)
