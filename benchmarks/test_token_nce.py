"""token_nce: `pytest benchmarks -k token_nce`; how its time grows with each size: `-k sizes`."""

from __future__ import annotations

import pytest
import torch

from benchmarks import floors
from benchmarks.cases import Case
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
def test_token_nce(measure: Measure, case: tuple, name: str, phase: str) -> None:
    measure(Case("token_nce", case[:3], case[3]), name, phase)


@pytest.mark.parametrize("name", ["vlkd", "vlkd cuda", "eager", "torch.compile"])
@pytest.mark.parametrize(("size", "case"), GROWING, ids=str)
def test_token_nce_at_other_sizes(measure: Measure, size: str, case: tuple, name: str) -> None:
    measure(Case("token_nce", case[:3], case[3]), name, "both", growing=size)
