"""One quick run of the whole method by its command, shared by the tests of the pipeline and of the command line."""

import json
from dataclasses import dataclass
from pathlib import Path

import fresh_process
import pytest
import torch
from detector_pairs import Small, small_detector
from made_once import made_once
from quick_demo import quick_demo

from vlkd.scenes import Picture, make_picture


@dataclass(frozen=True)
class QuickRun:
    folder: Path
    output: str
    errors: str
    processor_seconds: float


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> QuickRun:
    def make(base: Path) -> None:
        base.mkdir(exist_ok=True)
        finished = fresh_process.start(quick_demo, str(base)).end(timeout=1800)
        assert finished.returncode == 0, finished.stderr

    base = made_once(tmp_path_factory, "quick-run", make)
    return QuickRun(base / "quick", *json.loads((base / "told.json").read_text()))


@pytest.fixture(scope="session")
def vlkd():
    """The same command in less time."""
    return fresh_process.run_vlkd


@pytest.fixture(scope="module")
def one_thread():
    """As in the processes of the pipeline, so that bits can be compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def scenes() -> list[Picture]:
    return [make_picture(5, "test", index) for index in range(7)]


@pytest.fixture(scope="session")
def small() -> Small:
    """Two detectors for tests that leave them as they are."""
    return small_detector(0), small_detector(1)
