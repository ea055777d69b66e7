"""How the suites time, and the conditions that are stored with what they measure."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

ROUNDS = 10
SHORT_ROUNDS = 200  # for steps below a millisecond, whose single rounds are noise
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
    """Check a contender on the very tensors it is timed on, then time its loss and gradients together."""

    def run(
        function: Callable[..., Tensor],
        truth: Callable[..., Tensor],
        tensors: dict[str, Tensor],
        students: tuple[str, ...],
        **info: Any,
    ) -> None:
        leaves = [tensors[name].requires_grad_() for name in students]

        def step() -> list[Tensor]:
            loss = function(**tensors)
            gradients = torch.autograd.grad(loss, leaves)
            if device == "cuda":
                torch.cuda.synchronize()
            return [loss, *gradients]

        _check(step(), truth, tensors, students)
        benchmark.extra_info |= info | {"device": device}
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        step()
        short = time.perf_counter() - begin < 1e-3
        benchmark.pedantic(step, rounds=SHORT_ROUNDS if short else ROUNDS, warmup_rounds=2)
        if device == "cuda":
            benchmark.extra_info["peak_memory"] = torch.cuda.max_memory_allocated()

    return run


def _check(
    got: list[Tensor], truth: Callable[..., Tensor], tensors: dict[str, Tensor], students: tuple[str, ...]
) -> None:
    """The plain form in float32 is the truth; half precision may be off by 5% of the largest entry."""
    exact = {name: x.detach().float() for name, x in tensors.items()}
    leaves = [exact[name].requires_grad_() for name in students]
    loss = truth(**exact)
    tolerance = 1e-3 if tensors[students[0]].dtype == torch.float32 else 5e-2
    for a, b in zip(got, [loss, *torch.autograd.grad(loss, leaves)], strict=True):
        assert (a.float() - b).abs().max() <= tolerance * b.abs().max()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Keep what a reader needs to repeat a measurement, and nothing else."""
    processor = machine_info["cpu"].get("brand_raw", platform.processor())
    machine_info.clear()
    machine_info |= {
        "processor": processor,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """One line of statistics a benchmark."""
    for row in output_json["benchmarks"]:
        kept = {key: row["stats"][key] for key in KEPT}
        extra = row["extra_info"]
        row.clear()
        row |= {**extra, "seconds": kept}
    output_json["commit_info"] = {key: output_json["commit_info"].get(key) for key in ("id", "dirty")}
