"""Everything that needs a GPU, in one call: build for it, test on it, measure, look for races, count.

    python -m benchmarks.gpu [--out DIR] [--seconds 480]
    python -m benchmarks.gpu --rehearse --out DIR         the same script on a CPU, at small sizes: what would go wrong, goes wrong here

All parts share one deadline, in the order of their value, and each is killed whole when its time is over. DIR is what the variable OUT
names, or benchmarks/results/gpu. Whenever this is cut off, DIR holds what was done until then:

    run.json             how each part ended, with device, driver, versions and commit
    measurements.json    the rows, as `make bench` stores them; `python -m benchmarks.table` prints them
    step.json            the whole training step, as `make bench-step` stores it
    counters.csv         what ncu counted of one launch of each kernel
    log.txt, build.txt   what the parts printed

The exit status is 0 if every part that could run here ended well.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.conditions import ROOT, conditions
from benchmarks.gpu import evidence
from benchmarks.gpu.running import Deadline, Part, Running, failed, skipped, succeeded

SECONDS = 480.0
PYTHON = sys.executable
STEP_NEEDS = ("pydantic", "transformers", "tokenizers", "accelerate", "yaml", "pyarrow", "orjson", "pybase64")
SANITIZERS = ("memcheck", "racecheck", "synccheck")
# Emulated blocks, compilations ahead of time and what a processor runs say nothing new on a GPU.
NOT_HERE = ("emulated", "ahead_of_time", "native_attention_mse", "native_token_nce", "instruction_sets")
BUILD = "build"


def parts(out: Path, rehearse: bool = False) -> list[Part]:
    """In the order of their value; the first one is built in the background of the second and third."""
    module = [PYTHON, "-m"]
    small, environment = (["--rehearse"], {"TRITON_INTERPRET": "1"}) if rehearse else ([], {})
    repeats = "a rehearsal would repeat another part" if rehearse else None
    measure = [*module, "benchmarks.gpu.measure", str(out / "measurements.json"), *small, "--only"]
    drive = [*module, "benchmarks.gpu.drive", *(["--device", "cpu"] if rehearse else [])]
    here = " and not ".join(NOT_HERE)
    triton, cuda = f"triton and not {here}", f"(cuda or gpu) and not triton and not {here}"
    if rehearse:  # all files are collected, few tests are run
        triton = "test_ring_queue and reference and not processes and not list"
    found = [
        Part(BUILD, [*module, "benchmarks.gpu.build", *small], 170),
        Part("ceilings", [*measure, "ceilings"], 60, environment=environment),
        Part("tests of Triton", _tests(triton, rehearse), 110),
        Part("tests of CUDA", _tests(cuda, rehearse), 90, needs=BUILD, missing=repeats),
        Part("headline", [*measure, "headline"], 180, environment=environment),
        Part("queue", [*measure, "queue"], 30, environment=environment),
    ]
    uncached = environment | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    if rehearse:  # without the tool all three are the same
        found.append(Part(SANITIZERS[0], drive, 90, environment=uncached))
    else:
        watched = ["compute-sanitizer", "--error-exitcode", "1", "--tool"]
        found += [
            Part(tool, [*watched, tool, *drive], 40, environment=uncached, missing=_no(watched[0]))
            for tool in SANITIZERS
        ]
    counting = ["ncu", "--clock-control", "none", "--csv", "--page", "raw", "--log-file", str(out / "counters.csv")]
    found.append(Part("counters", [*counting, *drive], 60, missing=_no(counting[0])))
    found.append(Part("other sizes", [*measure, "others"], 120, missing=repeats))
    lacking = [name for name in STEP_NEEDS if importlib.util.find_spec(name) is None]
    missing = f"{', '.join(lacking)} not installed" if lacking else repeats
    step = [*module, "benchmarks.distillation_step", "--out", str(out / "step.json")]
    found.append(Part("step", step, 120, missing=missing))
    return found


def _tests(chosen: str, rehearse: bool) -> list[str]:
    command = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernels", "-k", chosen]
    parallel = importlib.util.find_spec("xdist") is not None and not rehearse
    return [*command, "-n", str(min(8, os.cpu_count() or 1))] if parallel else command


def _no(program: str) -> str | None:
    return f"there is no {program}" if shutil.which(program) is None else None


def run(plan: Sequence[Part], out: Path, deadline: Deadline) -> Iterator[dict[str, Any]]:
    """Each part's result as soon as it is there. A part waits for what it needs; the build goes on beside those that do not."""
    done: dict[str, dict[str, Any]] = {}
    behind: Running | None = None
    try:
        for part in plan:
            if behind is not None and part.needs == behind.part.name:
                yield done.setdefault(behind.part.name, behind.wait())
                behind = None
            seconds = min(part.most, deadline.left)
            if part.missing is not None:
                result = skipped(part, part.missing)
            elif part.needs is not None and not succeeded(done[part.needs]):
                result = skipped(part, f"{part.needs} did not end well")
            elif seconds < min(part.least, part.most):
                result = skipped(part, f"{max(0.0, deadline.left):.0f} s were left")
            elif part.name == BUILD:
                behind = Running(part, out / "build.txt", ROOT, seconds)
                continue
            else:
                current = Running(part, out / "log.txt", ROOT, seconds)
                try:
                    result = current.wait()
                finally:
                    current.stop()
            done[part.name] = result
            yield result
    finally:
        if behind is not None:
            behind.stop()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results" / "gpu")
    parser.add_argument("--out", type=Path, default=default, help="the folder that is written")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all parts together")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, at small sizes")
    options = parser.parse_args(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        sys.exit(
            "benchmarks.gpu: torch finds no GPU here. `make bench` measures a CPU, `python -m benchmarks.gpu --rehearse --out DIR` "
            "tries this script without a GPU."
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("benchmarks.gpu: told to end"))  # through what cleans up
    deadline = Deadline(options.seconds)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in ("run.json", "measurements.json", "step.json", "counters.csv", "log.txt", "build.txt"):
        (out / name).unlink(missing_ok=True)
    record = conditions() | {"rehearsal": options.rehearse, "parts": []}
    evidence.write(out / "run.json", record)
    for result in run(parts(out, options.rehearse), out, deadline):
        record["parts"].append(result)
        evidence.write(out / "run.json", record | {"seconds": round(deadline.spent, 1)})
        print(f"{result['part']}: {result['ended']}, {result['seconds']} s", flush=True)
        if not succeeded(result):
            print(result["output"][-1500:], flush=True)
    print(f"{deadline.spent:.0f} s; written to {out}")
    sys.exit(any(map(failed, record["parts"])))


if __name__ == "__main__":
    main()
