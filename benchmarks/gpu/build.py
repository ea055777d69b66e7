"""Builds csrc for the present GPU alone, and puts the extension in its place at once, so that what runs beside it never meets half of one.

python -m benchmarks.gpu.build [--rehearse]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.conditions import ROOT

SPARE = 4  # cores that are left to the tests meanwhile


def environment(capability: tuple[int, int], cores: int) -> dict[str, str]:
    """Variables of setup.py."""
    jobs = max(1, cores - SPARE)
    return {"TORCH_CUDA_ARCH_LIST": "{}.{}".format(*capability), "FORCE_CUDA": "1", "MAX_JOBS": str(jobs)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="compile nothing: only ask setup.py what it is called")
    if parser.parse_args(arguments).rehearse:
        subprocess.run([sys.executable, "setup.py", "--name"], cwd=ROOT, check=True)
        return
    made = environment(torch.cuda.get_device_capability(), os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "setup.py", "build_ext", "--build-lib", folder, "--build-temp", f"{folder}/objects"]
        subprocess.run(command, cwd=ROOT, env=os.environ | made, check=True)
        built = sorted(Path(folder, "vlkd_kernels").iterdir())
        for path in built:
            new = ROOT / "vlkd_kernels" / f".{path.name}.new"
            new.write_bytes(path.read_bytes())
            new.chmod(0o755)
            os.replace(new, ROOT / "vlkd_kernels" / path.name)
    print("built", *(path.name for path in built))


if __name__ == "__main__":
    main()
