"""The ring queue's write, beside a plain copy of the same rows and what others do: `pytest benchmarks -k ring_queue`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from benchmarks.conftest import time_it
from benchmarks.floors import Work
from benchmarks.peers import LIBRARIES, NAMES, ring_write
from benchmarks.steps import captured, seconds

# N, K, E, dtype
CASE = {"cpu": (1024, 4096, 768, torch.float32), "cuda": (8192, 65536, 768, torch.bfloat16)}
WAITING = ("MoCo", "lightly")  # for the device, so that they cannot be captured


@pytest.mark.parametrize("name", NAMES["ring_queue"])
@pytest.mark.parametrize("masked", [False, True], ids=["all rows", "masked rows"])
def test_ring_queue(benchmark: Any, device: str, masked: bool, name: str) -> None:
    if name in LIBRARIES:
        pytest.importorskip(name)
    if masked and name in WAITING:
        pytest.skip("it knows no mask")
    count, size, width, dtype = CASE[device]
    torch.manual_seed(0)
    rows = torch.randn(count, width, device=device).to(dtype)
    mask = torch.rand(count, device=device) < 0.75 if masked else None
    write, stored = ring_write(name, size, rows, mask)
    write()
    chosen = rows if mask is None else rows[mask] if name != "copy" else rows[: int(mask.sum())]
    torch.testing.assert_close(stored()[: len(chosen)], F.normalize(chosen, dim=-1))

    function, calls = (write, 1) if device == "cpu" else waiting(write) if name in WAITING else captured(write)
    time_it(benchmark, function, calls, device)
    written = f", {len(chosen)} written" if masked else ""
    benchmark.extra_info |= {
        "op": "ring_queue", "contender": name, "phase": "write", "device": device,
        "shape": f"N {count}{written}, K {size}, E {width}", "dtype": str(dtype).removeprefix("torch."),
        "work": Work(2 * len(chosen) * width * dtype.itemsize, 0, 0)._asdict(),
    }  # fmt: skip


def waiting(write: Any) -> tuple[Any, int]:
    """As `captured`, without a graph."""

    def repeat(times: int = 1) -> None:
        for _ in range(times):
            write()
        torch.cuda.synchronize()

    times = max(1, min(100, round(0.02 / seconds(repeat))))
    return lambda: repeat(times), times
