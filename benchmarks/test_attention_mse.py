"""attention_mse: `pytest benchmarks -k attention_mse`; every small shape with `-k small_shapes --grid`."""

from __future__ import annotations

import pytest
import torch

from benchmarks import floors
from benchmarks.cases import Case
from benchmarks.conftest import Measure
from benchmarks.peers import NAMES

# B, H, L = M, D_s, D_t, dtype; a transformer's captions and regions together are 50 to 200 tokens
CASES = {
    "cpu": [
        (16, 12, 50, 32, 64, torch.float32),
        (16, 12, 128, 32, 64, torch.float32),
        (16, 12, 128, 32, 64, torch.bfloat16),
        (16, 12, 197, 32, 64, torch.float32),
        (4, 12, 512, 32, 64, torch.float32),
        (1, 12, 1024, 32, 64, torch.float32),
    ],
    "cuda": [
        *((256, 12, length, 32, 64, torch.bfloat16) for length in (50, 128, 197, 256, 512, 1024, 2048)),
        (64, 12, 128, 32, 64, torch.float32),
    ],
}
PRESENT = CASES["cuda" if torch.cuda.is_available() else "cpu"]
GRID = [
    (batch, heads, length, 32, 64, torch.float32)
    for batch in (1, 4, 16)
    for heads in (1, 12)
    for length in (1, 17, 50, 128, 197, 256, 512)
]


@pytest.mark.parametrize("phase", floors.PHASES)
@pytest.mark.parametrize("name", NAMES["attention_mse"])
@pytest.mark.parametrize("case", PRESENT, ids=str)
def test_attention_mse(measure: Measure, case: tuple, name: str, phase: str) -> None:
    measure(Case("attention_mse", case[:5], case[5]), name, phase)


@pytest.mark.grid
@pytest.mark.parametrize("name", ["vlkd", "eager"])
@pytest.mark.parametrize("case", GRID, ids=str)
def test_attention_mse_at_small_shapes(measure: Measure, case: tuple, name: str) -> None:
    measure(Case("attention_mse", case[:5], case[5]), name, "both")
