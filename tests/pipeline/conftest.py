"""One quick run of the whole method by its command, shared by the tests of the pipeline and of the command line."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import fresh_process
import pytest
from made_once import made_once


@dataclass(frozen=True)
class QuickRun:
    folder: Path
    output: str
    errors: str
    processor_seconds: float


def _from_a_shell(*arguments: object) -> subprocess.CompletedProcess:
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
    def make(base: Path) -> None:
        before = _processor_seconds()
        finished = _from_a_shell("demo", "--quick", "--out", base / "quick")
        assert finished.returncode == 0, finished.stderr[-3000:]
        told = [finished.stdout, finished.stderr, _processor_seconds() - before]
        (base / "told.json").write_text(json.dumps(told))

    base = made_once(tmp_path_factory, "quick-run", make)
    return QuickRun(base / "quick", *json.loads((base / "told.json").read_text()))


@pytest.fixture(scope="session")
def vlkd():
    """The same command in less time."""
    return fresh_process.run_vlkd
