"""Parts of one run under one deadline. Each part is a process group, which is killed whole."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GRACE = 5.0  # seconds between asking a part to end and killing it
TAIL = 3000  # characters of a part's output that are kept beside its result


class Deadline:
    """So many seconds from now, by a clock that tests may replace."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began, self._seconds = clock(), seconds

    @property
    def spent(self) -> float:
        return self._clock() - self._began

    @property
    def left(self) -> float:
        return self._seconds - self.spent


@dataclass(frozen=True)
class Part:
    """One command of a run.

    Attributes:
        name: in the record.
        command: program and arguments.
        most: seconds it may take.
        least: seconds that must be left for it to begin.
        missing: why it cannot run here; None where it can.
        environment: variables besides those of the run.
        needs: a part that must have ended well.
    """

    name: str
    command: Sequence[str]
    most: float
    least: float = 10.0
    missing: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: str | None = None


class Running:
    """A part that has been started; its output goes to a file, which no child that is left behind can hold up."""

    def __init__(self, part: Part, log: Path, folder: Path, seconds: float) -> None:
        self.part, self._log, self._seconds = part, log, seconds
        self._began = time.monotonic()
        self._ended: float | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._failed = ""
        with log.open("ab") as file:
            file.write(f"\n== {part.name}: {' '.join(part.command)}\n".encode())
            file.flush()
            self._start = file.tell()
            try:
                self._process = subprocess.Popen(
                    part.command,
                    cwd=folder,
                    env=os.environ | dict(part.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    preexec_fn=_lead_a_group,
                )
            except OSError as error:
                self._failed = f"could not be started: {error}"
                return
        self._watcher = threading.Thread(
            target=self._watch, daemon=True
        )  # one in the background may end long before it is asked
        self._watcher.start()

    def _watch(self) -> None:
        assert self._process is not None
        self._process.wait()
        self._ended = time.monotonic()

    def wait(self) -> dict[str, Any]:
        """Until it ends or its time is over; how it ended, seconds, and the end of its output."""
        if self._process is None:
            return self._result(self._failed)
        self._watcher.join(max(0.0, self._seconds - (time.monotonic() - self._began)))
        if self._ended is None:
            self.stop()
            ended = f"ended after {self._seconds:.0f} s"
        else:
            ended = f"exit status {self._process.returncode}"
        self._signal(signal.SIGKILL)  # what it has left behind
        return self._result(ended)

    def stop(self) -> None:
        """Ask the whole group to end, then kill it."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        self._watcher.join(GRACE)
        self._signal(signal.SIGKILL)
        self._watcher.join()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):  # none of the group is left
            os.killpg(self._process.pid, number)

    def _result(self, ended: str) -> dict[str, Any]:
        with self._log.open("rb") as file:
            file.seek(self._start)
            output = file.read().decode(errors="replace")
        seconds = round((self._ended or time.monotonic()) - self._began, 1)
        return {"part": self.part.name, "ended": ended, "seconds": seconds, "output": output[-TAIL:]}


def skipped(part: Part, reason: str) -> dict[str, Any]:
    return {"part": part.name, "ended": f"not run: {reason}", "seconds": 0.0, "output": ""}


def succeeded(result: Mapping[str, Any]) -> bool:
    return result["ended"] == "exit status 0"


def failed(result: Mapping[str, Any]) -> bool:
    """Whether it was tried and did not end well; a part that was not run is no failure."""
    return not succeeded(result) and not result["ended"].startswith("not run: ")


def _lead_a_group() -> None:
    """In a child, before its program: it leads a new process group, and it ends when this process ends."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
