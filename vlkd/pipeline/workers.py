"""Work that depends on other work, done by several processes.

The models of a small recipe keep one core busy and no more: two processes of one thread each are nearly twice as fast as one
process of two threads. So independent stages run side by side, each with the same number of threads however many
processes there are, which keeps the trained bits the same.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any

import torch

from vlkd.errors import VlkdError
from vlkd.pipeline.workshop import Workshop
from vlkd.progress import Board, report_to
from vlkd.training.arguments import process_state

_MOST_WORKERS = 4
_REPORT_EVERY = 0.2  # seconds
_PATIENCE = 1.0  # seconds that a worker has to clear up


@dataclass(frozen=True)
class Work:
    """Something to do: ``do(workshop)``, a picklable call, after the works named in ``after``."""

    name: str
    do: Callable[[Workshop], Any]
    after: tuple[str, ...] = ()


def do_all(works: Sequence[Work], workshop: Workshop, workers: int | None = None) -> dict[str, Any]:
    """Do all works and return what each returned, by name.

    Args:
        works: none before those that it comes after. Among those that are ready, the first is taken.
        workshop: not yet opened; every process opens one like it.
        workers: processes. None takes one for every core up to four, or works in this process where there is a GPU;
            so does 1.

    Raises:
        VlkdError: a work failed with it, or a process died.
        OSError: a work failed with it.
        RuntimeError: a work failed otherwise; the message holds its traceback.
    """
    workers = min(workers or default_workers(), len(works))
    with Board(quiet=not process_state().is_main_process) as board:
        if workers <= 1:
            return _do_here(works, workshop, board)
        crew = _Crew(workshop, workers)
        try:
            return crew.do(works, board)
        finally:
            crew.dismiss()


def default_workers() -> int:
    """Processes that ``do_all`` takes by itself."""
    return 1 if torch.accelerator.is_available() else min(_cores(), _MOST_WORKERS)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads() -> int:
    """Of every work, whatever the number of workers: results depend on it in the last bits."""
    return max(1, _cores() // _MOST_WORKERS)


def _do_here(works: Sequence[Work], workshop: Workshop, board: Board) -> dict[str, Any]:
    results = {}
    with few_threads(), workshop:
        for work in works:
            board.begin(work.name)
            with report_to(lambda done, total, name=work.name: board.update(name, done, total)):
                results[work.name] = work.do(workshop)
            board.end(work.name)
    return results


@contextmanager
def few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(_threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _context() -> Any:
    """Starts processes that take over none of this one's threads, on Linux without importing everything in each of them."""
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["vlkd.pipeline"])
    return context


class _Crew:
    """Processes that take one work after another."""

    def __init__(self, workshop: Workshop, workers: int) -> None:
        context = _context()
        self._processes = {}
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, workshop), daemon=True)
            process.start()
            theirs.close()
            self._processes[ours] = process

    def do(self, works: Sequence[Work], board: Board) -> dict[str, Any]:
        waiting, results = list(works), {}
        idle, busy = list(self._processes), {}
        while waiting or busy:
            for work in [work for work in waiting if all(name in results for name in work.after)][: len(idle)]:
                waiting.remove(work)
                line = idle.pop()
                line.send(work)
                busy[line] = work
                board.begin(work.name)
            for line in wait(list(busy)):
                assert isinstance(line, Connection)
                kind, content = self._hear(line, busy[line])
                name = busy[line].name
                if kind == "progress":
                    board.update(name, *content)
                    continue
                results[name] = content
                board.end(name)
                del busy[line]
                idle.append(line)
        return results

    def _hear(self, line: Connection, work: Work) -> tuple[str, Any]:
        try:
            kind, content = line.recv()
        except EOFError:
            process = self._processes[line]
            process.join()
            raise VlkdError(
                f"The process that worked on {work.name} died (exit status {process.exitcode}; -9 is often a lack of "
                "memory). The same command takes up where it was; with --jobs 1 it needs less memory."
            ) from None
        if kind == "failed":
            error, trace = content
            if error is not None:
                raise error
            raise RuntimeError(f"{work.name} failed:\n{trace}")
        return kind, content

    def dismiss(self) -> None:
        """End all processes; those that still work are stopped."""
        for line in self._processes:
            line.close()
        for process in self._processes.values():
            process.join(timeout=_PATIENCE)
            process.terminate()
            process.join()


def _serve(line: Connection, workshop: Workshop) -> None:
    """A worker process: take works from ``line`` until the parent closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends its workers
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    torch.set_num_threads(_threads())
    closed = suppress(EOFError, ConnectionError)
    with closed, workshop, report_to(_Throttled(line)):
        while True:
            work: Work = line.recv()
            try:
                answer = ("done", work.do(workshop))
            except Exception as error:  # whatever it is, the parent decides
                told = error if isinstance(error, (VlkdError, OSError)) else None
                answer = ("failed", (told, traceback.format_exc()))
            line.send(answer)


def _end_with(parent: BaseProcess | None) -> None:
    """A killed parent ends its workers too: the same command given again finds the folders free."""
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


class _Throttled:
    """Sends progress, seldom enough."""

    def __init__(self, line: Connection) -> None:
        self._line = line
        self._sent = 0.0

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now - self._sent >= _REPORT_EVERY:
            self._sent = now
            self._line.send(("progress", (done, total)))
