"""Where metrics go beside metrics.jsonl: TensorBoard's events, Weights & Biases, MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, get_reporting_integration_callbacks

from vlkd.training.checkpoints import step_of


def tracker_callbacks(names: Sequence[str], folder: Path, checkpoint: Path | None) -> list[TrainerCallback]:
    """The trackers of a run in ``folder`` that goes on from ``checkpoint``, for its main process."""
    callbacks: list[TrainerCallback] = []
    for name in names:
        if name == "tensorboard":
            callbacks.extend(_tensorboard(folder, checkpoint))
        else:
            callbacks.extend(integration() for integration in get_reporting_integration_callbacks([name]))
        if name == "wandb":
            callbacks.append(_FinishWandb())
    return callbacks


def _tensorboard(folder: Path, checkpoint: Path | None) -> list[TrainerCallback]:
    """TensorBoard's events, if TensorBoard is installed; those after the checkpoint are not shown any more."""
    if find_spec("tensorboard") is None:
        return []
    from torch.utils.tensorboard import SummaryWriter

    purge_step = step_of(checkpoint) + 1 if checkpoint else None
    return [TensorBoardCallback(SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step))]


class _FinishWandb(TrainerCallback):
    """Ends the run that the integration began, so that the next stage in this process begins its own."""

    def __init__(self) -> None:
        import wandb  # type: ignore[import-not-found]

        self._wandb: Any = wandb
        self._ours = wandb.run is None

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if self._ours:
            self._wandb.finish()
