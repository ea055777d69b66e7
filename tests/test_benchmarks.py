"""The tools around the measurements: floors, tables, figures, the profiler's entry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import floors, profile
from benchmarks.table import RESULTS

STORED = sorted(path for path in RESULTS.glob("*.json") if path.name != "latest.json")


def test_floors_of_known_shapes() -> None:
    """An H200 copies 4.3 TB/s: 128 tokens in bfloat16 take 47 us in one pass and 23 us to scale the gradients."""
    both, backward = (
        floors.attention_mse("vlkd", phase, 256, 12, 128, 32, 64, 2).bytes / 4.3e12 for phase in ("both", "backward")
    )
    assert backward == pytest.approx(23e-6, rel=0.03) and both - backward == pytest.approx(47e-6, rel=0.03)
    nce = floors.token_nce("vlkd", "both", 32768, 16384, 768, 2)
    assert nce.operations == 4 * 32768 * 16384 * 768
    assert floors.attention_mse("eager", "both", 1, 1, 512, 32, 64, 4).bytes > 22 * 512 * 512 * 4


def test_a_floor_is_that_of_the_slowest_part() -> None:
    best = {"bytes_per_second": 10.0, "operations_per_second": {"float32": 100.0}, "exponentials_per_second": 5.0}
    work = {"bytes": 20.0, "operations": 100.0, "exponentials": 5.0}
    assert floors.floor(work, best, "float32") == (2.0, "memory")
    assert floors.floor(work | {"exponentials": 20.0}, best, "float32") == (4.0, "exponentials")
    assert floors.floor(work | {"operations": 0.0}, best, "float16") == (2.0, "memory")


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_measurements_hold_what_a_reader_needs(path: Path) -> None:
    run = json.loads(path.read_text())
    assert {"processor", "threads", "gpu", "torch", "triton", "ceilings"} <= run["machine_info"].keys()
    for row in run["benchmarks"]:
        assert row["seconds"]["q1"] <= row["seconds"]["median"] <= row["seconds"]["q3"]
        assert ("peak_memory" in row) == (row["phase"] == "both")


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_the_figures_are_those_of_the_stored_measurements(path: Path, tmp_path: Path) -> None:
    plots = pytest.importorskip("benchmarks.plots")
    for figure in plots.draw(path, tmp_path):
        committed = plots.FIGURES / figure.name
        marks = [text.count("<use ") for text in (figure.read_text(), committed.read_text())]
        assert marks[0] == marks[1] > 0, "run `python -m benchmarks.plots`"


def test_profile_writes_a_trace(tmp_path: Path) -> None:
    shape, trace = profile.parse_shape("attention_mse", "1,2,16,8/16"), tmp_path / "trace.json"
    table = profile.profile("attention_mse", "vlkd", shape, torch.float32, "both", 2, trace)
    assert "attention_mse both 1" in table
    assert any(event.get("name") == "attention_mse both 1" for event in json.loads(trace.read_text())["traceEvents"])


@pytest.mark.parametrize(("op", "text"), [("attention_mse", "4,12,128"), ("token_nce", "4,12,128,32/64")])
def test_profile_says_what_a_shape_looks_like(op: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"--shape of {op} is .*got '{text}'"):
        profile.parse_shape(op, text)
