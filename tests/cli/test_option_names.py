"""Errors name options that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

import vlkd
from vlkd.cli import app

OF_OTHERS = {"--nproc-per-node", "--classifier"}  # torchrun's and Oscar's


def options(command: Any) -> set[str]:
    """Of a command and of those inside of it."""
    found = {name for parameter in command.params for name in parameter.opts}
    for inner in getattr(command, "commands", {}).values():
        found |= options(inner)
    return found


def messages() -> Iterator[tuple[str, str]]:
    """Every sentence that is raised or found in the package, without what is filled into it."""
    for path in sorted(Path(vlkd.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if isinstance(node, (ast.Raise, ast.Call)) and (
                isinstance(node, ast.Raise) or named in ("Finding", "tell")
            ):
                parts = [
                    one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)
                ]
                yield f"{path.name}:{node.lineno}", " ".join(parts)


def test_every_option_that_an_error_names_exists() -> None:
    known = options(get_command(app)) | OF_OTHERS
    named = {(place, name) for place, text in messages() for name in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)}
    assert len(named) > 20
    assert {(place, name) for place, name in named if name.rstrip("-") and name not in known} == set()


def test_an_argument_of_python_stands_beside_its_option() -> None:
    """`subset=True` alone is of no use to who typed a command."""
    for place, text in messages():
        if re.search(r"`[a-z]\w*=", text):
            assert "--" in text, (place, text)
