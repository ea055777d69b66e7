"""One stage from beginning to end, in a run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from vlkd.disk import blamed_on, whole_folder
from vlkd.errors import VlkdError
from vlkd.locks import locked
from vlkd.models import VLForVQA, build_encoder, load_model, quiet_transformers, start_from
from vlkd.objectives import paired_layers
from vlkd.recipes import CHANGES_NO_NUMBER, Distillation, Recipe, Schedule
from vlkd.runs import Run
from vlkd.training.arguments import process_state, training_arguments
from vlkd.training.callbacks import MetricsFile, ProgressBar, TimeKept
from vlkd.training.cards import CLASSES, check_finished, check_models, stage_card
from vlkd.training.checkpoints import latest_checkpoint
from vlkd.training.inputs import StageData, StageInputs
from vlkd.training.method import Method
from vlkd.training.options import checkpoint_activations, compile_layers, require_options
from vlkd.training.sharding import whole_state
from vlkd.training.stages import Stage
from vlkd.training.stream import SampleStream
from vlkd.training.teaching import Teacher
from vlkd.training.trackers import tracker_callbacks
from vlkd.training.trained import Trained
from vlkd.training.trainer import MethodTrainer
from vlkd_kernels import RingQueue

MODEL = "model"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"


def train_stage(folder: Path | str, recipe: Recipe, stage: Stage, data: StageData) -> Path:
    """:func:`train` on the training split of ``data``."""
    return train(folder, recipe, stage, data.inputs(recipe, stage), data.seed)


def train(folder: Path | str, recipe: Recipe, stage: Stage, inputs: StageInputs, seed: int) -> Path:
    """Train a stage in ``folder`` and return the folder of the trained model.

    ``folder`` then holds ``settings.yaml``, ``versions.json``, ``metrics.jsonl``, ``tensorboard/`` where TensorBoard is
    installed, ``checkpoints/``, ``model/`` (the model alone, without a trace of teacher or queue) and
    ``results.json``. A folder with an unfinished run of the same settings and data resumes from its last checkpoint to
    the same bits, also with other ``save_every`` and ``log_every``; a finished one is left as it is.

    Raises:
        VlkdError: the folder holds another run, or another process is at work in it; the models do not fit each other or the
            data; this machine lacks what ``recipe.training`` asks for; or a loss, a gradient or a weight is not finite, and then
            no checkpoint holds it.
        OSError: the folder cannot be written, or its disk is full.
    """
    require_options(recipe.training)
    folder = Path(folder)
    if not Run(folder).finished:
        check_models(recipe, stage, inputs)
    state = process_state()
    settings = stage_settings(recipe, stage, seed)
    with locked(folder) if state.is_main_process else nullcontext():
        with state.main_process_first():
            run = Run(folder)
            if state.is_main_process:
                run = Run.begin(folder, settings, inputs.fingerprint, CHANGES_NO_NUMBER)
        if run.finished:
            check_finished(folder / MODEL, recipe)
        else:
            _train(run, recipe, stage, inputs, seed)
    return folder / MODEL


def _train(run: Run, recipe: Recipe, stage: Stage, inputs: StageInputs, seed: int) -> None:
    """What :func:`train` does in a folder that is not finished."""
    folder, state = run.folder, process_state()
    checkpoint = latest_checkpoint(folder / CHECKPOINTS)
    trainer = build_trainer(folder, recipe, stage, inputs, seed)
    bar = ProgressBar(stage.name)
    trainer.add_callback(bar)
    if state.is_main_process:
        run.note_time(at_once=True)
        trainer.add_callback(TimeKept(run))
        for callback in tracker_callbacks(recipe.training.trackers, folder, checkpoint):
            trainer.add_callback(callback)
    with closing(bar), blamed_on(folder):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.require_finite()
    model = trainer.trained.model
    weights = whole_state(model) if recipe.training.sharded else None
    if state.is_main_process:
        _save_whole(model, folder / MODEL, weights)
        run.finish(steps=stage.schedule.steps, parameters=model.num_parameters())
    state.wait_for_everyone()


def weights_hash(folder: Path) -> str:
    """Names the weights of the model in ``folder``.

    Raises:
        VlkdError: there is none.
    """
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise VlkdError(f"There is no model in '{folder}' (no model.safetensors): train the stage that makes it first.")
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def stage_settings(
    recipe: Recipe, stage: Stage, seed: int, name_weights: Callable[[Path], str] = weights_hash
) -> dict[str, Any]:
    """Everything that the result depends on, apart from the data, as plain values.

    ``name_weights`` names the weights in a folder, by default after what they are.
    """
    settings: dict[str, Any] = {key: value for key, value in asdict(stage).items() if isinstance(value, str)}
    settings["seed"] = seed
    settings["encoder"] = stage.encoder(recipe).model_dump()
    settings["text"] = recipe.text.model_dump()
    settings["schedule"] = stage.schedule.model_dump(exclude_none=True)
    if stage.share != 1:
        settings["share"] = stage.share
    if numerics := recipe.training.numerics():
        settings["training"] = numerics
    if stage.start:
        settings["start_weights"] = name_weights(stage.start)
    if stage.teacher:
        settings["teacher_weights"] = name_weights(stage.teacher)
        only_finetuning = {"gamma", "class_temperature"} if stage.task == "pretraining" else set()
        settings["distillation"] = recipe.distillation.model_dump(exclude=only_finetuning)
    return settings


def build_trainer(folder: Path, recipe: Recipe, stage: Stage, inputs: StageInputs, seed: int) -> MethodTrainer:
    """The trainer of a stage, models built and nothing trained yet."""
    set_seed(seed)
    state = process_state()
    training = recipe.training
    arguments = training_arguments(folder / CHECKPOINTS, stage.schedule, seed, state.num_processes, training)
    arguments.run_name = stage.name
    model = _build_model(recipe, stage, inputs)
    model.config.card = stage_card(recipe, stage, inputs).entry()
    if training.gradient_checkpointing:
        checkpoint_activations(model)
    distillation = recipe.distillation
    weights = stage.weights(distillation)
    teacher = _load_teacher(stage, model, arguments.device, distillation)
    if training.compile:
        for compiled in (model, *((teacher.model,) if teacher else ())):
            compile_layers(compiled)
    teacher_width = teacher.model.config.hidden_size if teacher and "hidden" in weights else None
    queue = None
    if teacher_width is not None and distillation.hidden == "nce":
        queue = RingQueue(teacher_width, distillation.queue_size)
    layers = _compared_layers(distillation, model)
    return MethodTrainer(
        Trained(model, stage.role, teacher_width, attends="attention" in weights, layers=layers),
        Method(weights, model.config.num_attention_heads, distillation, queue, len(layers)),
        arguments,
        stream=_stream(stage.schedule, inputs, seed, state.num_processes, sort=not distillation.in_batch),
        collator=inputs.collate,
        teacher=teacher,
        queue_tokens=distillation.queue_tokens,
        max_length=inputs.max_length,
        check_steps=training.check_steps,
        name_of=inputs.name_of,
        callbacks=[MetricsFile(folder / METRICS)],
    )


def _stream(schedule: Schedule, inputs: StageInputs, seed: int, ranks: int, sort: bool) -> SampleStream:
    """The samples of all steps. Not sorted, a step's samples come as they were drawn: their micro-batch is then part of the loss."""
    return SampleStream(
        inputs.samples,
        schedule.steps * schedule.batch,
        seed,
        batch=schedule.batch,
        micro_batches=schedule.accumulation * ranks if sort else 1,
        window=schedule.length_window,
    )


def _build_model(recipe: Recipe, stage: Stage, inputs: StageInputs) -> PreTrainedModel:
    model_class, answers = CLASSES[stage.task], inputs.answers
    settings = {} if answers is None else {"num_answers": len(answers.words), "answer_mask_id": answers.mask_id}
    if stage.start is not None:
        dropout = stage.encoder(recipe).dropout
        settings |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        model = start_from(model_class, stage.start, **settings)
        _check_fits(model, stage, inputs)
    else:
        region_dim = inputs.region_dims[stage.role]
        encoder = stage.encoder(recipe)
        model = build_encoder(encoder, region_dim, inputs.vocab_size, model_class=model_class, **settings)
    if isinstance(model, VLForVQA) and answers is not None:
        model.start_answers(answers.log_odds, answers.words)
    return model


def _check_fits(model: PreTrainedModel, stage: Stage, inputs: StageInputs) -> None:
    """Whether a model that was trained on other data, perhaps, reads these."""
    region_dim = inputs.region_dims[stage.role]
    if model.config.vocab_size != inputs.vocab_size:
        raise VlkdError(
            f"The model in '{stage.start}' has a vocabulary of {model.config.vocab_size} tokens, but the data's tokenizer has "
            f"{inputs.vocab_size}: give it data with the tokenizer that it was trained with."
        )
    if model.config.region_dim != region_dim:
        raise VlkdError(
            f"The model in '{stage.start}' reads regions of {model.config.region_dim} numbers, but the data have {region_dim} for the "
            f"{stage.role}: give it features of the detector that it was trained on."
        )


def _compared_layers(distillation: Distillation, student: PreTrainedModel) -> tuple[int, ...]:
    """The student's layers whose attention is compared."""
    return (-1,) if distillation.layers == "last" else tuple(range(student.config.num_hidden_layers))


def _load_teacher(
    stage: Stage, student: PreTrainedModel, device: torch.device, distillation: Distillation
) -> Teacher | None:
    if stage.teacher is None:
        return None
    weights = stage.weights(distillation)
    model = load_model(CLASSES[stage.task], stage.teacher)
    heads_s, heads_t = student.config.num_attention_heads, model.config.num_attention_heads
    if "attention" in weights and heads_s != heads_t:
        raise VlkdError(
            f"The student has {heads_s} attention heads and the teacher in '{stage.teacher}' has {heads_t}: "
            "attention maps are compared head by head, so give both as many, or set distillation.alpha to 0."
        )
    layers = (-1,)
    if distillation.layers == "all":
        layers = paired_layers(student.config.num_hidden_layers, model.config.num_hidden_layers)
    return Teacher(model, device, with_logits="classes" in weights, layers=layers)


def _save_whole(model: PreTrainedModel, folder: Path, weights: dict[str, Tensor] | None) -> None:
    """``save_pretrained``, whole or not at all; ``weights`` are those of a sharded model."""
    with quiet_transformers(), whole_folder(folder, replace=True) as unfinished:
        model.save_pretrained(unfinished, state_dict=weights)
