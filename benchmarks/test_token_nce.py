"""token_nce: `pytest benchmarks -k token_nce`; how its time grows with each size: `-k sizes`."""

from __future__ import annotations

import pytest
import torch

from benchmarks import floors
from benchmarks.conftest import Measure
from benchmarks.peers import NAMES

# N, K, E, dtype
CASES = {
    "cpu": [(2048, 4096, 768, torch.float32), (2048, 4096, 768, torch.bfloat16), (128, 1024, 768, torch.float32)],
    "cuda": [
        (16384, 4096, 768, torch.bfloat16),
        (32768, 16384, 768, torch.bfloat16),
        (131072, 4096, 768, torch.bfloat16),
        (4096, 4096, 768, torch.float32),
        (128, 1024, 768, torch.float32),
    ],
}
# One size at a time around N, K, E; forward and backward together.
SIZES = {
    "cpu": ((1024, 2048, 768), ((256, 4096), (256, 1024, 8192), (128, 256, 1024)), torch.float32),
    "cuda": (
        (16384, 4096, 768),
        ((2048, 4096, 8192, 32768, 65536, 131072), (256, 1024, 16384, 65536), (128, 256, 512, 1024)),
        torch.bfloat16,
    ),
}
MOST_PAIRS = 2**24
PLACE = "cuda" if torch.cuda.is_available() else "cpu"
MIDDLE, OTHERS, DTYPE = SIZES[PLACE]
GROWING = [
    ("NKE"[axis], (*MIDDLE[:axis], size, *MIDDLE[axis + 1 :], DTYPE))
    for axis, sizes in enumerate(OTHERS)
    for size in sorted((*sizes, MIDDLE[axis]))
]


@pytest.mark.parametrize("phase", floors.PHASES)
@pytest.mark.parametrize("name", NAMES["token_nce"])
@pytest.mark.parametrize("case", CASES[PLACE], ids=str)
def test_token_nce(measure: Measure, device: str, case: tuple, name: str, phase: str) -> None:
    run(measure, device, case, name, phase)


@pytest.mark.parametrize("name", ["vlkd", "vlkd cuda", "eager", "torch.compile"])
@pytest.mark.parametrize(("size", "case"), GROWING, ids=str)
def test_token_nce_at_other_sizes(measure: Measure, device: str, size: str, case: tuple, name: str) -> None:
    run(measure, device, case, name, "both", growing=size)


def run(measure: Measure, device: str, case: tuple, name: str, phase: str, **info: str) -> None:
    """Time one contender on one case."""
    tokens, rows, width, dtype = case
    if name == "vlkd cuda" and dtype == torch.float32:
        pytest.skip("the CUDA kernels are for half precision")
    if name == "pytorch-metric-learning" and tokens * tokens * rows > MOST_PAIRS:
        pytest.skip("its memory is tokens times tokens times rows")
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
        dtype=str(dtype).removeprefix("torch."), **info,
        work=floors.token_nce(name, phase, *case[:3], size=dtype.itemsize)._asdict(),
    )  # fmt: skip
