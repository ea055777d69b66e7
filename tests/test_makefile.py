"""`make install` takes the tried versions, says so, and goes on with the newest where they cannot be had; constraints.txt."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PINS = {
    name: Version(version)
    for name, version in re.findall(r"^(\S+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}

# Stands for python: makes an environment whose python writes down what it is asked; pip fails where a constraint is not to be had.
PYTHON = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
  "-m venv "*) mkdir -p .venv/bin && cp "$0" .venv/bin/python;;
  *"$MISSING"*) echo "ERROR: no such version" >&2; exit 1;;
esac
"""

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def make(folder: Path, *arguments: str, missing: str = "nothing is missing") -> tuple[list[str], str]:
    """What python was asked, a line each, and what make said."""
    if not (folder / "Makefile").exists():
        for name in ("Makefile", "pyproject.toml", "setup.py", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        (folder / "csrc").mkdir()
        (folder / "python").write_text(PYTHON)
        (folder / "python").chmod(0o755)
    log = folder / "log"
    log.write_text("")
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LOG": str(log), "MISSING": missing}
    command = ["make", f"PYTHON={folder / 'python'}", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line for line in log.read_text().splitlines() if "pip install" in line], done.stdout + done.stderr


@needs_make
def test_install_takes_the_tried_versions_once(tmp_path: Path) -> None:
    asked, said = make(tmp_path, "install")
    assert "Installing the versions of constraints.txt" in said and "going on" not in said
    assert ["--constraint constraints.txt" in line for line in asked] == [False, True, True]
    assert "torch>=" in asked[1] and "torchvision>=" in asked[1]  # together, so that they fit each other
    assert asked[2].endswith("--no-build-isolation -e .[train,eval,bench,dev]")
    assert make(tmp_path, "install")[0] == []


@needs_make
def test_install_goes_on_with_the_newest_where_a_version_cannot_be_had(tmp_path: Path) -> None:
    asked, said = make(tmp_path, "install", missing="--constraint constraints.txt torch")
    assert "Not all versions of constraints.txt can be had here" in said
    assert ["--constraint" in line for line in asked] == [False, True, False, True]
    assert "--upgrade torch" not in asked[2] and "torch>=" in asked[2]


@needs_make
def test_latest_takes_the_newest_also_in_an_environment_that_is_there(tmp_path: Path) -> None:
    make(tmp_path, "install")
    asked, said = make(tmp_path, "install", "LATEST=1")
    assert "Installing the newest versions" in said
    assert [("--constraint" in line, "--upgrade" in line) for line in asked] == [(False, True)] * 3
    assert make(tmp_path, "install")[0] == []  # and they stay


def test_every_requirement_has_a_version_that_it_allows() -> None:
    wanted = [Requirement(line) for line in requires("vlkd") or () if "peers" not in line]
    assert len(wanted) > 20 and {one.name for one in wanted} <= set(PINS)
    assert [str(one) for one in wanted if PINS[one.name] not in one.specifier] == []


def test_the_versions_are_ones_with_which_nothing_is_skipped() -> None:
    """As kernel_truth.py says: with others, the tests of Triton's kernels need a GPU."""
    assert PINS["triton"] >= Version("3.9") or PINS["numpy"] < Version("2.4")
