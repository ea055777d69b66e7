"""Random pictures out of a store into a batch, the files in the page cache: `pytest benchmarks -k region_store`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.conftest import time_it
from benchmarks.floors import Work
from benchmarks.peers import NAMES
from benchmarks.stores import READERS, records
from vlkd.data.store import RegionBatch

PICTURES, BATCH, REGIONS, WIDTH = 512, 64, 50, 2048


@pytest.mark.parametrize("name", NAMES["region_store"])
def test_region_store(benchmark: Any, tmp_path: Path, name: str) -> None:
    if name == "LMDB":
        pytest.importorskip("lmdb")
    read = READERS[name](tmp_path, records(PICTURES, REGIONS, WIDTH))
    batch = RegionBatch.empty(BATCH, REGIONS, WIDTH + 6, WIDTH + 6, "paired")
    rng = np.random.default_rng(0)

    def step() -> None:
        read(rng.choice(PICTURES, BATCH, replace=False).tolist(), batch)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensors in memory that cannot be written
        read(range(4), batch)
        for row, picture in enumerate(records(4, REGIONS, WIDTH)):
            for side, features in zip(
                batch.features, (picture.student_features, picture.teacher_features), strict=True
            ):
                torch.testing.assert_close(side[row], torch.from_numpy(features), rtol=1e-6, atol=1e-6)
        time_it(benchmark, step, 1, "cpu")
    half, single = BATCH * REGIONS * WIDTH * 2 * 2, BATCH * REGIONS * WIDTH * 2 * 4
    benchmark.extra_info |= {
        "op": "region_store", "contender": name, "phase": "read", "device": "cpu",
        "shape": f"B {BATCH}, R {REGIONS}, D 2 x {WIDTH}", "dtype": "float16",
        "work": Work(half + single, 0, 0)._asdict(),
    }  # fmt: skip
