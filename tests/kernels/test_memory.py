"""No map is ever in memory: what a call allocates grows with the inputs, not with their product."""

from __future__ import annotations

import pytest
import torch
from kernel_truth import DEVICE, need
from torch import Tensor

from benchmarks.steps import allocations
from vlkd_kernels import attention_map, attention_mse, distill_attention, token_nce

CHUNK = 16 * 2**20  # bytes that may be held beside inputs and gradients

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DEVICE != "cpu", reason="test_on_a_gpu.py measures there"),
]


def heads(length: int, width: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, *rest = (torch.randn(1, 2, length, width, generator=generator) for _ in range(5))
    return [q.requires_grad_(), k.requires_grad_(), *rest]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_cpu_attention_mse(distance: str, masked: bool) -> None:
    need("attention_mse", "cpu")
    length = 2048
    q, k, q_t, k_t, _ = heads(length)
    mask = torch.rand(length) < 0.9 if masked else None

    def step() -> None:
        attention_mse(q, k, q_t, k_t, attn_mask=mask, is_causal=masked, distance=distance, backend="cpu").backward()

    step()
    changes, held = allocations(step)
    assert max(changes) <= CHUNK and max(held) <= CHUNK + q.nbytes + k.nbytes  # scaled where they are
    assert length * length * 4 >= CHUNK  # a single head's map would not pass


def test_cpu_distill_attention() -> None:
    need("distill_attention", "cpu")
    q, k, v, q_t, k_t = heads(2048)

    def step() -> None:
        out, loss = distill_attention(q, k, v, q_t, k_t, backend="cpu")
        (out.sum() + loss).backward()

    step()
    changes, held = allocations(step)
    assert max(changes) <= CHUNK and max(held) <= CHUNK + 8 * q.nbytes


def test_cpu_token_nce() -> None:
    need("token_nce", "cpu")
    h, h_t, queue = torch.randn(2048, 16, requires_grad=True), torch.randn(2048, 16), torch.randn(8192, 16)
    changes, held = allocations(lambda: token_nce(h, h_t, queue, backend="cpu").backward())
    assert max(changes) <= CHUNK and max(held) <= 2 * CHUNK  # the logits would be 64 MiB


@pytest.mark.parametrize("plot", [{"heads": "mean", "rows": range(16)}, {"heads": "all", "rows": range(16)}])
def test_attention_map_of_a_few_rows(plot: dict) -> None:
    q, k, *_ = (x.detach() for x in heads(4096))
    _, held = allocations(lambda: attention_map(q, k, **plot))
    assert max(held) <= CHUNK


@pytest.mark.parametrize("op", ["attention_mse", "distill_attention"])
def test_triton(op: str) -> None:
    """Twice the length, twice all that is ever allocated; a map would be four times as large."""
    need(op, "triton")
    totals = []
    for length in (48, 96):
        q, k, v, q_t, k_t = heads(length)

        def step(q=q, k=k, v=v, q_t=q_t, k_t=k_t) -> None:
            if op == "attention_mse":
                attention_mse(q, k, q_t, k_t, backend="triton").backward()
            else:
                out, loss = distill_attention(q, k, v, q_t, k_t, backend="triton")
                (out.sum() + loss).backward()

        totals.append(sum(change for change in allocations(step)[0] if change > 0))
    assert totals[1] <= 2.2 * totals[0]
