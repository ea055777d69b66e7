"""Packages that import their names when these are asked for."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["vlkd.data", "vlkd.regions", "vlkd.data.oscar"])
def test_every_exported_name_is_there_and_none_else(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


def test_checking_files_loads_neither_torch_nor_transformers() -> None:
    """What makes `vlkd data validate` start in a second."""
    code = "import sys, vlkd.cli, vlkd.data.oscar; print({'torch', 'transformers', 'pyarrow'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
