"""Processes of their own for tests, without the six seconds that a new interpreter spends on imports.

They are forked from a server (the standard library's "forkserver") that has imported what all of them need and has done nothing
else: no thread runs in it, Triton's interpreter is off, and whatever a test changed in its own process is not there. Production
code that starts processes by the same method from such a process, torchrun among it, gets them from the same server.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = ("vlkd.cli", "vlkd.pipeline", "vlkd.training", "transformers.trainer", "torch.distributed.run")


@dataclass(frozen=True)
class Finished:
    returncode: int  # negative: the signal that ended it
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Started:
    process: BaseProcess
    output: tempfile.TemporaryDirectory

    @property
    def stderr(self) -> str:
        """What it has written so far."""
        path = Path(self.output.name, "2")
        return path.read_text() if path.exists() else ""

    def end(self, timeout: float = 300) -> Finished:
        """Wait for it; one that takes longer is killed, and the test fails."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"it still ran after {timeout} seconds:\n{self.stderr}")
        with self.output:
            stdout, stderr = (Path(self.output.name, fd).read_text() for fd in "12")
            return Finished(self.process.exitcode, stdout, stderr)


def start(call: Callable[..., Any], *arguments: object, **environment: str) -> Started:
    """``call(*arguments)``, an importable function, in a process with these variables besides its own."""
    output = tempfile.TemporaryDirectory()
    process = _server().Process(target=_child, args=(output.name, environment, call, arguments))
    process.start()
    return Started(process, output)


def run_vlkd(*arguments: object) -> Finished:
    """``vlkd …`` as a shell runs it."""
    return start(vlkd, *map(str, arguments), COLUMNS="120").end()


def vlkd(*arguments: str) -> None:
    """The command, for a process that was started above."""
    from vlkd.cli import main

    sys.argv = ["vlkd", *arguments]
    main()


@cache
def _server() -> Any:
    context = get_context("forkserver")
    forkserver._forkserver._stop()  # one that code under test started, with Triton's interpreter on
    context.set_forkserver_preload(list(PRELOADED))
    interpreter = os.environ.pop("TRITON_INTERPRET", None)
    try:
        forkserver.ensure_running()
    finally:
        if interpreter is not None:
            os.environ["TRITON_INTERPRET"] = interpreter
    return context


def _child(output: str, environment: dict[str, str], call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    for fd in (1, 2):
        os.dup2(os.open(Path(output, str(fd)), os.O_WRONLY | os.O_CREAT | os.O_APPEND), fd)
    os.environ.update(environment)
    call(*arguments)
