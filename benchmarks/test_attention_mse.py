"""attention_mse, forward and backward together: `pytest benchmarks`; every small shape with `pytest benchmarks --grid`."""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import Measure
from benchmarks.peers import CONTENDERS, attention_mse, contender

# B, H, L = M, D_s, D_t, dtype; a transformer's captions and regions together are 70 to 200 tokens
CASES = {
    "cpu": [
        (16, 12, 128, 32, 64, torch.float32),
        (16, 12, 128, 32, 64, torch.bfloat16),
        (4, 12, 512, 32, 64, torch.float32),
    ],
    "cuda": [
        (256, 12, 128, 32, 64, torch.bfloat16),
        (256, 12, 197, 32, 64, torch.bfloat16),
        (256, 12, 256, 32, 64, torch.bfloat16),
        (256, 12, 512, 32, 64, torch.bfloat16),
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


@pytest.mark.parametrize("name", CONTENDERS)
@pytest.mark.parametrize("case", PRESENT, ids=str)
def test_attention_mse(measure: Measure, device: str, case: tuple, name: str) -> None:
    run(measure, device, case, name)


@pytest.mark.grid
@pytest.mark.parametrize("name", ["vlkd", "eager"])
@pytest.mark.parametrize("case", GRID, ids=str)
def test_attention_mse_at_small_shapes(measure: Measure, device: str, case: tuple, name: str) -> None:
    run(measure, device, case, name)


def run(measure: Measure, device: str, case: tuple, name: str) -> None:
    """Time one contender on one case."""
    batch, heads, length, width_s, width_t, dtype = case
    torch.manual_seed(0)
    tensors = {
        key: torch.randn(batch, heads, length, width, dtype=dtype, device=device)
        for key, width in (("q_s", width_s), ("k_s", width_s), ("q_t", width_t), ("k_t", width_t))
    }
    measure(
        contender("attention_mse", name),
        attention_mse,
        tensors,
        ("q_s", "k_s"),
        op="attention_mse",
        contender=name,
        shape=f"B {batch}, H {heads}, L {length}, D {width_s}/{width_t}",
        dtype=str(dtype).removeprefix("torch."),
    )
