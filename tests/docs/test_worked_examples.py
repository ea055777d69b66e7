"""Each operator's README has an example to check by hand, and its numbers are the operator's."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "vlkd_kernels"
OPERATORS = sorted(page.parent.name for page in KERNELS.glob("*/README.md"))


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_worked_example_is_right(operator: str) -> None:
    failed, tried = doctest.testfile(str(KERNELS / operator / "README.md"), module_relative=False, encoding="utf-8")
    assert tried > 3 and failed == 0
