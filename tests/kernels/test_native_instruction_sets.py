"""The compiled losses as processors without AMX, without AVX-512, or without AVX, run them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from native_cases import needs_extension, processor_flags

from vlkd_kernels import extension

pytestmark = [pytest.mark.slow, needs_extension]

HERE = Path(__file__).parent
NO_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
has_amx = pytest.mark.skipif("amx_bf16" not in processor_flags(), reason="no AMX")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set")
@pytest.mark.parametrize(
    "limit",
    [{"ATEN_CPU_CAPABILITY": "default"}, {"ATEN_CPU_CAPABILITY": "avx2"}, pytest.param(NO_AMX, marks=has_amx)],
    ids=lambda limit: next(iter(limit.values())),
)
def test_every_instruction_set_passes_the_tests_of_the_best(limit: dict[str, str]) -> None:
    names = ("test_native_attention_mse.py", "test_attention_mse_near_teacher.py", "test_native_token_nce.py")
    files = [str(HERE / name) for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    result = subprocess.run(command, env=os.environ | limit, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@has_amx
def test_the_matrix_unit_is_used_unless_it_is_switched_off() -> None:
    ask = "from vlkd_kernels import extension; print(extension.build_info()['instruction_set'])"
    command = [sys.executable, "-c", ask]
    limited = subprocess.run(command, env=os.environ | NO_AMX, capture_output=True, text=True, check=True).stdout
    assert "AMX" in extension.build_info()["instruction_set"]
    assert "AVX512_BF16" in limited and "AMX" not in limited


@has_amx
def test_torch_can_use_the_matrix_unit_between_our_calls() -> None:
    """Both configure it for themselves; an instruction that meets the other's configuration is wrong, or kills the process."""
    torch.manual_seed(0)
    a, b, q, k = (torch.randn(64, 64).bfloat16() for _ in range(4))
    options = (None, None, None, None, 0.07, None, True, True, False, True)
    product, loss = a @ b, torch.ops.vlkd.token_nce(a, b, q, *options)[0]
    for _ in range(3):
        assert torch.equal(torch.ops.vlkd.token_nce(a, b, q, *options)[0], loss)
        assert torch.equal(a @ b, product)
        maps = torch.ops.vlkd.attention_mse(
            *(x[None, None] for x in (a, b, q, k)), 0.1, 0.1, None, None, False, "mse", True, True
        )
        assert torch.equal(a @ b, product) and maps[0].isfinite()
    torch.testing.assert_close(product.float(), (a.float() @ b.float()), rtol=2**-7, atol=1e-2)
