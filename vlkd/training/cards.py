"""What a stage says of the model that it trains, and what it asks of those that it starts from or is taught by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlkd.data.collate import stored_view
from vlkd.errors import VlkdError
from vlkd.models import (
    DataIdentity,
    Layout,
    ModelCard,
    VLConfig,
    VLForCaptioning,
    VLForPreTraining,
    VLForVQA,
    find_card,
    load_model,
    read_card,
)
from vlkd.models.card import Task, check_is, check_reads, check_start
from vlkd.recipes import Encoder, Recipe
from vlkd.training.inputs import StageData, StageInputs
from vlkd.training.stages import Role, Stage

CLASSES: dict[Task, type[VLForPreTraining] | type[VLForCaptioning] | type[VLForVQA]] = {
    "pretraining": VLForPreTraining,
    "captioning": VLForCaptioning,
    "vqa": VLForVQA,
}
# The recipe's name of a size and the configuration's.
_SHAPE = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
}


def stage_card(recipe: Recipe, stage: Stage, inputs: StageInputs) -> ModelCard:
    """The card of the model that ``stage`` trains."""
    data, view = inputs.identity, stored_view(stage.view)
    captions = stage.task == "captioning"
    return ModelCard(
        task=stage.task,
        role=stage.role,
        view=view,
        stage=stage.name,
        region_dim=inputs.region_dims[stage.role],
        vocabulary=inputs.vocab_size,
        tokenizer=data.tokenizer,
        regions=data.regions,
        layout=Layout.of(recipe.text),
        answers=data.answers if stage.task == "vqa" else None,
        boxes=data.boxes(view),
        features=data.detectors.get(stage.role),
        beam=recipe.evaluation.beam if captions else None,
        max_tokens=recipe.evaluation.max_tokens if captions else None,
    )


def check_models(recipe: Recipe, stage: Stage, inputs: StageInputs) -> None:
    """Whether the models that a stage reads are what it takes them for.

    Raises:
        VlkdError: one is not, does not say what it is, or was trained on other data than it would read here.
    """
    data, layout = inputs.identity, Layout.of(recipe.text)
    if stage.start is not None:
        check_start(read_card(stage.start), stage.start, stage.task, stage.role, data, layout)
        check_shape(stage.start, stage.role, recipe)
    if stage.teacher is not None:
        card = read_card(stage.teacher)
        view = "paired" if stage.view == "paired" else "own"
        check_is(card, stage.teacher, task=stage.task, role="teacher", view=view)
        check_reads(card, stage.teacher, data, layout)


def check_finished(folder: Path, recipe: Recipe) -> None:
    """Whether what the trained model in ``folder`` says of its captions is what the recipe says; training depends on none of it.

    Raises:
        VlkdError: it is not.
    """
    card = find_card(folder)
    for name, known in {"beam": card.beam, "max_tokens": card.max_tokens}.items() if card else ():
        asked = getattr(recipe.evaluation, name)
        if known not in (None, asked):
            raise VlkdError(
                f"The model in '{folder}' is trained, and says evaluation.{name} = {known}, but the recipe's is {asked}: leave it at {known} "
                f"here, and give `vlkd evaluate` another --{name.replace('_', '-')}."
            )


def check_shape(folder: Path, role: Role, recipe: Recipe) -> None:
    """Whether the model in ``folder``, from which a stage goes on, has the encoder that the recipe describes and the run records.

    Raises:
        VlkdError: it has another one.
    """
    config = VLConfig.from_pretrained(folder, local_files_only=True)
    encoder: Encoder = getattr(recipe, role)
    for name, ours in _SHAPE.items():
        known, asked = getattr(config, ours), getattr(encoder, name)
        if known != asked:
            raise VlkdError(
                f"The model in '{folder}' has {role}.{name} = {known}, but the recipe's is {asked}: give the recipe that it was trained "
                f"with, or set {role}.{name}={known}."
            )


def complete_card(
    folder: Path, facts: Mapping[str, str], recipe: Recipe | None = None, data: StageData | None = None
) -> ModelCard:
    """The card of the model in ``folder``, and what it does not say: from ``facts``, its recipe and its data.

    Args:
        folder: of the model, which stays as it is.
        facts: ``task``, ``role`` and ``view``; a model without a card needs all three.
        recipe: that it was trained with.
        data: that it was trained on.

    Raises:
        VlkdError: one of these contradicts the model, or a fact is missing.
    """
    known = find_card(folder)
    entries: dict[str, Any] = known.entry() if known else {"stage": "not known"}
    for name, value in facts.items():
        if entries.setdefault(name, value) != value:
            raise VlkdError(
                f"The model in '{folder}' says {name} = {entries[name]}, but {value} was given: leave --{name} out."
            )
    for name in ("task", "role", "view"):
        if name not in entries:
            raise VlkdError(f"The model in '{folder}' does not say its {name}: give --{name}.")
    model = load_model(CLASSES[entries["task"]], folder)
    entries.setdefault("region_dim", model.config.region_dim)
    card = ModelCard(**entries)
    if recipe is not None:
        card = _with_recipe(card, folder, recipe)
    if data is not None:
        card = _with_data(card, folder, data, model.config.vocab_size)
    return card


def _with_recipe(card: ModelCard, folder: Path, recipe: Recipe) -> ModelCard:
    layout, settings = Layout.of(recipe.text), recipe.evaluation
    check_reads(card, folder, DataIdentity(), layout)
    found: dict[str, Any] = {"layout": card.layout or layout}
    if card.task == "captioning":
        found |= {"beam": card.beam or settings.beam, "max_tokens": card.max_tokens or settings.max_tokens}
    return card.model_copy(update=found)


def _with_data(card: ModelCard, folder: Path, data: StageData, tokens: int) -> ModelCard:
    identity, store = data.identity, data.store
    check_reads(card, folder, identity)
    dims = {"student": store.student_dim, "teacher": store.teacher_dim}
    for what, ours, theirs in (
        ("numbers a region", card.region_dim, dims[card.role]),
        ("tokens of vocabulary", tokens, identity.vocabulary),
    ):
        if ours != theirs:
            raise VlkdError(
                f"The model in '{folder}' has {ours} {what}, but the data have {theirs}: give the data that it was trained on."
            )
    return card.model_copy(
        update={
            "tokenizer": identity.tokenizer,
            "vocabulary": identity.vocabulary,
            "regions": card.regions or identity.regions,
            "answers": identity.answers if card.task == "vqa" else None,
            "boxes": card.boxes or identity.boxes(card.view),
            "features": card.features or identity.detectors.get(card.role),
        }
    )
