"""The compiled losses as processors without AVX-512, or without AVX, run it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from native_cases import needs_extension

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@needs_extension
@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set")
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_instruction_set_passes_the_tests_of_the_best(capability: str) -> None:
    names = ("test_native_attention_mse.py", "test_attention_mse_near_teacher.py", "test_native_token_nce.py")
    files = [str(HERE / name) for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
