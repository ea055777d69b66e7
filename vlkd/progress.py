"""Progress on standard error, one look for the whole package: a bar for a loop, a board for works side by side."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
Report = Callable[[int, "int | None"], None]

_reports: list[Report] = []


def track(items: Iterable[Item], description: str, total: int | None = None) -> Generator[Item]:
    """Iterate over ``items`` under a progress bar with the time left.

    ``total`` is taken from ``len(items)`` where it has one. Where standard error is no terminal (a log
    file, CI) the bar is replaced by one line at the end. Inside :func:`report_to` nothing is drawn.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    if _reports:
        report = _reports[-1]
        for done, item in enumerate(items):
            report(done, total)
            yield item
        return
    with _progress() as progress:
        yield from progress.track(items, total=total, description=description)


@contextmanager
def report_to(report: Report) -> Iterator[None]:
    """Loops under :func:`track` call ``report(done, total)`` instead of drawing bars."""
    _reports.append(report)
    try:
        yield
    finally:
        _reports.remove(report)


class Board:
    """A line for every work in progress, and one that stays for each that has ended. Use it in a ``with`` statement.

    ``quiet`` draws nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._progress = _progress(quiet)
        self._rows: dict[str, tuple] = {}

    def __enter__(self) -> Board:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        for row, _ in self._rows.values():
            self._progress.remove_task(row)
        self._progress.stop()

    def begin(self, name: str) -> None:
        self._rows[name] = self._progress.add_task(name, total=None), time.monotonic()

    def update(self, name: str, done: int, total: int | None) -> None:
        self._progress.update(self._rows[name][0], completed=done, total=total)

    def end(self, name: str) -> None:
        row, began = self._rows.pop(name)
        self._progress.remove_task(row)
        seconds = time.monotonic() - began
        self._progress.console.print(f"{name:<32} {seconds:7.1f} s", highlight=False)


def _progress(quiet: bool = False) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr, quiet=quiet),
    )
