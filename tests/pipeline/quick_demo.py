"""The quick demo in a process of its own. No part of conftest.py: of all modules of that name, a process finds the last one only."""

import ctypes
import json
import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


def quick_demo(base: str) -> None:
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
