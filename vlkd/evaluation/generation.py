"""Captions and answers of a trained model for a data set, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from vlkd.data import Batch, CaptioningSet, VQASet, model_inputs
from vlkd.errors import VlkdError
from vlkd.evaluation.decoder import CachedDecoder
from vlkd.evaluation.search import Hypothesis, beam_search
from vlkd.models import VLForCaptioning, VLForVQA

Role = Literal["teacher", "student"]


@torch.no_grad()
def generate_captions(
    model: VLForCaptioning,
    dataset: CaptioningSet,
    role: Role,
    *,
    beam: int = 3,
    max_tokens: int = 20,
    batch: int = 64,
) -> dict[str, str]:
    """Picture key -> caption, for every picture of ``dataset`` under its condition.

    Args:
        model: put into eval mode.
        role: whose regions the model reads.
        beam: width of the search; 1 is greedy.
        max_tokens: the longest caption in WordPieces, [SEP] not counted.
        batch: pictures at a time; it changes speed only.

    Raises:
        VlkdError: ``max_tokens`` is more than the captions that the model was trained on could hold.
    """
    budget = dataset.collator.text_budget
    if max_tokens > budget - 2:
        raise VlkdError(
            f"Captions of {max_tokens} tokens were asked for, but training knew at most {budget - 2} "
            f"(text.caption = {budget} with [CLS] and [SEP]): set evaluation.max_tokens to {budget - 2} or less."
        )
    model.eval()
    tokenizer, keys = dataset.tokenizer, dataset.corpus.keys
    captions: dict[str, str] = {}
    for indices in _batches([dataset.prompt_length(index) for index in range(len(dataset))], batch):
        prompts = _to(model.device, model_inputs(dataset.prompts(indices), role))
        found = search_captions(model, prompts, dataset, beam=beam, max_tokens=max_tokens)
        texts = tokenizer.batch_decode([list(hypothesis.tokens) for hypothesis in found])
        captions |= {keys[index]: text for index, text in zip(indices, texts, strict=True)}
    return {key: captions[key] for key in keys}


def search_captions(
    model: VLForCaptioning, prompts: Batch, dataset: CaptioningSet, *, beam: int, max_tokens: int
) -> list[Hypothesis]:
    """The best token sequence for each row of ``prompts`` (model inputs whose text is [CLS] alone)."""
    tokens = dataset.collator.tokens
    special = [token for token in dataset.tokenizer.all_special_ids if token != tokens.sep]
    decoder = CachedDecoder(
        model,
        prompts,
        start=tokens.cls,
        mask=tokens.mask,
        forbidden=torch.tensor(special, device=model.device),
    )
    pictures = prompts["input_ids"].shape[0]
    return beam_search(decoder, pictures, end=tokens.sep, width=beam, max_tokens=max_tokens, device=model.device)


@torch.no_grad()
def answer_questions(model: VLForVQA, dataset: VQASet, role: Role, *, batch: int = 64) -> list[str]:
    """The most likely answer to every question of ``dataset``, in its order."""
    model.eval()
    answers = [""] * len(dataset)
    for indices in _batches([dataset.length(index) for index in range(len(dataset))], batch):
        inputs = model_inputs(dataset.collator([dataset[index] for index in indices]), role)
        logits = model(**_to(model.device, inputs)).logits  # [B, A]
        for index, best in zip(indices, logits.argmax(dim=1).tolist(), strict=True):
            answers[index] = dataset.answers[best]
    return answers


def _batches(lengths: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Indices of all samples, ``size`` of like length at a time, so that little padding is computed."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return (order[start : start + size] for start in range(0, len(order), size))


def _to(device: torch.device, batch: Batch) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}
