"""The documentation's examples run and show what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def test_the_fused_attention_loss_trains_as_the_eager_one() -> None:
    command = [sys.executable, EXAMPLES / "bert_attention.py", "2", "12", "3"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    eager, fused = re.findall(r"losses (\S+) to (\S+)", printed)
    for before, after in zip(eager, fused, strict=True):
        assert abs(float(after) / float(before) - 1) < 1e-3
    assert float(fused[0]) != float(fused[1])
