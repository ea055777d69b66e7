"""The sizes that are measured, by operator: their tensors, and what a step of them must do at least.

Shapes: B batch, H heads, L queries and keys, D_s and D_t head widths; N tokens, K queue rows, E width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import floors

ATTENTION = ("attention_mse", "distill_attention")


class Case(NamedTuple):
    """One size of an operator.

    Attributes:
        op: its name.
        sizes: B, H, L, D_s, D_t of attention; N, K, E of `token_nce`.
        dtype: of all tensors.
    """

    op: str
    sizes: tuple[int, ...]
    dtype: torch.dtype

    @property
    def students(self) -> tuple[str, ...]:
        """The tensors that are differentiated."""
        return {"attention_mse": ("q_s", "k_s"), "distill_attention": ("q_s", "k_s", "v_s"), "token_nce": ("h_s",)}[
            self.op
        ]

    def tensors(self, device: str) -> dict[str, Tensor]:
        """Random ones, the same every time."""
        torch.manual_seed(0)
        if self.op in ATTENTION:
            *outer, width_s, width_t = self.sizes
            widths = dict.fromkeys(self.students, width_s) | {"q_t": width_t, "k_t": width_t}
            return {name: torch.randn(*outer, width, dtype=self.dtype, device=device) for name, width in widths.items()}
        tokens, rows, width = self.sizes
        h_t = torch.randn(tokens, width, device=device)
        return {
            "h_s": (h_t + torch.randn_like(h_t)).to(self.dtype),
            "h_t": h_t.to(self.dtype),
            "negatives": torch.randn(rows, width, device=device).to(self.dtype),
        }

    @property
    def checked(self) -> int | None:
        """Entries of the batch that are compared with the plain form, whose maps are large; None compares all."""
        if self.op in ATTENTION:
            return 4 if self.sizes[2] > 512 else None
        return None

    def info(self, name: str, phase: str) -> dict[str, Any]:
        """What a stored row says of it."""
        work = getattr(floors, self.op)(name, phase, *self.sizes, size=self.dtype.itemsize)
        if self.op in ATTENTION:
            batch, heads, length, width_s, width_t = self.sizes
            shape, length = f"B {batch}, H {heads}, L {length}, D {width_s}/{width_t}", length
        else:
            tokens, length, width = self.sizes
            shape = f"N {tokens}, K {length}, E {width}"
        dtype = str(self.dtype).removeprefix("torch.")
        return {"shape": shape, "length": length, "dtype": dtype, "work": work._asdict()}

    def takes(self, name: str) -> bool:
        """Whether a contender is for this size; the CUDA kernels are for half precision, attention's for short heads."""
        if name == "vlkd cuda":
            return self.dtype != torch.float32 and (self.op == "token_nce" or self.sizes[2] <= 256)
        if name == "pytorch-metric-learning":  # its memory is tokens times tokens times rows
            return self.sizes[0] * self.sizes[0] * self.sizes[1] <= MOST_PAIRS
        return True


MOST_PAIRS = 2**24
