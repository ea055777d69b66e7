"""One quick run of the whole method by its command, shared by the tests of the pipeline and of the command line."""

import ctypes
import json
import os
import resource
import subprocess
import sys
from contextlib import suppress
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


def _demo(base: str) -> None:
    """The installed command, as a user gives it, with what it printed and the processor seconds of all that it started."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(
            36, 1
        )  # PR_SET_CHILD_SUBREAPER: what outlives the command is this process's to wait for
    command = [sys.executable, "-m", "vlkd.cli", "demo", "--quick", "--out", f"{base}/quick"]
    environment = os.environ | {"COLUMNS": "120"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    with suppress(ChildProcessError):
        while True:
            os.wait()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    Path(base, "told.json").write_text(json.dumps([done.stdout, done.stderr, usage.ru_utime + usage.ru_stime]))


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> QuickRun:
    def make(base: Path) -> None:
        base.mkdir(exist_ok=True)
        finished = fresh_process.start(_demo, str(base)).end(timeout=1800)
        assert finished.returncode == 0, finished.stderr

    base = made_once(tmp_path_factory, "quick-run", make)
    return QuickRun(base / "quick", *json.loads((base / "told.json").read_text()))


@pytest.fixture(scope="session")
def vlkd():
    """The same command in less time."""
    return fresh_process.run_vlkd
