"""Which backend is picked, and what is said of the others."""

from __future__ import annotations

import subprocess
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from vlkd_kernels import available_backends, explain_backend, extension
from vlkd_kernels.backends import BACKENDS, OPS, BackendError, choose


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_every_backend_is_explained(op: str, device: str) -> None:
    statuses = explain_backend(op, device=device)
    assert sorted(status.backend for status in statuses) == sorted(BACKENDS)
    assert all(status.reason for status in statuses)
    assert "reference" in available_backends(op, device=device)


def test_none_picks_the_first_available() -> None:
    expected = "cpu" if extension.load() is not None else "reference"
    for op in OPS:
        assert choose(op, None, "cpu", torch.float32) == expected == available_backends(op, device="cpu")[0]
    assert choose("attention_mse", None, "mps", torch.float32) == "reference"


def test_without_the_extension_the_library_works_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "load", lambda: None)
    monkeypatch.setattr(extension, "why_not", lambda: "it is not built")
    assert choose("token_nce", None, "cpu", torch.float32) == "reference"
    reasons = {status.backend: status.reason for status in explain_backend("token_nce", device="cpu")}
    assert reasons["cpu"] == "the compiled extension is not loaded: it is not built"


@pytest.mark.parametrize(
    ("dtype", "keys", "widths", "refusal"),
    [
        (torch.bfloat16, 128, (32, 64), None),
        (torch.float32, 128, (32, 64), "float16 or bfloat16, got float32"),
        (torch.bfloat16, 512, (32, 64), "up to 128 keys .* or 256 keys"),
        (torch.bfloat16, 256, (128, 64), "up to 128 keys .* or 256 keys"),
        (torch.bfloat16, 256, (64, 128), "needs 154144 bytes of shared memory .* this GPU has 101376"),
    ],
)
def test_what_the_cuda_kernel_takes(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, keys: int, widths: tuple[int, int], refusal: str | None
) -> None:
    if not extension.build_info().get("cuda"):
        pytest.skip("the extension is built without CUDA")
    limit = types.SimpleNamespace(shared_memory_per_block_optin=101376)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: limit)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(extension, "runs_on", lambda *_: "machine code")
    with pytest.raises(BackendError, match=refusal) if refusal else nullcontext():
        assert choose("attention_mse", "cuda", "cuda", dtype, keys, widths) == "cuda"
    if keys == 128:
        with pytest.raises(BackendError, match=refusal) if refusal else nullcontext():
            assert choose("token_nce", "cuda", "cuda", dtype) == "cuda"


def test_the_extension_may_be_compiled_for_other_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    if not extension.build_info().get("cuda"):
        pytest.skip("the extension is built without CUDA")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(BackendError, match="this GPU is of compute capability 7\\.5; install vlkd again here"):
        choose("token_nce", "cuda", "cuda", torch.bfloat16)


def test_an_unknown_op_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match="op must be one of 'attention_mse', 'distill_attention', 'token_nce', 'ring_queue', got 'softmax'",
    ):
        explain_backend("softmax")


@pytest.mark.slow
def test_imports() -> None:
    """Importing loads neither kernels nor the extension; no part needs the training package or its libraries."""
    code = """
import sys
import vlkd_kernels
print([name for name in ("vlkd_kernels._C", "vlkd_kernels.triton_tiles") if name in sys.modules])
import vlkd_kernels.attention_mse.reference, vlkd_kernels.attention_mse.triton
import vlkd_kernels.token_nce.reference, vlkd_kernels.token_nce.triton
vlkd_kernels.build_info()
print(sorted({name.split(".")[0] for name in sys.modules} & {"vlkd", "transformers", "torchvision", "datasets"}))
"""
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["[]", "[]"]
