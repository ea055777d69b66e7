"""The training loop: transformers' Trainer, with the method as its step."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from vlkd.disk import blamed_on
from vlkd.objectives import Ledger
from vlkd.training.callbacks import LogSchedule, is_logged
from vlkd.training.checkpoints import PARTIAL, discard_partial, publish, with_prefix, without_prefix
from vlkd.training.feed import QueueFeed
from vlkd.training.finite import FiniteWatch
from vlkd.training.method import Method
from vlkd.training.parity import ParityGuard
from vlkd.training.stream import SampleStream
from vlkd.training.teaching import Teacher
from vlkd.training.trained import Trained
from vlkd_kernels import RingQueue

_MODEL = "model.safetensors"
_MEMORY = "memory.safetensors"


class MethodTrainer(Trainer):
    """Trains by a :class:`Method`.

    Every term is divided by the rows that it counts in the *whole* optimizer step. The queue, when there is one, is
    read by all of a step's micro-batches and written once, after the last backward. Checkpoints hold, beside what the
    Trainer saves, the projection, the queue and the ledger, so that a resumed run goes on to the same bits.

    Args:
        trained: what the optimizer trains.
        teacher: frozen, None without distillation.
        stream: all samples in the order of use.
        collator: list of samples → batch.
        queue_tokens: most rows that a step enqueues.
        max_length: places of the longest sequence that the collator gives.
        check_steps: first optimizer steps that a :class:`ParityGuard` watches.
        name_of: names a picture by its id, for messages.

    Raises:
        VlkdError: a loss, a gradient or a weight is not finite. No checkpoint holds such weights.
    """

    def __init__(
        self,
        trained: Trained,
        method: Method,
        arguments: TrainingArguments,
        *,
        stream: SampleStream,
        collator: Any,
        teacher: Teacher | None = None,
        queue_tokens: int = 0,
        max_length: int = 0,
        check_steps: int = 0,
        name_of: Callable[[int], str] = str,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        callbacks = [LogSchedule(), *(callbacks or [])]
        super().__init__(
            model=trained, args=arguments, data_collator=collator, train_dataset=stream, callbacks=callbacks
        )
        self.remove_callback(PrinterCallback)
        self.trained = trained
        self.stream = stream
        self.checkpoints = Path(arguments.output_dir or "")
        self.method = method
        self.teacher = teacher
        self.ledger = Ledger(method.weights)
        self._weights = torch.tensor(list(method.weights.values()), device=arguments.device)  # [terms]
        self._guard = ParityGuard(method, check_steps)
        self._finite = FiniteWatch(
            tuple(method.weights), arguments.device, self.checkpoints, name_of, self._first_picture, self._gather
        )
        self._feed = self._make_feed(method.queue, queue_tokens, max_length) if method.queue is not None else None
        self._row_began: tuple[float, int] | None = None  # seconds and step at which the next row of metrics begins
        self._memory: dict[str, Tensor] | None = None  # what a checkpoint adds to the model, while one is being saved

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one micro-batch; ``num_items_in_batch`` [terms] counts the whole step's rows."""
        if not (model.training and self.trained.model.training):  # a model that was loaded is not
            model.train()
        batch = self._prepare_inputs(inputs)
        with self.accelerator.autocast():
            student = model(batch)
            teacher = self.teacher(batch) if self.teacher else None
            terms = self.method.terms(student, teacher, batch)
            self._guard.check(self.state.global_step + 1, student, teacher, batch, terms)
        means = torch.stack([term.sum for term in terms.values()]) / num_items_in_batch  # [terms]
        weighted = self._weights * means
        self.ledger.record(means)
        step, logged = self.state.global_step + 1, self._is_logged()
        self._finite.see(step, weighted, batch, student, teacher, look=logged)
        if logged:
            scaler = self.accelerator.scaler  # of float16
            self.ledger.measure(weighted, self.trained.layer_input, scaler.get_scale() if scaler else 1.0)

        loss = weighted.sum()
        # DistributedDataParallel averages gradients over ranks; ours are shares of a sum over all of them.
        self.accelerator.backward(loss * self.accelerator.num_processes)

        if self._feed and teacher:
            self._feed.collect(*self.method.hidden_rows(teacher.hidden, batch), batch["picture_ids"])
        if self.accelerator.sync_gradients:  # the step's last micro-batch
            self._close_step()
        return loss.detach()

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Tensor]], Tensor]:
        """The micro-batches of an optimizer step and, for every term, the rows that it counts in all of them."""
        if self._row_began is None:
            self._row_began = (time.perf_counter(), self.state.global_step)
        batches, _ = super().get_batch_samples(*args, **kwargs)
        counts = [self.method.rows_counted(batch) for batch in batches]
        total = self._reduce(torch.stack(counts).sum(0).to(self.args.device))  # [terms]
        return batches, total.clamp(min=1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Replace the Trainer's row by the ledger's. Its closing summary has no learning rate and is left out."""
        if "learning_rate" not in logs or self._row_began is None:
            return
        row = self.ledger.row(self._reduce)
        row |= {"lr": logs["learning_rate"], "grad_norm": logs["grad_norm"], **self._guard.row(self.state.global_step)}
        began, step = self._row_began
        now = time.perf_counter()
        self._row_began = (now, self.state.global_step)
        samples = (self.state.global_step - step) * self.get_total_train_batch_size(self.args)
        super().log({**row, "samples_per_second": samples / (now - began)})

    def require_finite(self) -> None:
        """Look at all that was seen since the last look, and at the weights.

        Raises:
            VlkdError: something is not finite.
        """
        self._finite.check()
        self._finite.check_weights(self.trained, self.state.global_step)

    def _is_logged(self) -> bool:
        """Whether the optimizer step that goes on gets a row of metrics."""
        return is_logged(self.state.global_step + 1, int(self.args.logging_steps), self.state.max_steps)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The last moment before an optimizer step: what is not finite shall not reach the weights."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.accelerator.scaler is None:  # with float16, gradients may overflow: the scaler skips such steps
            self._finite.see_gradient(self.state.global_step + 1, norm)
        if self._finite.asks_freely or self._is_logged():
            self._finite.check()
        return norm

    def _first_picture(self, step: int) -> int:
        position = (step - 1) * self.get_total_train_batch_size(self.args)
        return int(self.data_collator([self.stream[position]])["picture_ids"][0])

    def _close_step(self) -> None:
        self.ledger.close_step()
        if self._feed:
            step = self.state.global_step
            self._feed.enqueue(step, self.stream.step_order(step) if self.stream.is_sorted else None)

    def _make_feed(self, queue: RingQueue, tokens: int, max_length: int) -> QueueFeed:
        return QueueFeed(
            queue.to(self.args.device),
            tokens,
            self.args.seed,
            1 if self.method.distillation.pooling == "mean" else max_length,
            rank=self.accelerator.process_index,
            ranks=self.accelerator.num_processes,
            gather=self._gather,
            reduce=self._reduce,
        )

    def _reduce(self, tensor: Tensor) -> Tensor:
        return cast(Tensor, self.accelerator.reduce(tensor, "sum"))

    def _gather(self, tensor: Tensor) -> Tensor:
        return cast(Tensor, self.accelerator.gather(tensor.unsqueeze(0)))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        return SequentialSampler(self.stream)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As the Trainer does, but under another name until it is whole; then the one before it goes."""
        self.require_finite()
        if self.args.should_save:
            discard_partial(self.checkpoints)
        self.accelerator.wait_for_everyone()
        self._memory = with_prefix("ledger", self.ledger.state_dict(self._reduce))
        if self.method.queue is not None:
            self._memory |= with_prefix("queue", self.method.queue.state_dict())
        try:
            with blamed_on(self.checkpoints):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    publish(self.checkpoints, f"checkpoint-{self.state.global_step}")
        except OSError:
            discard_partial(self.checkpoints)  # a full disk has no room for half a checkpoint
            raise
        finally:
            self._memory = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoints if self._memory is None else self.checkpoints / PARTIAL)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir) if output_dir else self.checkpoints
        folder.mkdir(parents=True, exist_ok=True)
        if not self.is_fsdp_enabled:  # the Trainer saves a sharded model beside its optimizer
            save_model(self.trained, str(folder / _MODEL))
        save_file(self._memory or {}, folder / _MEMORY)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_model(self.trained, folder / _MODEL)
        memory = load_file(folder / _MEMORY)
        ledger = without_prefix("ledger", memory)
        self.ledger.load_state_dict(ledger, self.args.device, self.accelerator.process_index)
        if self.method.queue is not None:
            self.method.queue.load_state_dict(without_prefix("queue", memory))
