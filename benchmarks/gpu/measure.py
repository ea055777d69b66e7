"""The headline sizes and then the others, ours against eager and torch.compile, each row written as soon as it is measured.

    python -m benchmarks.gpu.measure FILE [--only ceilings | headline | queue | others] [--rehearse]

One plain process for each kind. FILE has the form of `make bench`'s, so that `benchmarks.table` and `benchmarks.plots` read it; rows
that it holds already are not measured again.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from benchmarks import floors
from benchmarks.cases import Case
from benchmarks.checked import check
from benchmarks.conditions import conditions
from benchmarks.gpu import evidence
from benchmarks.peers import GPU_ONLY, contender, ring_write, truth
from benchmarks.steps import Steps, captured, peak_memory

ROUNDS = 10
OURS = ("vlkd", "vlkd cuda")
HALF, SINGLE = torch.bfloat16, torch.float32
ATTENTION = [(256, 12, length, 32, 64) for length in (128, 512, 2048)]
HEADLINE = (
    Case("token_nce", (32768, 16384, 768), HALF),
    *(Case("attention_mse", sizes, HALF) for sizes in ATTENTION),
    *(Case("distill_attention", sizes, HALF) for sizes in ATTENTION),
    Case("token_nce", (32768, 16384, 768), SINGLE),
    *(Case("attention_mse", sizes, SINGLE) for sizes in ATTENTION),
    *(Case("distill_attention", sizes, SINGLE) for sizes in ATTENTION),
)
OTHERS = (
    *(Case("token_nce", (n, k, 768), HALF) for n, k in ((16384, 4096), (131072, 4096), (2048, 65536), (128, 1024))),
    *(Case("attention_mse", (256, 12, length, 32, 64), HALF) for length in (50, 197, 256, 1024)),
    *(Case("distill_attention", (256, 12, length, 32, 64), HALF) for length in (50, 197, 256, 1024)),
    Case("attention_mse", (64, 12, 128, 32, 64), SINGLE),
    Case("token_nce", (128, 1024, 768), SINGLE),
)
QUEUE = ((8192, 65536, 768), (1024, 4096, 768))  # N, K, E
COMPARED = {
    "attention_mse": ("vlkd", "vlkd cuda", "eager", "torch.compile"),
    "distill_attention": ("vlkd", "attention + attention_mse", "attention alone", "eager"),
    "token_nce": ("vlkd", "vlkd cuda", "eager", "torch.compile"),
}
# In a rehearsal, on a CPU: what goes wrong is found, nothing is told of speed.
SMALL = (
    Case("token_nce", (48, 32, 16), HALF),
    Case("attention_mse", (2, 2, 24, 8, 16), SINGLE),
    Case("distill_attention", (2, 2, 24, 8, 16), SINGLE),
)
SMALL_QUEUE = ((16, 64, 16),)


class Plan(NamedTuple):
    """What one kind of rows takes.

    Attributes:
        cases: in the order of their value.
        phases: of each.
        queues: sizes of the ring queue.
    """

    cases: Sequence[Case] = ()
    phases: Sequence[str] = ("both", "forward")
    queues: Sequence[tuple[int, int, int]] = ()


PLANS = {
    "ceilings": Plan(),
    "headline": Plan(HEADLINE),
    "queue": Plan(queues=QUEUE),
    "others": Plan(OTHERS, ("both",)),
}
REHEARSAL = {
    "ceilings": Plan(),
    "headline": Plan(SMALL, ("both",)),
    "queue": Plan(queues=SMALL_QUEUE),
    "others": Plan(SMALL[:1], ("forward",)),
}


def rows(plan: Plan, device: str, known: set[tuple[str, ...]]) -> Iterator[dict[str, Any]]:
    """What is measured, ours and eager before what has to be compiled; a contender that fails becomes a row that says so."""
    steps = [
        (case, name, phase)
        for phase in plan.phases
        for compiled in (False, True)
        for case in plan.cases
        for name in COMPARED[case.op]
        if case.takes(name) and (name == "torch.compile") == compiled and not (device == "cpu" and name in GPU_ONLY)
    ]
    for case, name, phase in steps:
        row = {"op": case.op, "contender": name, "phase": phase, "device": device, **case.info(name, phase)}
        if key(row) not in known:
            yield row | _measured(lambda case=case, name=name, phase=phase: _step(case, name, phase, device))
    for sizes in plan.queues:
        for name in ("vlkd", "copy", "MoCo"):
            row = _queue_row(sizes, name, device)
            if key(row) not in known:
                yield row | _measured(lambda sizes=sizes, name=name: _queue(sizes, name, device))


def key(row: dict[str, Any]) -> tuple[str, ...]:
    """What distinguishes a row from all others."""
    return tuple(row[name] for name in ("op", "contender", "phase", "shape", "dtype"))


def _measured(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return measure()
    except torch.OutOfMemoryError:
        return {"failed": "out of memory"}
    except Exception as error:  # the next contender may do better, and seconds here are dear
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"[:500]}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _step(case: Case, name: str, phase: str, device: str) -> dict[str, Any]:
    tensors, function = case.tensors(device), contender(case.op, name)
    steps = Steps(function, tensors, case.students)
    if phase == "both":
        check(function, truth(case.op, name), tensors, case.students, case.checked)
    found = _timed(*steps.ready(phase))
    if phase == "both":
        found["peak_memory"] = peak_memory(steps.both, device)
        found["inputs"] = sum(x.nbytes for x in tensors.values())
    return found


def _queue_row(sizes: tuple[int, int, int], name: str, device: str) -> dict[str, Any]:
    count, size, width = sizes
    work = floors.Work(2 * count * width * HALF.itemsize, 0, 0)._asdict()
    return {
        "op": "ring_queue", "contender": name, "phase": "write", "device": device,
        "shape": f"N {count}, K {size}, E {width}", "dtype": "bfloat16", "work": work,
    }  # fmt: skip


def _queue(sizes: tuple[int, int, int], name: str, device: str) -> dict[str, Any]:
    count, size, width = sizes
    rows = torch.randn(count, width, device=device).to(HALF)
    write, stored = ring_write(name, size, rows, None)
    write()
    torch.testing.assert_close(stored()[:count], F.normalize(rows, dim=-1))
    # MoCo asks the device where to write, so that it cannot be captured.
    return _timed(*(captured(write) if device == "cuda" and name != "MoCo" else (_waited(write, device), 1)))


def _waited(write: Callable[[], object], device: str) -> Callable[[], object]:
    def run() -> None:
        write()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def _timed(function: Callable[[], object], calls: int) -> dict[str, Any]:
    """Seconds a call: quartiles of some rounds, of a function that makes so many calls and waits for them."""
    for _ in range(2):
        function()
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        function()
        times.append((time.perf_counter() - begin) / calls)
    quartiles = statistics.quantiles(times, n=4, method="inclusive")
    names = ("min", "q1", "median", "q3", "max")
    return {"seconds": dict(zip(names, (min(times), *quartiles, max(times)), strict=True)) | {"rounds": ROUNDS}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.measure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="the JSON that is written, row by row")
    parser.add_argument("--only", choices=list(PLANS), default="headline", help="which rows")
    parser.add_argument("--rehearse", action="store_true", help="small sizes, on a CPU")
    options = parser.parse_args(arguments)
    device = "cpu" if options.rehearse else "cuda"
    run = evidence.read(options.file) or conditions() | {"benchmarks": []}
    if "ceilings" not in run["machine_info"]:
        evidence.write(options.file, run)
        run["machine_info"]["ceilings"] = floors.ceilings(device, rounds=2 if options.rehearse else 20)
        evidence.write(options.file, run)
    best = run["machine_info"]["ceilings"]
    known = {key(row) for row in run["benchmarks"]}
    for row in rows((REHEARSAL if options.rehearse else PLANS)[options.only], device, known):
        run["benchmarks"].append(row)
        evidence.write(options.file, run)
        print(_told(row, best), flush=True)


def _told(row: dict[str, Any], best: dict[str, Any]) -> str:
    what = " ".join(row[name] for name in ("op", "shape", "dtype", "contender", "phase"))
    if "failed" in row:
        return f"{what}: {row['failed']}"
    median = row["seconds"]["median"]
    least, bound = floors.floor(row["work"], best, row["dtype"])
    return f"{what}: {1000 * median:.3f} ms, {least / median:.0%} of its floor ({bound})"


if __name__ == "__main__":
    main()
