"""distill_attention against torch's fused attention beside attention_mse, and that attention alone."""

from __future__ import annotations

import pytest
import torch

from benchmarks import floors
from benchmarks.cases import Case
from benchmarks.conftest import Measure
from benchmarks.peers import NAMES

# B, H, L = M, D_s, D_t, dtype
CASES = {
    "cpu": [(16, 12, 128, 32, 64, torch.float32)],
    "cuda": [
        *((256, 12, length, 32, 64, torch.bfloat16) for length in (50, 128, 197, 256, 512, 1024, 2048)),
    ],
}
PRESENT = CASES["cuda" if torch.cuda.is_available() else "cpu"]


@pytest.mark.parametrize("phase", floors.PHASES)
@pytest.mark.parametrize("name", NAMES["distill_attention"])
@pytest.mark.parametrize("case", PRESENT, ids=str)
def test_distill_attention(measure: Measure, case: tuple, name: str, phase: str) -> None:
    measure(Case("distill_attention", case[:5], case[5]), name, phase)
