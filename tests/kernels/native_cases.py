"""What the tests of the compiled operators share: inputs, the tolerance rule, a ring queue written as Python lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vlkd_kernels import extension
from vlkd_kernels.ring_queue import native as ring

needs_extension = pytest.mark.skipif(extension.load() is None, reason=f"no extension: {extension.why_not()}")

# Error allowed above that of plain PyTorch in the same dtype, relative to the largest true value. The operators
# accumulate in float32 whatever the inputs' dtype, so bfloat16 inputs (exact in the truth) get float32's slack, about
# 16 roundings. What a processor's bfloat16 units round is allowed for entry by entry (`moved`).
SLACK = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}
DTYPES = list(SLACK)


def processor_flags() -> str:
    """What this processor can do and torch may use, as Linux tells it."""
    information = Path("/proc/cpuinfo")
    usable = information.exists() and "AVX512" in torch.backends.cpu.get_cpu_capability()
    return information.read_text() if usable else ""


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Memory that is not written holds NaN."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def assert_true_to(truth: Tensor, got: Tensor, naive: Tensor, dtype: torch.dtype, moved: Tensor | float = 0.0) -> None:
    """`moved` is what a documented rounding on the way may move every entry by, at most."""
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got.shape == truth.shape
    if truth.numel() == 0:
        return
    error = ((got.double() - truth).abs() - moved).max().item()
    naive_error = (naive.double() - truth).abs().max().item()
    # in half precision plain PyTorch is no bar; where the truth is 0 by cancellation (E = 1) it is no scale
    bar = naive_error if dtype in (torch.float64, torch.float32) else 0
    limit = bar + SLACK[dtype] * max(truth.abs().max().item(), 1e-3)
    assert error <= limit, f"error {error:.3g}, allowed {limit:.3g}"


def attention_inputs(
    b: int, h: int, q: int, m: int, *, heads=(None, None), widths=(8, 12), dtype=torch.float32
) -> list:
    heads_s, heads_t = (h if x is None else x for x in heads)
    shapes = (b, h, q, widths[0]), (b, heads_s, m, widths[0]), (b, h, q, widths[1]), (b, heads_t, m, widths[1])
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def nce_inputs(n: int, k: int, e: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(rows, e, dtype=torch.float64).to(dtype) for rows in (n, n, k)]


class Ring:
    """The operator's four state tensors, and the same queue as Python lists."""

    def __init__(
        self, size: int, width: int, dtype: torch.dtype = torch.float32, device: str = "cpu",
        write: Callable[..., None] = ring.enqueue_,
    ) -> None:  # fmt: skip
        self.write = write
        self.rows = torch.zeros(size, width, dtype=dtype, device=device)
        self.ids = torch.full((size,), -1, device=device)
        self.head, self.fill = torch.tensor(0, device=device), torch.tensor(0, device=device)
        self.slots: list[tuple[list[float], int]] = [([0.0] * width, -1)] * size
        self.next = self.written = 0

    def state(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.rows, self.ids, self.head, self.fill

    def enqueue(self, new: Tensor, mask: Tensor | None, ids: Tensor | None) -> None:
        self.write(*self.state(), new, mask, ids, False)
        for i, row in enumerate(new.to(self.rows.dtype).tolist()):
            if self.slots and (mask is None or mask[i]):
                self.slots[self.next] = (row, -1 if ids is None else int(ids[i]))
                self.next = (self.next + 1) % len(self.slots)
                self.written += 1

    def check(self) -> None:
        assert self.rows.tolist() == [row for row, _ in self.slots]
        assert self.ids.tolist() == [i for _, i in self.slots]
        assert (self.head.item(), self.fill.item()) == (self.next, min(self.written, len(self.slots)))
