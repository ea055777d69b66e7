"""Whether a contender computes what it is measured for."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers import Contender
from benchmarks.steps import Steps


def check(
    function: Contender,
    plain: Contender,
    tensors: dict[str, Tensor],
    students: tuple[str, ...],
    checked: int | None = None,
) -> None:
    """The plain form in float32 is the truth; half precision may be off by 5% of the largest entry.

    It holds the maps: of a batch for which that would be too much, only the first ``checked`` entries are compared.

    Raises:
        AssertionError: an output or a gradient is another one.
    """
    some = {name: x.detach()[:checked] for name, x in tensors.items()}
    steps = Steps(function, some, students)
    exact = Steps(plain, {name: x.detach().float() for name, x in some.items()}, students, steps.outgoing)
    tolerance = 1e-3 if tensors[students[0]].dtype == torch.float32 else 5e-2
    for number, (a, b) in enumerate(zip(steps.both(), exact.both(), strict=True)):
        off, largest = (a.float() - b).abs().max(), b.abs().max()
        assert off <= tolerance * largest, f"output {number} is off by {off:.3g}, its largest entry is {largest:.3g}"
