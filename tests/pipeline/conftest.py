"""One quick run of the whole method by its command, shared by the tests of the pipeline and of the command line."""

import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class QuickRun:
    folder: Path
    output: str
    processor_seconds: float


def run_vlkd(*arguments: object) -> subprocess.CompletedProcess:
    """The installed command, as a user gives it."""
    command = [sys.executable, "-m", "vlkd.cli", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "120"}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def _processor_seconds() -> float:
    """Of all finished child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> QuickRun:
    folder = tmp_path_factory.mktemp("runs") / "quick"
    before = _processor_seconds()
    finished = run_vlkd("demo", "--quick", "--out", folder)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return QuickRun(folder, finished.stdout, _processor_seconds() - before)


@pytest.fixture(scope="session")
def vlkd():
    return run_vlkd
