"""What the long commands share: they can be stopped and given again, and several processes may run one."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C inside is one sentence and status 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("vlkd: stopped; the same command takes up where it was.", err=True)
        raise typer.Exit(130) from None


def tell(text: str) -> None:
    """Print, once however many processes ``torchrun`` started."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(text)


def command_line() -> str:
    """What was typed, for reports."""
    return shlex.join(["vlkd", *sys.argv[1:]])
