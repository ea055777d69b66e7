"""The least time a step can take: what it must move and compute, over what the machine was measured to do.

`Work` counts bytes, operations of matrix products and exponentials; `ceilings` measures the device; a step's floor is the slowest of
the three. Each contender is judged by its own: a way that writes the maps must also move them.

Shapes: B batch, H heads, L queries, M keys, D head width, N tokens, E embedding width, K queue rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

PHASES = ("forward", "backward", "both")


class Work(NamedTuple):
    """What a step must do at least."""

    bytes: float
    operations: float  # a multiplication and an addition are two
    exponentials: float

    def __add__(self, other: Work) -> Work:  # type: ignore[override]
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


# How often a contender's maps (attention) or logits (token_nce) go to memory or come back, forward and backward.
#   eager attention: each side's product writes, the scale reads and writes, softmax reads and writes; the mean square reads two.
#     Back: the square reads two and writes one, softmax reads two and writes one, the scale reads and writes, two products read.
#   torch.compile: both products write, one kernel reads both; back, one kernel reads both and writes one, two products read.
#   eager nce: product, concatenation and division (float32 copies included) 8; back 6. torch.compile: 3; back 4.
PASSES = {
    ("attention_mse", "eager"): (12, 10),
    ("attention_mse", "torch.compile"): (4, 5),
    ("distill_attention", "eager"): (14, 14),
    ("token_nce", "eager"): (8, 6),
    ("token_nce", "torch.compile"): (3, 4),
    ("token_nce", "lightly"): (8, 6),
}


def attention_mse(
    name: str, phase: str, batch: int, heads: int, length: int, width_s: int, width_t: int, size: int
) -> Work:
    """L = M; `size` bytes an element. The gradient counts as forward for those who have it there."""
    rows, entries = batch * heads * length, batch * heads * length * length
    inputs, gradients = 2 * rows * (width_s + width_t) * size, 2 * rows * width_s * size
    scores, backward = 2 * entries * (width_s + width_t), 4 * entries * width_s
    passes = PASSES.get(("attention_mse", name))
    if passes is None:  # in one pass, probabilities from memory to nowhere; backward is a multiplication by a number
        forward = Work(inputs, scores, 2 * entries)
        return {
            "forward": forward,
            "backward": Work(2 * gradients, 0, 0),
            "both": forward + Work(3 * gradients, backward, 0),
        }[phase]
    maps = entries * size
    forward = Work(inputs + passes[0] * maps, scores, 2 * entries)
    back = Work(inputs + gradients + passes[1] * maps, backward, 0)
    return {"forward": forward, "backward": back, "both": forward + back}[phase]


def distill_attention(
    name: str, phase: str, batch: int, heads: int, length: int, width_s: int, width_t: int, size: int
) -> Work:
    """L = M, values as wide as the student's queries. "attention alone" has neither teacher nor loss."""
    rows, entries = batch * heads * length, batch * heads * length * length
    teacher = 0 if name == "attention alone" else width_t
    exponentials = entries * (1 if name == "attention alone" else 2)
    inputs, outputs = rows * (3 * width_s + 2 * teacher) * size, rows * width_s * size
    passes = PASSES.get(("distill_attention", name), (0, 0))
    forward = Work(inputs + outputs + passes[0] * entries * size, 2 * entries * (2 * width_s + teacher), exponentials)
    back = Work(
        inputs + 5 * outputs + passes[1] * entries * size,
        2 * entries * (5 * width_s + teacher),
        0 if passes[1] else exponentials,
    )
    return {"forward": forward, "backward": back, "both": forward + back}[phase]


def token_nce(name: str, phase: str, tokens: int, rows: int, width: int, size: int) -> Work:
    """The gradient counts as forward for those who have it there."""
    inputs, gradient, entries = (2 * tokens + rows) * width * size, tokens * width * size, tokens * rows
    passes = PASSES.get(("token_nce", name))
    product = 2 * entries * width
    if passes is None:
        forward = Work(inputs, product, entries)
        return {
            "forward": forward,
            "backward": Work(2 * gradient, 0, 0),
            "both": forward + Work(3 * gradient, product, 0),
        }[phase]
    forward = Work(inputs + passes[0] * entries * size, product, entries)
    back = Work(inputs + gradient + passes[1] * entries * size, product, 0)
    return {"forward": forward, "backward": back, "both": forward + back}[phase]


def floor(work: dict[str, float], ceilings: dict[str, Any], dtype: str) -> tuple[float, str]:
    """Seconds, and which ceiling they are of: "memory", "products" or "exponentials"."""
    products = ceilings["operations_per_second"]
    seconds = {
        "memory": work["bytes"] / ceilings["bytes_per_second"],
        "products": work["operations"] / products[dtype]
        if work["operations"]
        else 0.0,  # not every dtype has a ceiling
        "exponentials": work["exponentials"] / ceilings["exponentials_per_second"],
    }
    bound = max(seconds, key=lambda name: seconds[name])
    return seconds[bound], bound


def ceilings(device: str, rounds: int | None = None) -> dict[str, Any]:
    """What a device does per second, measured now: copies, plain matrix products, exponentials out of its registers or cache.

    Each is the best of ``rounds``, by default 20 on a GPU and 100 on a CPU.
    """
    best = partial(_seconds, device=device, rounds=rounds or (100 if device == "cpu" else 20))
    count, side = (2**28, 8192) if device == "cuda" else (2**25, 1536)
    source = torch.zeros(count, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / best(lambda: target.copy_(source))
    products = {}
    for dtype in (torch.float32, torch.bfloat16, *([torch.float16] if device == "cuda" else [])):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        products[str(dtype).removeprefix("torch.")] = 2 * side**3 / best(lambda a=a, b=b: a @ b)
    exponentials = _exponentials_on_gpu(best) if device == "cuda" else _exponentials_on_cpu(best)
    return {
        "bytes_per_second": copied,
        "operations_per_second": products,
        "exponentials_per_second": exponentials,
    }


def _exponentials_on_cpu(best: Callable[..., float]) -> float:
    x = torch.rand(2**16 * torch.get_num_threads())  # stays in the second-level caches
    return x.numel() / best(lambda: torch.exp2(x, out=x).neg_(), calls=50)


def _exponentials_on_gpu(best: Callable[..., float]) -> float:
    from benchmarks.exponentials import REPEATS, run

    elements = 2**24
    out = torch.empty(elements, device="cuda")
    return elements * REPEATS / best(lambda: run(out))


def _seconds(function: Callable[[], object], device: str, rounds: int, calls: int = 1) -> float:
    """The fastest of some calls: a ceiling is what the device can do undisturbed."""

    def once() -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            function()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / calls

    once()
    return min(once() for _ in range(rounds))
