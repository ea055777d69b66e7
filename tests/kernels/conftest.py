"""The kernels' tests run on the GPU if there is one, else on the CPU with Triton's interpreter (tests/conftest.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs under Triton's interpreter is slow."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if "triton" in parameters.values() and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the interpreter, tiles so small that small shapes have several of them in every direction."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    from vlkd_kernels.attention_mse import triton as attention_mse
    from vlkd_kernels.token_nce import triton as token_nce

    def small_head(dtype: object, keys: int, width: int, gpu: object) -> attention_mse.TileConfig:
        """Of every dtype, so that all tests go through this kernel too."""
        return attention_mse.TileConfig(16, attention_mse.padded(keys), attention_mse.padded(width), 1, 1)

    monkeypatch.setattr(attention_mse, "head_config", small_head)
    monkeypatch.setattr(attention_mse, "tile_config", lambda *_: attention_mse.TileConfig(16, 16, 32, 1, 1))
    monkeypatch.setattr(token_nce, "similarity_config", lambda *_: token_nce.TileConfig(16, 32, 32, 1, 1, strips=4))
    monkeypatch.setattr(token_nce, "gradient_config", lambda *_: token_nce.TileConfig(16, 32, 32, 1, 1, strips=2))
    monkeypatch.setattr(token_nce, "SOFTMAX_COLUMNS", 32)
    monkeypatch.setattr(token_nce, "CHUNK", 16)
    monkeypatch.setattr(token_nce, "LEAST_TOKENS", 16)
