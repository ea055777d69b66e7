"""Which tiles `token_nce` takes in Triton, and how it cuts its work for a GPU."""

from __future__ import annotations

import os

import pytest
import torch
from kernel_truth import assert_as_good, loss_and_gradients

pytest.importorskip("triton")

from vlkd_kernels import token_nce
from vlkd_kernels.token_nce import triton as nce
from vlkd_kernels.triton_attention import Gpu

H100, A100, B200 = Gpu((9, 0), 227 * 1024, 132), Gpu((8, 0), 163 * 1024, 108), Gpu((10, 0), 227 * 1024, 148)
CONFIGS = nce.similarity_config, nce.gradient_config, nce.CHUNK, nce.LEAST_TOKENS  # before the fixture makes them small


@pytest.fixture(autouse=True)
def real_tiles(small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(("similarity_config", "gradient_config", "CHUNK", "LEAST_TOKENS"), CONFIGS, strict=True):
        monkeypatch.setattr(nce, name, value)


@pytest.mark.parametrize("gpu", [H100, A100, B200])
def test_a_large_call_leaves_few_multiprocessors_idle(gpu: Gpu) -> None:
    tokens, columns, width = 32768, 16384, 768
    first = nce.similarity_config(torch.bfloat16, gpu, True, tokens, columns)
    second = nce.gradient_config(torch.bfloat16, gpu, True, tokens, width)
    chunk, piece = nce.cut(tokens, columns, width, gpu, first, second)
    assert chunk * piece <= nce.CHUNK and chunk % second.block_n == 0 and piece % first.block_k == 0
    of_products = (
        -(-chunk // first.block_n) * -(-piece // first.block_k),
        -(-chunk // second.block_n) * -(-width // second.block_e),
    )
    for tiles in of_products:
        assert tiles / (-(-tiles // gpu.multiprocessors) * gpu.multiprocessors) > 0.95


def test_tiles_shrink_until_every_multiprocessor_has_one() -> None:
    sizes = [
        nce.gradient_config(torch.bfloat16, H100, True, tokens, 768).block_e for tokens in (32768, 4096, 2048, 128)
    ]
    assert sizes == [256, 128, 64, 64]
    assert nce.similarity_config(torch.bfloat16, H100, True, 128, 4096).block_k == 64
    assert nce.similarity_config(torch.bfloat16, H100, True, 4096, 4096).block_k == 128


@pytest.mark.parametrize(
    ("dtype", "gpu", "aligned"),
    [(torch.float16, H100, True), (torch.bfloat16, H100, False), (torch.bfloat16, B200, True)],
)
def test_large_tiles_are_left_out_where_they_spill(dtype: torch.dtype, gpu: Gpu, aligned: bool) -> None:
    assert nce.similarity_config(dtype, gpu, aligned, 32768, 16384).block_k == 64


@pytest.mark.parametrize(("tokens", "columns", "width"), [(1, 1, 1), (5, 0, 768), (200_000, 7, 33), (64, 10**6, 64)])
def test_every_size_is_cut(tokens: int, columns: int, width: int) -> None:
    first = nce.similarity_config(torch.float32, H100, True, tokens, columns)
    chunk, piece = nce.cut(tokens, columns, width, H100, first, first)
    assert 1 <= chunk <= tokens and 1 <= piece <= max(columns, 1)


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="other tests take these tiles on a GPU")
def test_large_tiles_are_as_good_as_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest of both products, of which the last of each row and column are not full."""
    monkeypatch.setattr(nce, "gpu", lambda _: Gpu((9, 0), 227 * 1024, multiprocessors=2))
    torch.manual_seed(0)
    inputs = {name: torch.randn(n, 272).bfloat16() for name, n in (("h_s", 150), ("h_t", 150), ("negatives", 200))}
    taken = [
        nce.similarity_config(torch.bfloat16, nce.gpu(torch.device("cpu")), True, 150, 200),
        nce.gradient_config(torch.bfloat16, nce.gpu(torch.device("cpu")), True, 150, 272),
    ]
    assert [(config.block_n, config.block_k, config.block_e) for config in taken] == [(128, 128, 64), (128, 64, 256)]

    def call(backend: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        def loss(**x: torch.Tensor) -> torch.Tensor:
            return token_nce(**x, temperature=0.07, in_batch=True, backend=backend)

        return loss_and_gradients(loss, {name: x.to(dtype) for name, x in inputs.items()}, ("h_s",), 0.7)

    truth, plain = call("reference", torch.float64), call("reference", torch.bfloat16)
    for name, got in call("triton", torch.bfloat16).items():
        assert_as_good(name, got, truth[name], plain[name], torch.bfloat16)
