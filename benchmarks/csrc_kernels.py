"""What nvcc makes of csrc's CUDA kernels: registers and memory from the build, matrix instructions from the machine code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ahead_of_time import tool
from vlkd_kernels import extension

ROOT = Path(__file__).parents[1]
Rows = dict[str, dict[str, Any]]


def installed_kernels() -> tuple[str, Rows]:
    """The CUDA version and a row for every kernel and architecture; ("", {}) where the extension holds none."""
    info = extension.build_info()
    module = extension.load()
    if module is None or not info["cuda"] or not isinstance(info.get("kernels"), list):  # or why they are not known
        return "", {}
    return info["cuda_version"], _rows(info["kernels"], Path(str(module.__file__)))


def built_kernels(architectures: Sequence[int], jobs: int) -> tuple[str, Rows]:
    """The same of an extension that is built for it, into a folder that goes again; some minutes."""
    named = ";".join(f"{architecture // 10}.{architecture % 10}" for architecture in architectures)
    environment = os.environ | {"TORCH_CUDA_ARCH_LIST": named, "FORCE_CUDA": "1", "MAX_JOBS": str(jobs)}
    with tempfile.TemporaryDirectory() as folder:
        where = ["--build-lib", folder, "--build-temp", f"{folder}/objects"]
        subprocess.run(
            [sys.executable, "setup.py", "--quiet", "build_ext", *where], cwd=ROOT, env=environment, check=True
        )
        built = Path(folder) / "vlkd_kernels"
        record = json.loads((built / "_build.json").read_text())
        return record["cuda_version"], _rows(record["kernels"], next(built.glob("_C*.so")))


def _rows(kernels: list[dict[str, Any]], library: Path) -> Rows:
    instructions = _matrix_instructions(library)
    rows = {}
    for kernel in sorted(kernels, key=lambda kernel: (kernel["kernel"], kernel["architecture"])):
        name, architecture = kernel["kernel"].removeprefix("vlkd::"), kernel["architecture"]
        rows[f"{name}/{architecture}"] = {
            "registers": kernel["registers"],
            "stack": kernel["stack_bytes"],
            "local": kernel["local_bytes"],
            "shared": kernel["shared_bytes"],
            "instructions": instructions.get((kernel["kernel"], architecture), []),
        }
    return rows


def _matrix_instructions(library: Path) -> dict[tuple[str, str], list[str]]:
    """The matrix instructions of every (kernel, architecture), as in `HMMA.16816.F32.BF16`."""
    found: dict[tuple[str, str], set[str]] = {}
    architecture = symbol = ""
    for line in tool("cuobjdump", "--dump-sass", str(library)).splitlines():
        if line.startswith("arch = "):
            architecture = line.split()[2]
        elif "Function : " in line:
            symbol = line.split()[2]
        elif "MMA." in line:
            found.setdefault((symbol, architecture), set()).update(re.findall(r"\b(\w*MMA\.[\w.]+)", line))
    symbols = sorted({symbol for symbol, _ in found})
    names = subprocess.run(["c++filt", *symbols], check=True, capture_output=True, text=True).stdout.splitlines()
    plain = {s: name.split("(")[0].removeprefix("void ") for s, name in zip(symbols, names, strict=True)}
    return {(plain[symbol], architecture): sorted(kinds) for (symbol, architecture), kinds in found.items()}
