"""Everything that needs a GPU, in one go: build csrc for it, test on it, look for races, measure.

    python -m benchmarks.gpu [--out benchmarks/results/gpu.json]

Each part has a share of eight minutes and is ended when that is over; the others still run. What came of each stands in the file
beside the measurements, with device, versions and commit; the exit status is 0 if all of them succeeded.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
GPU_TESTS = "tests/kernels/test_cuda_attention_mse.py tests/kernels/test_cuda_token_nce.py -k gpu"
QUEUE_TESTS = "tests/kernels/test_native_ring_queue.py -k gpu"


def parts(out: Path) -> list[tuple[str, list[str], int]]:
    """Name, command and seconds of each part."""
    python, pytest = [sys.executable], [sys.executable, "-m", "pytest", "-q"]
    parallel = ["-n", str(min(8, os.cpu_count() or 1))] if _installed("xdist") else []
    result = [
        ("build", [*python, "setup.py", "build_ext", "--inplace"], 60),
        ("tests", [*pytest, "tests/kernels", *parallel], 140),
    ]
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer:
        for tool in ("memcheck", "racecheck", "initcheck"):
            checked = [sanitizer, "--tool", tool, "--error-exitcode", "1", *pytest, "-x", *GPU_TESTS.split()]
            result.append((tool, checked, 25))
        result.append(
            ("memcheck of the queue", [sanitizer, "--error-exitcode", "1", *pytest, "-x", *QUEUE_TESTS.split()], 20)
        )
    result.append(("benchmarks", [*pytest, "benchmarks", f"--benchmark-json={out}"], 175))
    return result


def run(name: str, command: list[str], seconds: int) -> dict[str, Any]:
    """One part: how it ended, how long it took, and the end of what it printed."""
    major, minor = torch.cuda.get_device_capability()
    environment = os.environ | {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", "FORCE_CUDA": "1"}
    print(f"{name}: {' '.join(command)}", flush=True)
    begin = time.perf_counter()
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=pipe, stderr=subprocess.STDOUT)
    try:
        output, _ = process.communicate(timeout=seconds)
        ended = f"exit status {process.returncode}"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest then still writes what it has measured
        try:
            output, _ = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        ended = f"ended after {seconds} s"
    took = time.perf_counter() - begin
    print(f"{name}: {ended}, {took:.0f} s\n{output[-1500:]}", flush=True)
    return {"part": name, "ended": ended, "seconds": round(took, 1), "output": output[-4000:]}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    out = parser.parse_args().out.resolve()
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: torch finds no GPU here; on a CPU, `make bench` measures what there is to measure.")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    done = [run(*part) for part in parts(out)]
    stored = json.loads(out.read_text()) if out.exists() and out.stat().st_size else {"benchmarks": []}
    out.write_text(json.dumps({**stored, "parts": done}, indent=1) + "\n")
    print(*(f"{part['part']}: {part['ended']}, {part['seconds']} s" for part in done), f"written to {out}", sep="\n")
    sys.exit(any(part["ended"] != "exit status 0" for part in done))


def _installed(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


if __name__ == "__main__":
    main()
