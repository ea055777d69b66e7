"""Before any test module is imported: threads, and without a GPU Triton's interpreter.

Triton reads its variable when its own library is imported, which any test module may cause; so it is set here, for the
whole run, and taken out again for the processes that compile or that stand for a user's own command.
"""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # read when torch is imported, by the processes that a test starts too
    _processes = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _processes)))

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_xdist_auto_num_workers() -> int:
    """Of ``--numprocesses=auto``: the cores that this process may use, not those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process is still at one when all others have ended."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
