"""What only a GPU can show: graphs, streams, other devices, no waiting for the host, memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vlkd_kernels import RingQueue, attention_mse, available_backends, distill_attention, token_nce

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

Step = Callable[[Tensor], tuple[Tensor, ...]]
B, H, L, D = 4, 2, 70, 32


def draw(*shape: int, seed: int, device: str = "cuda") -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, torch.bfloat16)


def steps(device: str = "cuda") -> dict[str, Step]:
    """Each op with its backward as a function of the student's tensor [B, H, L, D], by op and backend."""
    k, q_t, k_t, v = (draw(B, H, L, D, seed=seed, device=device) for seed in range(1, 5))
    mask = torch.rand(B, 1, 1, L, generator=torch.Generator().manual_seed(5)).to(device) < 0.7

    def attention(backend: str) -> Step:
        def step(x: Tensor) -> tuple[Tensor, ...]:
            loss = attention_mse(x, k, q_t, k_t, attn_mask=mask, backend=backend)
            return loss, *torch.autograd.grad(loss, x)

        return step

    def distill(backend: str) -> Step:
        def step(x: Tensor) -> tuple[Tensor, ...]:
            out, loss = distill_attention(x, k, v, q_t, k_t, attn_mask=mask, backend=backend)
            return loss, *torch.autograd.grad(loss + out.float().square().mean(), x)

        return step

    def nce(backend: str) -> Step:
        def step(x: Tensor) -> tuple[Tensor, ...]:
            loss = token_nce(x.flatten(0, 2), q_t.flatten(0, 2), k_t.flatten(0, 2), backend=backend)
            return loss, *torch.autograd.grad(loss, x)

        return step

    makers = {"attention_mse": attention, "distill_attention": distill, "token_nce": nce}
    return {
        f"{op}/{backend}": make(backend)
        for op, make in makers.items()
        for backend in available_backends(op, device="cuda", dtype=torch.bfloat16)
        if backend not in ("reference", "cpu")
    }


CASES = tuple(steps()) if torch.cuda.is_available() else ("none",)


@pytest.mark.parametrize("case", CASES)
def test_the_same_bits_every_time(case: str) -> None:
    step, x = steps()[case], draw(B, H, L, D, seed=0).requires_grad_()
    first = step(x)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(first, step(x), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_a_graph_replays_the_call_on_new_numbers(case: str) -> None:
    step, x = steps()[case], draw(B, H, L, D, seed=0).requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(x)  # compiles, sets attributes
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(x)
    for seed in (6, 7):
        with torch.no_grad():
            x.copy_(draw(B, H, L, D, seed=seed))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, step(x), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_on_a_stream_of_its_own(case: str) -> None:
    """The input comes into being on that stream, after work that takes a while: a call on another would read too early."""
    step, source = steps()[case], draw(B, H, L, D, seed=0)
    expected = step(source.clone().requires_grad_())
    late, side = torch.zeros_like(source), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(source)
        got = step(late.requires_grad_())
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_on_another_device_than_the_current_one(case: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    x = draw(B, H, L, D, seed=0)
    expected = steps()[case](x.clone().requires_grad_())
    got = steps("cuda:1")[case](x.to("cuda:1").requires_grad_())
    assert all(torch.equal(a, b.to("cuda:0")) for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_the_host_is_never_waited_for(case: str) -> None:
    step, x = steps()[case], draw(B, H, L, D, seed=0).requires_grad_()
    step(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_queue_in_a_graph_and_without_the_host() -> None:
    one, other = (RingQueue(D, 100, device="cuda") for _ in range(2))
    rows, mask = draw(70, D, seed=0), torch.rand(70, generator=torch.Generator().manual_seed(1)).cuda() < 0.6
    one.enqueue_(rows, mask=mask)
    other.enqueue_(rows, mask=mask)
    graph, later = torch.cuda.CUDAGraph(), [draw(70, D, seed=seed) for seed in range(2, 6)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.graph(graph):
            one.enqueue_(rows, mask=mask)
        for new in later:
            rows.copy_(new)
            graph.replay()
            other.enqueue_(rows, mask=mask)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, buffer in one.named_buffers():
        assert torch.equal(buffer, other.get_buffer(name)), name


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("attention_mse")])
def test_memory_grows_with_the_inputs_and_not_with_the_maps(case: str) -> None:
    """Twice the length is four times the map; what a call needs beside its inputs only doubles."""
    backend, needed = case.split("/")[1], []
    for length in (128, 256):
        tensors = [draw(8, 12, length, 32, seed=seed) for seed in range(4)]
        x = tensors[0].requires_grad_()
        attention_mse(*tensors, backend=backend).backward()
        x.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        attention_mse(*tensors, backend=backend).backward()
        needed.append(torch.cuda.max_memory_allocated() - before)
    assert needed[1] <= 2.1 * needed[0]
    assert needed[1] < 2 * 8 * 12 * 256 * 256 * 2  # two maps in bfloat16
