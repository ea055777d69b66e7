"""Train a detector from scratch on rendered pictures."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlkd.errors import VlkdError
from vlkd.progress import track
from vlkd.recipes import Detector, Detectors
from vlkd.regions.average_precision import ap50
from vlkd.regions.detectors import FasterRCNNWithAttributes, best_device, build_detector, to_tensors
from vlkd.regions.packaged import ROLES, save_detector
from vlkd.runs import write_atomically
from vlkd.scenes import Picture, make_picture

_PICTURES = 6000  # different ones
_LOG_EVERY = 25  # steps
_CLIP = 5.0  # largest gradient norm
_WARMUP = 0.1  # share of the steps
_WEIGHT_DECAY = 0.01
_MIXER = 0x9E3779B1  # spreads (seed, step) over the generator's seeds


@dataclass(frozen=True)
class Fitted:
    """A trained detector, in eval mode, and how good it is."""

    detector: FasterRCNNWithAttributes
    ap50: float
    seconds: float


def fit_detector(
    settings: Detector,
    seed: int,
    *,
    picture_size: int = 192,
    validation: int = 200,
    checkpoint: Path | None = None,
    checkpoint_every: int = 250,
    description: str = "detector",
    log: Callable[[dict[str, float]], None] | None = None,
) -> Fitted:
    """Train on the "detectors" split and score on "validation".

    Args:
        settings: the network and its schedule (AdamW, one cycle of the learning rate).
        seed: of the world, the weights and the sampling.
        picture_size: side of the rendered pictures in pixels.
        validation: pictures that AP50 is measured on.
        checkpoint: a file to save the state to as training goes on; if it exists, training resumes from
            it and ends with the same bits as if never interrupted.
        checkpoint_every: steps between two saves.
        description: label of the progress bar.
        log: called every few steps with the step and the last batch's loss terms.

    Raises:
        VlkdError: the checkpoint is of other settings, or the loss is not finite.
    """
    started = time.monotonic()
    device = best_device()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        detector = build_detector(settings).to(device).train()
        optimizer = torch.optim.AdamW(detector.parameters(), lr=settings.lr, weight_decay=_WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.lr, total_steps=settings.steps, pct_start=_WARMUP
        )
        state = _TrainingState(detector, optimizer, schedule, settings, seed, picture_size)
        first = state.load(checkpoint) if checkpoint else 0
        world = _World(seed, picture_size)
        for step in track(range(first, settings.steps), f"{description}: training"):
            # The step's own seed, so that a resumed run samples the same boxes as an uninterrupted one.
            torch.manual_seed((seed * _MIXER + step) % 2**63)
            pictures = [world[step * settings.batch + row] for row in range(settings.batch)]
            losses = _step(detector, optimizer, schedule, pictures)
            if log and (step + 1) % _LOG_EVERY == 0:
                log({"step": step + 1} | {name: round(float(loss.detach()), 4) for name, loss in losses.items()})
            if checkpoint and ((step + 1) % checkpoint_every == 0 or step + 1 == settings.steps):
                state.save(checkpoint, step + 1)
    detector.eval()
    held_out = (make_picture(seed, "validation", index, size=picture_size) for index in range(validation))
    score = ap50(detector, track(held_out, f"{description}: AP50", total=validation))
    return Fitted(detector, score, time.monotonic() - started)


def fit_detectors(
    folder: Path,
    settings: Detectors,
    seed: int,
    *,
    picture_size: int = 192,
    validation: int = 200,
    only: Sequence[str] = ROLES,
) -> dict[str, Fitted]:
    """Train both detectors (or those of ``only``) and save them to ``folder`` for :func:`load_detectors`.

    An interrupted call resumes when it is repeated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = {role: folder / f"{role}.checkpoint.pt" for role in only}
    fitted = {}
    for role, checkpoint in checkpoints.items():
        fitted[role] = fit_detector(
            getattr(settings, role),
            seed,
            picture_size=picture_size,
            validation=validation,
            checkpoint=checkpoint,
            description=f"{role}'s detector",
        )
        save_detector(folder, role, fitted[role].detector, ap50=fitted[role].ap50, seed=seed, picture_size=picture_size)
    # Only now: until both are done, a repeated call takes the finished one from its checkpoint.
    for checkpoint in checkpoints.values():
        checkpoint.unlink(missing_ok=True)
    return fitted


def targets_of(picture: Picture, device: torch.device) -> dict[str, Tensor]:
    """What Faster R-CNN trains on: boxes, labels (0 is background) and attribute values."""
    target = {
        "boxes": torch.from_numpy(picture.boxes).to(device),
        "labels": torch.from_numpy(picture.classes).to(device) + 1,
    }
    return target | {name: torch.from_numpy(values).to(device) for name, values in picture.attributes.items()}


def _step(
    detector: FasterRCNNWithAttributes,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    pictures: list[Picture],
) -> dict[str, Tensor]:
    device = next(detector.parameters()).device
    images = to_tensors([picture.pixels for picture in pictures], device)
    losses: dict[str, Tensor] = detector(images, [targets_of(picture, device) for picture in pictures])
    loss = torch.stack(list(losses.values())).sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(detector.parameters(), _CLIP)
    if not torch.isfinite(norm):
        terms = {name: round(float(value), 3) for name, value in losses.items()}
        raise VlkdError(f"The detector's training diverged ({terms}): lower its lr in the recipe.")
    optimizer.step()
    schedule.step()
    return losses


class _World:
    """The "detectors" split, rendered once and read again and again: rendering costs as much as a small step."""

    def __init__(self, seed: int, size: int) -> None:
        self._seed, self._size = seed, size
        self._rendered: dict[int, Picture] = {}

    def __getitem__(self, index: int) -> Picture:
        index %= _PICTURES
        if index not in self._rendered:
            self._rendered[index] = make_picture(self._seed, "detectors", index, size=self._size)
        return self._rendered[index]


class _TrainingState:
    """Everything that a resumed training needs."""

    def __init__(
        self,
        detector: FasterRCNNWithAttributes,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        settings: Detector,
        seed: int,
        picture_size: int,
    ) -> None:
        self._parts = {"detector": detector, "optimizer": optimizer, "schedule": schedule}
        self._run = {**settings.model_dump(), "seed": seed, "picture_size": picture_size}

    def save(self, path: Path, steps: int) -> None:
        parts: dict[str, Any] = {name: part.state_dict() for name, part in self._parts.items()}
        buffer = io.BytesIO()
        torch.save(parts | {"run": self._run, "steps": steps}, buffer)
        write_atomically(path, buffer.getvalue())

    def load(self, path: Path) -> int:
        """Steps already done; 0 where there is no checkpoint."""
        if not path.is_file():
            return 0
        saved = torch.load(path, weights_only=True, map_location="cpu")
        for name, value in self._run.items():
            if saved["run"].get(name) != value:
                raise VlkdError(
                    f"The checkpoint '{path}' was made with {name} = {saved['run'].get(name)}, but the recipe "
                    f"says {value}: delete it, or choose another folder."
                )
        for name, part in self._parts.items():
            part.load_state_dict(saved[name])
        return int(saved["steps"])
