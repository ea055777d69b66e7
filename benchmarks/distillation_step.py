"""Measures the whole distillation step: forward passes, losses, backward, AdamW, queue; with our losses, eager ones, and none.

python -m benchmarks.distillation_step                  small shapes on a CPU (2 minutes), the paper's on a GPU
python -m benchmarks.distillation_step --paper          also the paper's 64 samples of 120 tokens on a CPU, our step with and without padding

Every contender does the same step on the same samples, which is checked in float32 before anything is timed. The samples' lengths are
drawn as `distillation_samples` says. Rounds are interleaved, so that whatever disturbs disturbs all of them. On a GPU the parts of a step
are timed in further rounds, with a wait after each part.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.conditions import conditions
from benchmarks.distillation_contenders import BASE, CONTENDERS, PADDED, PARTS, Case, Part, Step, contenders, untimed
from benchmarks.distillation_table import RESULTS, table
from benchmarks.steps import peak_memory
from vlkd.runs import versions
from vlkd.training.budget import budget

ENOUGH = 25.0  # seconds of rounds a case
ROUNDS = (5, 40)
WARM_UP = 2
SMALL = (
    "teacher={layers: 4, width: 256, heads: 4, ffn: 1024}",
    "student={layers: 4, width: 128, heads: 4, ffn: 512}",
    "text.vocabulary=2000",
)
LONG = ("text.caption=380", "text.tags=82")  # with 50 regions 512 tokens
ON_CPU = (Case(8, 2, overrides=SMALL), Case(2, 2, overrides=(*SMALL, *LONG)))
ON_GPU = tuple(
    Case(batch, parts, torch.bfloat16, every_layer=every)
    for batch, parts in ((64, 2), (256, 4))
    for every in (False, True)
)
PAPER_ON_CPU = Case(64, 4, contenders=("vlkd", PADDED))


class Clock:
    """Seconds of each named part of a step."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        wait(self._device)
        begin = time.perf_counter()
        yield
        wait(self._device)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - begin


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def same_step(steps: dict[str, Step]) -> None:
    """Every term that two contenders have is the same number in float32, within 1e-3 of it."""
    first, *others = [_terms(step) for step in steps.values()]
    for other in others:
        for name in first.keys() & other.keys():
            assert abs(first[name] - other[name]) <= 1e-3 * abs(first[name]), f"{name}: {first[name]} and {other[name]}"


def _terms(step: Step) -> dict[str, float]:
    dtype, step.dtype = step.dtype, torch.float32
    means = step.forward()
    step.dtype = dtype
    return {name: mean.item() for name, mean in means.items()}


def measure(case: Case, device: str, enough: float, least: int = ROUNDS[0]) -> list[dict[str, Any]]:
    """A row for every contender of a case."""
    steps = contenders(case, device)
    same_step(steps)
    for _ in range(WARM_UP):
        warm = [_seconds(step, device) for step in steps.values()]
        if sum(warm) > enough:  # seconds a step: the first one has warmed all there is
            break
    rounds = min(ROUNDS[1], max(least, round(enough / sum(warm))))
    times, parts = _rounds(steps, device, rounds)
    return [
        {
            "case": _described(case),
            "contender": name,
            "seconds": _summary(times[name]) | {"rounds": rounds},
            "ratio": _ratio(times, name, BASE),
            "of_padded": _ratio(times, name, PADDED) if CONTENDERS[name].distils else None,
            "real": step.samples.real,
            "parts": {part: statistics.median(row.get(part, 0.0) for row in parts[name]) for part in PARTS},
            "peak_memory": peak_memory(step, device, warm=False),
            "held": step.held(),
            "estimate": _estimate(case, name) if name in ("vlkd", PADDED) else None,
        }
        for name, step in steps.items()
    ]


def _rounds(
    steps: dict[str, Step], device: str, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[dict[str, float]]]]:
    """Each contender's seconds of every round, and those of the parts of a step.

    On a GPU the wait after each part costs time, so that parts are timed in further rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    gpu = device == "cuda"
    for number in range(rounds):
        for name in _turned(tuple(steps), number):
            clock = Clock(device)
            times[name].append(_seconds(steps[name], device, untimed if gpu else clock))
            parts[name] += [] if gpu else [clock.seconds]
    for number in range(max(1, rounds // 2) if gpu else 0):
        for name in _turned(tuple(steps), number):
            clock = Clock(device)
            steps[name](clock)
            parts[name].append(clock.seconds)
    return times, parts


def _ratio(times: dict[str, list[float]], name: str, base: str) -> dict[str, float] | None:
    """A contender's time over another's of the same round; None where that one does not take part."""
    return _summary([a / b for a, b in zip(times[name], times[base], strict=True)]) if base in times else None


def _turned(names: tuple[str, ...], by: int) -> tuple[str, ...]:
    by %= len(names)
    return names[by:] + names[:by]


def _seconds(step: Step, device: str, part: Part = untimed) -> float:
    wait(device)
    begin = time.perf_counter()
    step(part)
    wait(device)
    return time.perf_counter() - begin


def _summary(values: Sequence[float]) -> dict[str, float]:
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return dict(zip(("min", "q1", "median", "q3", "max"), (min(values), *quartiles, max(values)), strict=True))


def _described(case: Case) -> dict[str, Any]:
    recipe = case.recipe()
    text = recipe.text
    return {
        **{role: [getattr(recipe, role).layers, getattr(recipe, role).width] for role in ("teacher", "student")},
        "heads": recipe.student.heads,
        "tokens": text.caption + text.tags + recipe.detectors.max_regions,
        "batch": case.batch,
        "micro_batches": case.micro_batches,
        "vocabulary": text.vocabulary,
        "queue": recipe.distillation.queue_size,
        "dtype": str(case.dtype).removeprefix("torch."),
        "every_layer": case.every_layer,
    }


def _estimate(case: Case, contender: str) -> int:
    """Bytes that `vlkd.training.budget` predicts."""
    stages = budget(case.recipe(case.parts(contender))).stages
    return next(stage.memory for stage in stages if stage.name == "student")


def main(arguments: Sequence[str] | None = None, cases: Sequence[Case] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distillation_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "latest.json", help="the JSON that is written")
    parser.add_argument("--paper", action="store_true", help="on a CPU, also one step of the paper's size")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if cases is None:
        cases = ON_GPU if device == "cuda" else ON_CPU
    found = conditions()
    found["machine_info"]["versions"] = versions()
    run = {**found, "steps": [row for case in cases for row in measure(case, device, ENOUGH)]}
    if options.paper and device == "cpu":
        rows = measure(PAPER_ON_CPU, device, ENOUGH, least=3)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
        run["steps"] += [row | {"peak_rss": most} for row in rows]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(run, indent=1) + "\n")
    print(table([options.out]), end="")


if __name__ == "__main__":
    main()
