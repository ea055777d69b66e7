"""Every operator once on every backend of the device, at ragged sizes: what compute-sanitizer and ncu watch.

    compute-sanitizer --tool racecheck python -m benchmarks.gpu.drive
    ncu --clock-control none python -m benchmarks.gpu.drive

Results are held to the reference's, so that a wrong one is found by whoever runs it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vlkd_kernels import RingQueue, attention_mse, available_backends, distill_attention, token_nce

TOLERANCE = 5e-2  # of the largest entry, in half precision
Tensors = tuple[Tensor, ...]
Step = Callable[[str], Tensors]


def steps(device: str) -> Iterator[tuple[str, Step]]:
    """By operator: outputs and gradients by a backend. Masks, causal rows, grouped heads, ids and a partly filled queue are there."""
    generator = torch.Generator().manual_seed(0)
    # Beyond 256 keys other kernels run; an interpreter takes minutes for those.
    batch, short, long = (2, 37, 300) if device == "cuda" else (1, 19, 40)

    def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    def mask(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator) < 0.7).to(device)

    for length, distance, causal in ((short, "mse", False), (short, "kl", True), (long, "mse", False)):
        students = draw(batch, 4, length, 32), draw(batch, 2, length, 32), draw(batch, 2, length, 32)
        rest = {
            "q_t": draw(batch, 4, length, 64), "k_t": draw(batch, 4, length, 64),
            "attn_mask": mask(batch, 1, 1, length), "query_mask": mask(batch, length), "is_causal": causal, "distance": distance,
        }  # fmt: skip
        yield f"attention_mse, {length} keys, {distance}", partial(_attention, students[:2], rest)
        yield f"distill_attention, {length} keys, {distance}", partial(_distilled, students, rest)

    queue = RingQueue(96, 200, dtype=torch.bfloat16, device=device)
    queue.enqueue_(draw(150, 96), ids=torch.arange(150, device=device), backend="reference")
    h_s, h_t, counted, ids = draw(70, 96), draw(70, 96), mask(70), torch.arange(70, device=device)

    rest = {"token_mask": counted, "token_ids": ids, "in_batch": True}
    yield "token_nce", partial(_nce, h_s, (h_t, queue), rest)
    yield "ring_queue", partial(_written, h_t, counted)


def _attention(students: Tensors, rest: dict[str, Any], backend: str) -> Tensors:
    return _with_gradients(lambda q, k: (attention_mse(q, k, **rest, backend=backend),), *students)


def _distilled(students: Tensors, rest: dict[str, Any], backend: str) -> Tensors:
    return _with_gradients(lambda q, k, v: distill_attention(q, k, v, **rest, backend=backend), *students)


def _nce(h_s: Tensor, others: tuple[Tensor, RingQueue], rest: dict[str, Any], backend: str) -> Tensors:
    return _with_gradients(lambda x: (token_nce(x, *others, **rest, backend=backend),), h_s)


def _written(rows: Tensor, mask: Tensor, backend: str) -> Tensors:
    queue = RingQueue(rows.shape[1], 64, dtype=rows.dtype, device=rows.device)
    for _ in range(3):
        queue.enqueue_(rows, mask=mask, backend=backend)
    return queue.rows, queue.head.float(), queue.fill.float()


def _with_gradients(function: Callable[..., Any], *students: Tensor) -> Tensors:
    leaves = [x.detach().requires_grad_() for x in students]
    outputs = function(*leaves)
    total = sum(x.float().sum() for x in outputs)
    assert isinstance(total, Tensor)
    return (*(x.detach() for x in outputs), *torch.autograd.grad(total, leaves))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.drive", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args(arguments).device
    for name, step in steps(device):
        op = name.split(",")[0]
        expected = step("reference")
        backends = [b for b in available_backends(op, device=device, dtype=torch.bfloat16) if b != "reference"]
        assert backends, f"{name}: nothing but the reference runs here"
        for backend in backends:
            for got, truth in zip(step(backend), expected, strict=True):
                off, largest = (got.float() - truth.float()).abs().max(), truth.float().abs().max()
                assert off <= TOLERANCE * max(largest.item(), 1e-6), f"{name} by {backend}: off by {off:.3g}"
            if device == "cuda":
                torch.cuda.synchronize()
            print(f"{name} by {backend}: right", flush=True)


if __name__ == "__main__":
    main()
