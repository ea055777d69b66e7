"""token_nce: `pytest benchmarks -k token_nce`."""

from __future__ import annotations

import pytest
import torch

from benchmarks import floors
from benchmarks.conftest import Measure
from benchmarks.peers import NAMES

# N, K, E, dtype
CASES = {
    "cpu": [(2048, 4096, 768, torch.float32), (2048, 4096, 768, torch.bfloat16)],
    "cuda": [
        (16384, 4096, 768, torch.bfloat16),
        (32768, 16384, 768, torch.bfloat16),
        (131072, 4096, 768, torch.bfloat16),
        (4096, 4096, 768, torch.float32),
    ],
}
PRESENT = CASES["cuda" if torch.cuda.is_available() else "cpu"]


@pytest.mark.parametrize("phase", floors.PHASES)
@pytest.mark.parametrize("name", NAMES["token_nce"])
@pytest.mark.parametrize("case", PRESENT, ids=str)
def test_token_nce(measure: Measure, device: str, case: tuple, name: str, phase: str) -> None:
    tokens, rows, width, dtype = case
    torch.manual_seed(0)
    h_t = torch.randn(tokens, width, device=device)
    tensors = {
        "h_s": (h_t + torch.randn_like(h_t)).to(dtype),
        "h_t": h_t.to(dtype),
        "negatives": torch.randn(rows, width, device=device).to(dtype),
    }
    measure(
        "token_nce", name, phase, tensors, ("h_s",),
        shape=f"N {tokens}, K {rows}, E {width}", length=rows,
        dtype=str(dtype).removeprefix("torch."),
        work=floors.token_nce(name, phase, *case[:3], size=dtype.itemsize)._asdict(),
    )  # fmt: skip
