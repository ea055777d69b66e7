"""The compiled ring_enqueue_ against a queue written as Python lists; on a GPU too, where there is one."""

from __future__ import annotations

import pytest
import torch
from native_cases import DTYPES, SLACK, Ring, needs_extension, poisoned_memory  # noqa: F401

from vlkd_kernels import extension
from vlkd_kernels.ring_queue import native as ring

pytestmark = [needs_extension, pytest.mark.usefixtures("poisoned_memory")]

DEVICES = ["cpu"]
if torch.cuda.is_available() and extension.build_info().get("cuda"):
    DEVICES.append("cuda")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [0, 1, 7, 64])
@pytest.mark.parametrize("masked", [False, True])
def test_ring_is_a_ring(size: int, masked: bool, device: str) -> None:
    queue = Ring(size, 3, device=device)
    for count in (3, 0, 1, 5, 7, 2, 30, 1, 64, 129, 4000):
        mask = torch.rand(count, device=device) < 0.6 if masked else None
        ids = torch.arange(count, device=device) if count % 2 else None
        queue.enqueue(torch.randn(count, 3, device=device), mask, ids)
        queue.check()


@pytest.mark.parametrize("device", DEVICES)
def test_ring_takes_nothing_when_the_mask_hides_everything(device: str) -> None:
    queue = Ring(4, 2, device=device)
    queue.enqueue(torch.randn(3, 2, device=device), None, None)
    queue.enqueue(torch.randn(9, 2, device=device), torch.zeros(9, dtype=torch.bool, device=device), None)
    queue.check()
    assert queue.fill.item() == 3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("new_dtype", DTYPES)
def test_ring_converts_as_torch_does_and_reads_through_strides(
    dtype: torch.dtype, new_dtype: torch.dtype, device: str
) -> None:
    queue = Ring(5, 40, dtype, device)
    new = torch.randn(40, 14, device=device).to(new_dtype).T[:, :][::2]
    mask = torch.ones(14, dtype=torch.bool, device=device)[::2]
    queue.enqueue(new, mask, torch.arange(14, device=device)[::2])
    queue.check()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ring_normalises_in_float32(dtype: torch.dtype, device: str) -> None:
    queue = Ring(6, 129, dtype, device)
    new = torch.randn(4, 129, device=device).to(dtype)
    new[2] = 0
    ring.enqueue_(*queue.state(), new, None, None, True)
    truth = torch.nn.functional.normalize(new.double(), dim=-1, eps=1e-12)
    # one rounding to the queue's dtype, half its epsilon relative, besides those of the float32 norm
    torch.testing.assert_close(queue.rows[:4].double(), truth, rtol=torch.finfo(dtype).eps / 2 + SLACK[dtype], atol=0)
    assert not queue.rows[2].any()


def test_ring_write_invalidates_what_autograd_saved() -> None:
    queue = Ring(4, 3)
    h = torch.randn(2, 3, requires_grad=True)
    loss = (h @ queue.rows.T).sum()
    ring.enqueue_(*queue.state(), torch.randn(2, 3), None, None, False)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.skipif("cuda" not in DEVICES, reason="needs a GPU and an extension with CUDA")
def test_ring_replays_in_a_cuda_graph() -> None:
    queue, twin = (Ring(7, 3, device="cuda") for _ in range(2))
    new, mask = torch.randn(5, 3, device="cuda"), torch.rand(5, device="cuda") < 0.5
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ring.enqueue_(*queue.state(), new, mask, None, False)
    for _ in range(6):
        new.normal_()
        mask.bernoulli_(0.6)
        graph.replay()
        twin.enqueue(new, mask, None)
    for a, b in zip(queue.state(), twin.state(), strict=True):
        assert torch.equal(a, b)
