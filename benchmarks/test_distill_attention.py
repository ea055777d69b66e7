"""distill_attention against torch's fused attention beside attention_mse, and that attention alone."""

from __future__ import annotations

import pytest
import torch

from benchmarks import floors
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
def test_distill_attention(measure: Measure, device: str, case: tuple, name: str, phase: str) -> None:
    batch, heads, length, width_s, width_t, dtype = case
    torch.manual_seed(0)
    widths = {"q_s": width_s, "k_s": width_s, "v_s": width_s, "q_t": width_t, "k_t": width_t}
    tensors = {
        key: torch.randn(batch, heads, length, width, dtype=dtype, device=device) for key, width in widths.items()
    }
    measure(
        "distill_attention", name, phase, tensors, ("q_s", "k_s", "v_s"),
        shape=f"B {batch}, H {heads}, L {length}, D {width_s}/{width_t}", length=length,
        dtype=str(dtype).removeprefix("torch."), checked=4 if length > 512 else None,
        work=floors.distill_attention(name, phase, *case[:5], size=dtype.itemsize)._asdict(),
    )  # fmt: skip
