"""What nvcc made of csrc's CUDA kernels: registers and memory from the build, matrix instructions from the machine code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.ahead_of_time import tool
from vlkd_kernels import extension


def compiled_kernels() -> tuple[str, dict[str, dict[str, Any]]]:
    """The CUDA version and a row for every kernel and architecture; ("", {}) where the extension holds none."""
    info = extension.build_info()
    module = extension.load()
    if module is None or not info["cuda"] or not isinstance(info.get("kernels"), list):  # or why they are not known
        return "", {}
    instructions = _matrix_instructions(Path(str(module.__file__)))
    rows = {}
    for kernel in sorted(info["kernels"], key=lambda kernel: (kernel["kernel"], kernel["architecture"])):
        name, architecture = kernel["kernel"].removeprefix("vlkd::"), kernel["architecture"]
        rows[f"{name}/{architecture}"] = {
            "registers": kernel["registers"],
            "stack": kernel["stack_bytes"],
            "local": kernel["local_bytes"],
            "shared": kernel["shared_bytes"],
            "instructions": instructions.get((kernel["kernel"], architecture), []),
        }
    return info["cuda_version"], rows


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
