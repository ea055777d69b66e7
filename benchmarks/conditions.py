"""What a reader needs to repeat a measurement: device, versions, commit."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


def conditions() -> dict[str, Any]:
    """The time, ``machine_info`` and ``commit_info``, as stored measurements have them; what is not there is None."""
    gpu = torch.cuda.is_available()
    return {
        "datetime": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine_info": {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if gpu else None,
            "driver": _driver() if gpu else None,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": version("triton"),
            "cuda": torch.version.cuda if gpu else None,
        },
        "commit_info": {"id": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))},
    }


def version(package: str) -> str | None:
    """Of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """Its name, where Linux gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def git(*arguments: str) -> str | None:
    """What git says of this repository; None where there is none."""
    return _output("git", *arguments)


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    found = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.splitlines()[0] if found else None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
