"""How the suites time, and the conditions that are stored with what they measure."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.cases import Case
from benchmarks.checked import check
from benchmarks.conditions import conditions, version
from benchmarks.floors import ceilings
from benchmarks.peers import GPU_ONLY, LIBRARIES, contender, truth
from benchmarks.steps import Steps, peak_memory, seconds

ROUNDS = 10
ENOUGH = 1.0  # seconds of rounds on a CPU, where what else runs disturbs for a part of a second at a time
KEPT = ("min", "q1", "median", "q3", "max", "rounds")  # of pytest-benchmark's statistics, seconds

Measure = Callable[..., None]

# A machine that is lent for its GPU may lack what reads and writes region stores; the operators need none of it.
_OF_STORES = ("pydantic", "orjson", "pybase64", "pyarrow")
collect_ignore = (
    [] if all(map(importlib.util.find_spec, _OF_STORES)) else ["test_region_import.py", "test_region_store.py"]
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--grid", action="store_true", help="also every small shape of attention_mse, against eager alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--grid"):
        items[:] = [item for item in items if "grid" not in item.keywords]


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def measure(benchmark: Any, device: str) -> Measure:
    """Check a contender on the very tensors it is timed on, then time one phase of its step."""

    def run(case: Case, name: str, phase: str, **info: Any) -> None:
        if not case.takes(name):
            pytest.skip(f"{name} is not for this size and dtype")
        if name in GPU_ONLY and device == "cpu":
            pytest.skip(f"{name} runs on a GPU")
        if name in LIBRARIES:
            pytest.importorskip(name.replace("-", "_"))
        tensors = case.tensors(device)
        try:
            steps = Steps(contender(case.op, name), tensors, case.students)
            check(contender(case.op, name), truth(case.op, name), tensors, case.students, case.checked)
        except torch.OutOfMemoryError:
            pytest.skip("out of memory")
        benchmark.extra_info |= info | {"op": case.op, "contender": name, "phase": phase, "device": device}
        benchmark.extra_info |= case.info(name, phase)
        if phase == "both":
            benchmark.extra_info["peak_memory"] = peak_memory(steps.both, device)
            benchmark.extra_info["inputs"] = sum(x.nbytes for x in tensors.values())
        time_it(benchmark, *steps.ready(phase), device)

    return run


def time_it(benchmark: Any, function: Callable[[], object], calls: int, device: str) -> None:
    """Rounds of a function that makes so many calls of what is timed."""
    rounds = ROUNDS if device == "cuda" else max(ROUNDS, min(200, round(ENOUGH / seconds(function))))
    benchmark.pedantic(function, rounds=rounds, warmup_rounds=2)
    benchmark.extra_info["calls"] = calls


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Keep what a reader needs to repeat a measurement, and what the device can do at best."""
    found = conditions()["machine_info"]
    found["processor"] = machine_info["cpu"].get("brand_raw", found["processor"])
    machine_info.clear()
    machine_info |= found | {
        "libraries": {name: version(name) for name in LIBRARIES},
        "ceilings": ceilings("cuda" if torch.cuda.is_available() else "cpu"),
    }


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """One line of statistics a benchmark, in seconds a call."""
    for row in output_json["benchmarks"]:
        extra = row["extra_info"]
        calls = extra.pop("calls")
        kept = {key: row["stats"][key] / (1 if key == "rounds" else calls) for key in KEPT}
        row.clear()
        row |= {**extra, "seconds": kept}
    output_json["commit_info"] = {key: output_json["commit_info"].get(key) for key in ("id", "dirty")}
