"""Oscar's files into a feature store, files in the page cache: `pytest benchmarks -k region_import`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conftest import time_it
from benchmarks.floors import Work
from benchmarks.peers import NAMES
from benchmarks.stores import records, tsv_features, write_tsv
from vlkd.data.oscar import Sources, import_oscar
from vlkd.progress import report_to

PICTURES, REGIONS, WIDTH = 96, 50, 2048


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The student's detector's and the teacher's features of the same boxes."""
    return write_tsv(tmp_path_factory.mktemp("oscar"), records(PICTURES, REGIONS, WIDTH))[0]


@pytest.mark.parametrize("name", NAMES["region_import"])
def test_region_import(benchmark: Any, tmp_path: Path, files: list[Path], name: str) -> None:
    def lines(read: Callable[[bytes], object]) -> None:
        for path in files:
            with path.open("rb") as file:
                for line in file:
                    read(line)

    def write() -> None:
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        import_oscar(Sources(student=files[0], teacher=files[1]), tmp_path / "data")

    steps: dict[str, Callable[[], None]] = {
        "vlkd": write,
        "JSON + base64, nothing written": lambda: lines(tsv_features),
        "bytes alone, nothing written": lambda: lines(len),
    }
    with report_to(lambda *_: None):
        time_it(benchmark, steps[name], 1, "cpu")
    text = sum(path.stat().st_size for path in files)
    written = PICTURES * 2 * REGIONS * WIDTH * 2 if name == "vlkd" else 0
    benchmark.extra_info |= {
        "op": "region_import", "contender": name, "phase": "write", "device": "cpu",
        "shape": f"{PICTURES} pictures, R {REGIONS}, D 2 x {WIDTH}", "dtype": "float32",
        "work": Work(text + written, 0, 0)._asdict(),
    }  # fmt: skip
