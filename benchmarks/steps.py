"""One step of a contender on given tensors: forward, backward, or both; and any step as a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LONG = 0.02  # seconds: a CUDA graph is replayed that long in one call, so that its launch is not what is measured


class Steps:
    """A contender's outputs and gradients on the same tensors and the same incoming gradients every time.

    Args:
        function: of the tensors by name; returns a tuple of outputs.
        tensors: its arguments.
        students: the names of those that are differentiated.
        outgoing: the gradients of the outputs; drawn if None, 1 for a scalar.
    """

    def __init__(
        self,
        function: Callable[..., tuple[Tensor, ...]],
        tensors: dict[str, Tensor],
        students: tuple[str, ...],
        outgoing: tuple[Tensor, ...] | None = None,
    ) -> None:
        self._function, self._tensors = function, tensors
        self._leaves = [tensors[name].requires_grad_() for name in students]
        outputs = function(**tensors)
        if outgoing is None:
            outgoing = tuple(torch.ones_like(x) if x.ndim == 0 else torch.randn_like(x) for x in outputs)
        self.outgoing = tuple(x.to(y.dtype) for x, y in zip(outgoing, outputs, strict=True))
        self._outputs = outputs

    def forward(self) -> tuple[Tensor, ...]:
        """Outputs alone, no gradient wanted."""
        with torch.no_grad():
            return self._function(**self._tensors)

    def backward(self) -> tuple[Tensor, ...]:
        """Gradients of outputs that are there."""
        return torch.autograd.grad(self._outputs, self._leaves, self.outgoing, retain_graph=True)

    def both(self) -> tuple[Tensor, ...]:
        """Outputs and gradients."""
        outputs = self._function(**self._tensors)
        return *outputs, *torch.autograd.grad(outputs, self._leaves, self.outgoing)

    def ready(self, phase: str) -> tuple[Callable[[], object], int]:
        """A function that runs a phase, and how many times it does; on a GPU the replays of a graph, and it waits for them."""
        step = {"forward": self.forward, "backward": self.backward, "both": self.both}[phase]
        if not self._leaves[0].is_cuda:
            return step, 1

        def prepare() -> None:
            self._outputs = self._function(**self._tensors)  # the backward goes to the stream of its forward

        return captured(step, prepare)


def captured(step: Callable[[], object], prepare: Callable[[], None] | None = None) -> tuple[Callable[[], object], int]:
    """A step as a CUDA graph: a function that replays it often enough and waits for the GPU, and how often that is.

    `prepare` is called before the step on the stream of the capture.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            if prepare is not None:
                prepare()
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        kept = step()

    def replay(times: int = 1) -> object:
        for _ in range(times):
            graph.replay()
        torch.cuda.synchronize()
        return kept

    times = max(1, min(100, round(LONG / seconds(replay))))
    return lambda: replay(times), times


def seconds(function: Callable[[], object]) -> float:
    """One warmed call."""
    function()
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def peak_memory(function: Callable[[], Any], device: str, warm: bool = True) -> int:
    """Bytes that a call holds at most, beyond what was there before; `warm` calls it once before."""
    if warm:
        function()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    return max(0, *allocations(function)[1])


def allocations(function: Callable[[], Any]) -> tuple[list[int], list[int]]:
    """What a call allocates and frees on the CPU, bytes in order of time; and what it holds after each."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = function()
    results: Any = profile.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda event: event.start_ns())
    changes = [event.nbytes() for event in events]
    held, total = [], 0
    for change in changes:
        total += change
        held.append(total)
    del result
    return changes, held
