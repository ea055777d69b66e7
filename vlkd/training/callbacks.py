"""What hangs on the trainer's loop: when to log, the metrics file, the progress bar."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlkd.progress import track
from vlkd.runs import Run, truncate_jsonl


def is_logged(step: int, every: int, last: int) -> bool:
    """Whether optimizer step ``step`` (from 1) gets a row of metrics: the first, every ``every``-th, the last."""
    return step == 1 or step % every == 0 or step == last


class LogSchedule(TrainerCallback):
    """Asks for a row of metrics at the steps that :func:`is_logged` names."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        # What a checkpoint says of these is what the run was begun with.
        state.save_steps, state.logging_steps = int(args.save_steps), int(args.logging_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if is_logged(state.global_step, int(args.logging_steps), state.max_steps):
            control.should_log = True


class MetricsFile(TrainerCallback):
    """Appends every row of metrics to a JSON-lines file; a resumed run cuts it back to its checkpoint first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if state.is_world_process_zero:
            truncate_jsonl(self.path, "step", state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs=None, **kwargs
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        row = {"step": state.global_step} | {key: value for key, value in logs.items() if key != "epoch"}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")


class TimeKept(TrainerCallback):
    """Keeps how long the run has been worked on, so that a resumed one goes on counting."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        self.run.note_time()


class ProgressBar(TrainerCallback):
    """One bar with the time left, the same as everywhere else in the package."""

    def __init__(self, description: str) -> None:
        self.description = description
        self._steps: Generator[int] = track((), description)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if state.is_world_process_zero:
            self._steps = track(range(state.global_step, state.max_steps), self.description)
            next(self._steps, None)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        next(self._steps, None)

    def close(self) -> None:
        """Take the bar away, wherever it is."""
        self._steps.close()
