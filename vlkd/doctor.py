"""`vlkd doctor`: what is installed, which backend each operator will use and why, and what to do to get more."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import NamedTuple

from vlkd.errors import VlkdError
from vlkd.runs import versions


class Finding(NamedTuple):
    """One line of the examination."""

    subject: str
    state: str
    good: bool
    advice: str = ""


def examine() -> list[Finding]:
    """Everything that decides how fast this installation runs and what it can do."""
    return [*_machine(), *_extension(), *_backends(), *_metrics()]


def environment() -> dict[str, str]:
    """Python, platform and package versions."""
    return versions()


def _machine() -> Iterator[Finding]:
    import torch

    threads = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    yield Finding("CPU", f"{torch.backends.cpu.get_cpu_capability()}, {threads}", True)
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            state = f"{properties.name}, compute capability {properties.major}.{properties.minor}, {memory:.0f} GiB"
            yield Finding(f"GPU {index}", state, True)
    else:
        yield Finding("GPU", "none that torch can use", True, "not needed; with one, the same commands use it")
    nvcc = shutil.which("nvcc")
    yield Finding(
        "CUDA toolkit",
        f"nvcc at {nvcc}" if nvcc else "no nvcc on the PATH",
        True,
        "" if nvcc else "only needed to compile csrc's CUDA kernels; install a toolkit of torch's CUDA version",
    )


def _extension() -> Iterator[Finding]:
    from vlkd_kernels import extension

    if extension.load() is None:
        yield Finding("compiled extension", f"not loaded: {extension.why_not()}", False, "run `make install`")
        return
    info = extension.build_info()
    yield Finding("compiled extension", f"loaded, built by {info['compiler']} for torch {info['torch']}", True)
    yield Finding("C++ kernels compute with", info["instruction_set"], True)
    named = info.get("cuda_architectures", "")
    state = f"for {', '.join(named.split(';'))}" if named else f"none: {info.get('without_cuda', 'left out')}"
    yield Finding("compiled CUDA kernels", state, *_fits(named))


def _fits(architectures: str) -> tuple[bool, str]:
    """Whether the GPUs that are here can run what was compiled for `architectures` (as in TORCH_CUDA_ARCH_LIST), and advice."""
    import torch

    from vlkd_kernels import extension

    anew = "`FORCE_CUDA=1 make -B install` compiles for the GPUs that are here"
    if not architectures:
        return True, "with nvcc on the PATH, run `FORCE_CUDA=1 make -B install`"
    if not torch.cuda.is_available():
        return True, "newer GPUs translate the PTX when they first load it" if "PTX" in architectures else ""
    count = torch.cuda.device_count()
    ways = {extension.runs_on(architectures, torch.cuda.get_device_capability(index)) for index in range(count)}
    if None in ways:
        return False, f"not for a GPU that is here; {anew}"
    return True, f"translated from PTX when first loaded; {anew}" if "PTX" in ways else ""


def _backends() -> Iterator[Finding]:
    import torch

    from vlkd_kernels import explain_backend
    from vlkd_kernels.backends import OPS

    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for operator in OPS:
        for device in devices:
            statuses = explain_backend(operator, device=device)
            chosen = next(status for status in statuses if status.available)
            refused = "; ".join(f"{status.backend}: {status.reason}" for status in statuses if not status.available)
            yield Finding(
                f"{operator} on {device}", f"{chosen.backend} ({chosen.reason})", True, f"the others: {refused}"
            )


def _metrics() -> Iterator[Finding]:
    from vlkd.evaluation.java_metrics import JAVA_METRICS, why_not

    for name in JAVA_METRICS:
        try:
            reason = why_not(name)
        except VlkdError as error:  # the scorers' package is not installed
            reason = str(error)
        yield Finding(f"{name} of captions", "computed" if reason is None else "left out", True, reason or "")
