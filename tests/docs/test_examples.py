"""The documentation's examples run and show what they say."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import fresh_process
import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.mark.slow
def test_the_fused_attention_loss_trains_as_the_eager_one() -> None:
    finished = fresh_process.start(_run, str(EXAMPLES / "bert_attention.py"), "2", "12", "3").end()
    assert finished.returncode == 0, finished.stderr
    eager, fused = re.findall(r"losses (\S+) to (\S+)", finished.stdout)
    for before, after in zip(eager, fused, strict=True):
        assert abs(float(after) / float(before) - 1) < 1e-3
    assert float(fused[0]) != float(fused[1])


def _run(*arguments: str) -> None:
    sys.argv = list(arguments)
    runpy.run_path(arguments[0], run_name="__main__")
