"""A training whose numbers are not finite any more is stopped, with the step, the term and the picture it began with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vlkd.errors import VlkdError
from vlkd.training.checkpoints import latest_checkpoint, step_of
from vlkd.training.trained import Forward

# B samples of a micro-batch, W ranks.

_NEVER = torch.iinfo(torch.int64).max
_GRADIENT = "gradient"
#: Where a value that is not finite was met, in the order in which it is looked for: what a later one reads comes first.
_PLACES = (
    "the features that the student reads",
    "the features that the teacher reads",
    "the scores of the answers",
    "the teacher's hidden states",
    "the student's hidden states",
)
_IN_BATCH = ("student_regions", "teacher_regions", "answers")


class FiniteWatch:
    """Watches loss terms, gradient norm and weights of one training.

    ``see`` every micro-batch; on a GPU it asks the device nothing unless ``look`` is set, and only keeps there in which step
    each term was not finite for the first time. ``check`` raises on every rank alike.

    Args:
        terms: names of the loss terms.
        device: of the loss.
        checkpoints: folder of the training's checkpoints.
        name_of: names a picture by its id.
        first_of: the id of the first picture of an optimizer step (from 1).
        gather: stacks a tensor [...] of every rank to [W, ...].
    """

    def __init__(
        self,
        terms: Sequence[str],
        device: torch.device,
        checkpoints: Path,
        name_of: Callable[[int], str],
        first_of: Callable[[int], int],
        gather: Callable[[Tensor], Tensor] = lambda tensor: tensor.unsqueeze(0),
    ) -> None:
        self._checkpoints = checkpoints
        self._name_of, self._first_of = name_of, first_of
        self._names = (*terms, _GRADIENT)
        self._gather = gather
        self._first = torch.full((len(self._names),), _NEVER, dtype=torch.int64, device=device)  # step, from 1
        # Step, picture's id, index in _PLACES, whether all samples of the micro-batch are alike.
        self._culprit: tuple[int, ...] = (_NEVER, -1, -1, 0)
        self.asks_freely = device.type == "cpu"

    def see(
        self,
        step: int,
        weighted: Tensor,
        batch: Mapping[str, Tensor],
        student: Forward,
        teacher: Forward | None,
        look: bool = False,
    ) -> None:
        """Note a micro-batch of optimizer step ``step``.

        Args:
            weighted: [terms], the weighted loss terms.
            batch, student, teacher: what they were computed from.
            look: ask the device, and find the picture, at once; on a CPU this is done in any case.
        """
        sound = weighted.detach().isfinite()
        if (look or self.asks_freely) and not bool(sound.all()) and self._culprit[0] == _NEVER:
            self._culprit = (step, *_first_culprit(batch, student, teacher))
        self._note(slice(0, -1), sound, step)

    def see_gradient(self, step: int, norm: Any) -> None:
        """Note the norm of an optimizer step's whole gradient."""
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        sound = torch.as_tensor(norm, device=self._first.device).isfinite().reshape(1)
        self._note(slice(-1, None), sound, step)

    def check(self) -> None:
        """Stop if anything that was seen is not finite; all ranks must call it.

        Raises:
            VlkdError: with step, term and picture.
        """
        own = torch.cat((self._first, self._first.new_tensor(self._culprit)))
        every = self._gather(own).tolist()  # [W][terms + 1 + 4]
        firsts = [min(steps) for steps in zip(*(rank[:-4] for rank in every), strict=True)]
        step = min(firsts)
        if step == _NEVER:
            return
        told = [name for name, first in zip(self._names, firsts, strict=True) if first == step and name != _GRADIENT]
        what = _listed(told) if told else "the gradient, though every loss term is finite,"
        culprits = [tuple(rank[-3:]) for rank in every if rank[-4] == step]
        where = f"the step's first picture is '{self._name_of(self._first_of(step))}'"
        if told and culprits:
            where = _where(culprits, self._name_of)
        raise VlkdError(
            f"{self._at(step)}: {what} {'are' if len(told) > 1 else 'is'} not finite ({where}). {self._stopped()}"
        )

    def check_weights(self, module: nn.Module, step: int) -> None:
        """Stop if a weight of ``module`` is not finite; all ranks must call it.

        Raises:
            VlkdError: with step and the weight's name.
        """
        names, tensors = zip(*module.named_parameters(), strict=True)
        local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
        sound = torch.stack([tensor.detach().isfinite().all() for tensor in local]).to(self._first.device)
        everywhere = self._gather(sound.long()).amin(0).tolist()
        bad = [name for name, good in zip(names, everywhere, strict=True) if not good]
        if bad:
            raise VlkdError(
                f"{self._at(step)}: {len(bad)} of {len(names)} weight tensors are not finite, '{bad[0]}' first. {self._stopped()}"
            )

    def _at(self, step: int) -> str:
        return f"'{self._checkpoints.parent}', step {step}"

    def _stopped(self) -> str:
        checkpoint = latest_checkpoint(self._checkpoints)
        kept = (
            "there is no checkpoint yet"
            if checkpoint is None
            else f"the checkpoint of step {step_of(checkpoint)} is kept"
        )
        return (
            f"The training was stopped and {kept}: mend that picture's data if they are the cause, else start again in another "
            "folder with a lower learning rate or other weights of the terms."
        )

    def _note(self, part: slice, sound: Tensor, step: int) -> None:
        if self.asks_freely and bool(sound.all()):
            return
        self._first[part] = self._first[part].clamp(max=step).where(~sound, self._first[part])


def _first_culprit(batch: Mapping[str, Tensor], student: Forward, teacher: Forward | None) -> tuple[int, int, int]:
    """The first sample with a value that is not finite: its picture's id, the place, whether all samples are alike.

    Where no sample by itself has one, the first sample with the place -1.
    """
    valid = batch["valid"]
    found = [batch.get(name) for name in _IN_BATCH]
    for forward in (teacher, student):
        hidden = None if forward is None else forward.hidden
        # Padding may hold anything.
        found.append(None if hidden is None else hidden.masked_fill(~valid.unsqueeze(-1), 0))
    for place, tensor in enumerate(found):
        if tensor is None:
            continue
        bad = (~tensor.detach().isfinite()).flatten(1).any(1)  # [B]
        if bool(bad.any()):
            row = int(bad.long().argmax())
            return int(batch["picture_ids"][row]), place, int(bool(bad.all()))
    return int(batch["picture_ids"][0]), -1, 0


def _where(culprits: list[tuple[int, int, int]], name_of: Callable[[int], str]) -> str:
    """The best of what the ranks found, in words."""
    picture, place, alike = max(culprits, key=lambda found: (found[1] >= 0, -found[1]))
    if place < 0:
        return f"in no picture by itself; the batch's first is '{name_of(picture)}'"
    if alike:
        return f"so are {_PLACES[place]} in all of the batch, whose first picture is '{name_of(picture)}'"
    return f"so are {_PLACES[place]} for picture '{name_of(picture)}'"


def _listed(names: list[str]) -> str:
    *others, last = [f"'{name}'" for name in names]
    return f"the loss terms {', '.join(others)} and {last}" if others else f"the loss term {last}"
