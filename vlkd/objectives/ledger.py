"""The ledger of loss terms: each raw, weighted, and its share of the gradient."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from operator import mul

import torch
from torch import Tensor

_logger = logging.getLogger(__name__)

#: A term with more than this share of the gradient ...
DWARFING_SHARE = 0.99
#: ... in this many measurements in a row dwarfs the others.
DWARFING_ROWS = 3


class Ledger:
    """Keeps the books of one training run, without asking the device except when a row is asked for.

    ``record`` every micro-batch, ``measure`` on those whose step will be logged, ``close_step`` after every
    optimizer step, ``row`` when it is time to log. Raw values are means over the steps since the last row; gradients
    are those of the logged step.

    The gradient is measured at the *input of the student's last layer*: the last place through which all terms
    pass, because the attention loss reaches the last layer's queries and keys but not its output. Where more layers'
    attention is compared, what it gives the earlier ones is not in these numbers.

    Args:
        weights: name of each term → its weight in the loss.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.names = tuple(weights)
        self.weights = dict(weights)
        self._raw: Tensor | None = None  # [terms] float64: sum over the steps since the last row
        self._steps = 0
        self._squares: Tensor | None = None  # [terms] float64: squared gradient norms of the step being logged
        self._dwarfing = 0
        self._told: set[str] = set()

    def record(self, raw: Tensor) -> None:
        """Add a micro-batch's contribution, [terms]: sums over its rows, divided by the count of the whole step."""
        raw = raw.detach().double()
        self._raw = raw if self._raw is None else self._raw + raw

    def measure(self, weighted: Tensor, hidden: Tensor, scale: float = 1.0) -> None:
        """Add a micro-batch's squared gradient norms.

        Args:
            weighted: [terms], the weighted terms with their graph.
            hidden: the input of the student's last layer, [B, L, D].
            scale: the factor that keeps gradients in float16's range on their way; the norms are without it.
        """
        squares = []
        for term in (weighted * scale).unbind():
            (gradient,) = torch.autograd.grad(term, hidden, retain_graph=True, allow_unused=True)
            squares.append(hidden.new_zeros(()).double() if gradient is None else gradient.double().square().sum())
        total = torch.stack(squares) / scale**2
        self._squares = total if self._squares is None else self._squares + total

    def close_step(self) -> None:
        """One optimizer step has ended."""
        self._steps += 1

    def row(self, reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> dict[str, float]:
        """The row of metrics for the steps since the last one, and warnings where they are due.

        Args:
            reduce: adds a tensor up over all ranks.

        Returns:
            ``loss``, and for every term ``raw/…``, ``weighted/…``, and where measured ``gradient/…`` (the norm) and
            ``share/…`` (the norm over the sum of the terms' norms).
        """
        assert self._raw is not None, "row() before any record()"
        raw = (reduce(self._raw) / self._steps).tolist()
        norms = None if self._squares is None else reduce(self._squares).sqrt().tolist()
        self._raw, self._squares, self._steps = None, None, 0
        row: dict[str, float] = {"loss": sum(map(mul, self.weights.values(), raw))}
        for name, value in zip(self.names, raw, strict=True):
            row[f"raw/{name}"] = value
            row[f"weighted/{name}"] = self.weights[name] * value
        if norms is not None:
            shares = _shares(norms)
            for name, norm, share in zip(self.names, norms, shares, strict=True):
                row[f"gradient/{name}"] = norm
                row[f"share/{name}"] = share
            self._warn_if_dwarfing(shares)
        return row

    def state_dict(self, reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> dict[str, Tensor]:
        """What a checkpoint between two rows must keep, of all ranks together."""
        raw = torch.zeros(len(self.names), dtype=torch.float64) if self._raw is None else reduce(self._raw).cpu()
        return {"raw": raw, "steps": torch.tensor(self._steps), "dwarfing": torch.tensor(self._dwarfing)}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device, rank: int = 0) -> None:
        """Take up what :meth:`state_dict` kept; rank 0 holds the sum of all ranks."""
        self._steps = int(state["steps"])
        self._dwarfing = int(state["dwarfing"])
        raw = state["raw"].to(device)
        self._raw = None if not self._steps else raw if rank == 0 else torch.zeros_like(raw)

    def _warn_if_dwarfing(self, shares: list[float]) -> None:
        """Only terms that take part count: one alone (or one whose queue is still empty) dwarfs nobody."""
        largest = max(shares, default=0.0)
        others = sum(share > 0 for share in shares) - 1
        self._dwarfing = self._dwarfing + 1 if others > 0 and largest > DWARFING_SHARE else 0
        name = self.names[shares.index(largest)] if shares else ""
        if self._dwarfing < DWARFING_ROWS or name in self._told:
            return
        self._told.add(name)
        _logger.warning(
            "The loss term '%s' holds %.1f %% of the gradient and dwarfs the others: lower its weight or raise theirs.",
            name,
            100 * largest,
        )


def _shares(norms: list[float]) -> list[float]:
    total = sum(norms)
    return [norm / total if total else 0.0 for norm in norms]
