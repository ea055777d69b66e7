"""How the suites time, and the conditions that are stored with what they measure."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.floors import ceilings
from benchmarks.peers import GPU_ONLY, LIBRARIES, Contender, contender, truth
from benchmarks.steps import Steps, peak_memory, seconds

ROUNDS = 10
ENOUGH = 1.0  # seconds of rounds on a CPU, where what else runs disturbs for a part of a second at a time
KEPT = ("min", "q1", "median", "q3", "max", "rounds")  # of pytest-benchmark's statistics, seconds

Measure = Callable[..., None]


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

    def run(
        op: str,
        name: str,
        phase: str,
        tensors: dict[str, Tensor],
        students: tuple[str, ...],
        checked: int | None = None,
        **info: Any,
    ) -> None:
        if name in GPU_ONLY and device == "cpu":
            pytest.skip(f"{name} runs on a GPU")
        if name in LIBRARIES:
            pytest.importorskip(name.replace("-", "_"))
        try:
            steps = Steps(contender(op, name), tensors, students)
            _check(contender(op, name), truth(op, name), tensors, students, checked)
        except torch.OutOfMemoryError:
            pytest.skip("out of memory")
        benchmark.extra_info |= info | {"op": op, "contender": name, "phase": phase, "device": device}
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


def _check(
    function: Contender, plain: Contender, tensors: dict[str, Tensor], students: tuple[str, ...], checked: int | None
) -> None:
    """The plain form in float32 is the truth; half precision may be off by 5% of the largest entry.

    It holds the maps: of a batch for which that would be too much, only the first `checked` entries are compared.
    """
    some = {name: x.detach()[:checked] for name, x in tensors.items()}
    steps = Steps(function, some, students)
    exact = Steps(plain, {name: x.detach().float() for name, x in some.items()}, students, steps.outgoing)
    tolerance = 1e-3 if tensors[students[0]].dtype == torch.float32 else 5e-2
    for a, b in zip(steps.both(), exact.both(), strict=True):
        assert (a.float() - b).abs().max() <= tolerance * b.abs().max()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Keep what a reader needs to repeat a measurement, and what the device can do at best."""
    processor = machine_info["cpu"].get("brand_raw", platform.processor())
    gpu = torch.cuda.is_available()
    machine_info.clear()
    machine_info |= {
        "processor": processor,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "cuda": torch.version.cuda if gpu else None,
        "ceilings": ceilings("cuda" if gpu else "cpu"),
    }


def _version(package: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """One line of statistics a benchmark, in seconds a call."""
    for row in output_json["benchmarks"]:
        extra = row["extra_info"]
        calls = extra.pop("calls")
        kept = {key: row["stats"][key] / (1 if key == "rounds" else calls) for key in KEPT}
        row.clear()
        row |= {**extra, "seconds": kept}
    output_json["commit_info"] = {key: output_json["commit_info"].get(key) for key in ("id", "dirty")}
