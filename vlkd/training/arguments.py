"""A recipe's schedule as arguments of transformers' Trainer."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from vlkd.errors import VlkdError
from vlkd.recipes import Schedule, Training
from vlkd.training.sharding import keep_sums_in_fp32, sharding_options


def process_state() -> PartialState:
    """Which of how many processes this is; torchrun starts several, on CPUs as on GPUs."""
    return PartialState(cpu=not torch.accelerator.is_available())


def training_arguments(
    checkpoints: Path, schedule: Schedule, seed: int, ranks: int = 1, training: Training | None = None
) -> TrainingArguments:
    """AdamW with linear decay for ``schedule.steps`` steps of ``schedule.batch`` samples over all ranks.

    Raises:
        VlkdError: the batch cannot be split evenly.
    """
    training = training or Training()
    shares = schedule.accumulation * ranks
    if schedule.batch % shares:
        raise VlkdError(
            f"A batch of {schedule.batch} cannot be split over {schedule.accumulation} micro-batches on each of "
            f"{ranks} processes: make the batch a multiple of {shares}."
        )
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=schedule.steps,
        per_device_train_batch_size=schedule.batch // shares,
        gradient_accumulation_steps=schedule.accumulation,
        learning_rate=schedule.lr,
        lr_scheduler_type="linear",
        warmup_steps=round(schedule.warmup * schedule.steps),
        weight_decay=schedule.weight_decay,
        max_grad_norm=schedule.clip,
        bf16=training.precision == "bf16",
        fp16=training.precision == "fp16",
        seed=seed,
        use_cpu=not torch.accelerator.is_available(),
        save_strategy="steps",
        save_steps=schedule.save_every,
        logging_strategy="no",  # callbacks.LogSchedule decides
        logging_steps=schedule.log_every,
        logging_nan_inf_filter=False,  # it asks the device every step, and hides what FiniteWatch stops for
        log_level="error",
        report_to="none",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        **sharding_options(training),
    )
    keep_sums_in_fp32(arguments)
    if arguments.n_gpu > 1:
        # One process drives one GPU; several GPUs are used through torchrun, never through DataParallel.
        arguments._n_gpu = 1
    return arguments
