"""One warmed operator under NVTX ranges, for Nsight Compute and Nsight Systems, and a torch.profiler trace.

    python -m benchmarks.profile attention_mse --shape 256,12,128,32/64
    python -m benchmarks.profile token_nce --shape 16384,4096,768 --phase forward --dtype bfloat16
    ncu --nvtx --nvtx-include "measured/" python -m benchmarks.profile attention_mse --shape 256,12,128,32/64
    nsys profile --capture-range cudaProfilerApi python -m benchmarks.profile distill_attention --shape 256,12,197,32/64

Shapes are B,H,L,D_s/D_t for the attention operators and N,K,E for token_nce. The calls before the range compile and warm. In the
range are `--calls` calls, each in an inner range. benchmarks/README.md reads one trace.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import floors
from benchmarks.peers import NAMES, contender
from benchmarks.steps import Steps

WARMUP = 5


class Shape(NamedTuple):
    """The arguments of an operator: their sizes by name, and which of them are differentiated."""

    sizes: dict[str, tuple[int, ...]]
    students: tuple[str, ...]


def parse_shape(op: str, text: str) -> Shape:
    """B,H,L,D_s/D_t or N,K,E; a ValueError says which of them is expected."""
    try:
        if op == "token_nce":
            tokens, rows, width = (int(size) for size in text.split(","))
            return Shape({"h_s": (tokens, width), "h_t": (tokens, width), "negatives": (rows, width)}, ("h_s",))
        *outer, widths = text.split(",")
        batch, heads, length = (int(size) for size in outer)
        width_s, width_t = (int(size) for size in widths.split("/"))
    except ValueError:
        form = "N,K,E" if op == "token_nce" else "B,H,L,D_s/D_t"
        raise ValueError(f"--shape of {op} is {form}, as in the examples; got {text!r}") from None
    students = ("q_s", "k_s", *(("v_s",) if op == "distill_attention" else ()))
    sizes = dict.fromkeys(students, (batch, heads, length, width_s))
    return Shape(sizes | dict.fromkeys(("q_t", "k_t"), (batch, heads, length, width_t)), students)


def profile(op: str, name: str, shape: Shape, dtype: torch.dtype, phase: str, calls: int, trace: Path) -> str:
    """Run a contender on random numbers, write the trace, and return the profiler's table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    tensors = {name: torch.randn(size, device=device).to(dtype) for name, size in shape.sizes.items()}
    steps = Steps(contender(op, name), tensors, shape.students)
    step = {"forward": steps.forward, "backward": steps.backward, "both": steps.both}[phase]
    for _ in range(WARMUP):
        step()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        torch.cuda.synchronize()
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.profiler.start()  # what nsys's --capture-range waits for
        torch.cuda.nvtx.range_push("measured")
    with torch.profiler.profile(activities=activities, record_shapes=True, profile_memory=True) as profiler:
        for call in range(calls):
            with torch.profiler.record_function(f"{op} {phase} {call}"):
                if device == "cuda":
                    torch.cuda.nvtx.range_push(f"{op} {phase} {call}")
                step()
                if device == "cuda":
                    torch.cuda.nvtx.range_pop()
        if device == "cuda":
            torch.cuda.synchronize()
    if device == "cuda":
        torch.cuda.nvtx.range_pop()
        torch.cuda.profiler.stop()
    trace.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(trace))
    key = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=60)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("op", choices=sorted(NAMES))
    parser.add_argument("--shape", required=True, help="B,H,L,D_s/D_t, or N,K,E for token_nce")
    parser.add_argument("--contender", default="vlkd", help="vlkd, or a peer: " + "; ".join(
        f"{op}: {', '.join(names[1:])}" for op, names in NAMES.items()
    ))  # fmt: skip
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--phase", default="both", choices=floors.PHASES)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument(
        "--trace", type=Path, default=Path("runs/profile/trace.json"), help="for chrome://tracing or Perfetto"
    )
    options = parser.parse_args()
    if options.contender not in NAMES[options.op]:
        parser.error(f"--contender of {options.op} is one of {', '.join(NAMES[options.op])}; got {options.contender}")
    try:
        shape = parse_shape(options.op, options.shape)
    except ValueError as error:
        parser.error(str(error))
    dtype = getattr(torch, options.dtype)
    print(profile(options.op, options.contender, shape, dtype, options.phase, options.calls, options.trace))
    print(f"trace: {options.trace}")


if __name__ == "__main__":
    main()
