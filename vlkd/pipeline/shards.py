"""Which of several processes this one is, as torchrun and accelerate say; no process group is needed."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from vlkd.errors import VlkdError


@dataclass(frozen=True)
class Shard:
    """Process ``rank`` of ``world``, the ``local``-th on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def from_environment(cls) -> Shard:
        """RANK, WORLD_SIZE and LOCAL_RANK; one process where they are not set.

        Raises:
            VlkdError: they are no numbers, or do not fit together.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        values = [os.environ.get(name, default) for name, default in zip(names, ("0", "1", "0"), strict=True)]
        if not all(value.isdecimal() for value in values) or int(values[0]) >= int(values[1]):
            told = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
            raise VlkdError(
                f"The environment says {told}, but RANK must be a number below WORLD_SIZE: start with torchrun."
            )
        return cls(*map(int, values))

    def device(self, name: str = "auto") -> torch.device:
        """The device of that name; "auto" is a GPU of this process's own if there is one, else the CPU.

        Raises:
            VlkdError: there is no such device.
        """
        gpus = torch.cuda.device_count()
        if name in ("auto", "cuda"):
            if gpus:
                return torch.device("cuda", self.local % gpus)
            name = "cpu" if name == "auto" else "cuda:0"
        try:
            device = torch.device(name)
        except RuntimeError:
            raise VlkdError(f"There is no device '{name}': give auto, cpu, cuda or cuda:NUMBER.") from None
        if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= gpus):
            raise VlkdError(
                f"Device '{name}' was asked for, but there are {gpus} GPUs: give auto, cpu or a GPU that is there."
            )
        return device


ONE_PROCESS = Shard()
