"""Which teacher states enter the queue, however a step was split."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlkd.training.feed import QueueFeed
from vlkd_kernels import RingQueue

SAMPLES, LENGTH, WIDTH = 16, 5, 6


@pytest.fixture
def step() -> tuple[Tensor, Tensor, Tensor]:
    """hidden [B, L, E] with distinct rows, valid [B, L], picture ids [B]."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(SAMPLES, LENGTH, WIDTH, generator=generator)
    valid = torch.rand(SAMPLES, LENGTH, generator=generator) < 0.6
    return hidden, valid, 100 + torch.arange(SAMPLES)


def _queue_after(step: tuple[Tensor, Tensor, Tensor], parts: int, tokens: int, number: int = 0) -> RingQueue:
    queue = RingQueue(WIDTH, 64, normalize=False)
    feed = QueueFeed(queue, tokens, seed=0, most=LENGTH + 3)
    for part in zip(*(tensor.chunk(parts) for tensor in step), strict=True):
        feed.collect(*part)
    feed.enqueue(number)
    return queue


def _same(one: RingQueue, other: RingQueue) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))


def test_the_queue_does_not_depend_on_how_the_step_was_split(step: tuple[Tensor, Tensor, Tensor]) -> None:
    whole = _queue_after(step, 1, 20)
    assert whole.fill == 20
    assert all(_same(whole, _queue_after(step, parts, 20)) for parts in (2, 4, 16))


def test_only_valid_rows_enter_in_sample_order_with_their_pictures_id(step: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, valid, pictures = step
    queue = _queue_after(step, 4, 20)
    flat = hidden.flatten(0, 1)
    positions = [int((flat == row).all(1).nonzero().item()) for row in queue.rows[:20]]
    assert positions == sorted(set(positions))
    assert all(valid.flatten()[position] for position in positions)
    assert queue.ids[:20].tolist() == [int(pictures[position // LENGTH]) for position in positions]


def test_the_draw_is_another_one_at_another_step(step: tuple[Tensor, Tensor, Tensor]) -> None:
    assert _same(_queue_after(step, 1, 20, number=3), _queue_after(step, 1, 20, number=3))
    assert not _same(_queue_after(step, 1, 20, number=3), _queue_after(step, 1, 20, number=4))


@pytest.mark.parametrize("tokens", [64, 1000])
def test_fewer_valid_rows_than_asked_for_all_enter(step: tuple[Tensor, Tensor, Tensor], tokens: int) -> None:
    hidden, valid, pictures = step
    valid = valid & (torch.arange(SAMPLES) < 4).unsqueeze(1)
    queue = _queue_after((hidden, valid, pictures), 2, tokens)
    assert queue.fill == valid.sum()
    assert torch.equal(queue.rows[: int(queue.fill)], hidden[valid])


def test_a_step_without_a_valid_row_leaves_the_queue_empty(step: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, valid, pictures = step
    assert _queue_after((hidden, torch.zeros_like(valid), pictures), 2, 20).fill == 0


def test_every_rank_ends_with_the_queue_of_one_process(step: tuple[Tensor, Tensor, Tensor]) -> None:
    """Batches are dealt to two ranks in turn; their collectives are played by hand."""
    batches = list(zip(*(tensor.chunk(4) for tensor in step), strict=True))
    of_rank = [batches[0::2], batches[1::2]]
    valid, pictures = (
        torch.stack([torch.stack([batch[i] for batch in batches]) for batches in of_rank]) for i in (1, 2)
    )
    valid = torch.nn.functional.pad(valid, (0, 3))  # as the feed gathers it, up to its `most` rows
    own_rows: list[Tensor] = []

    def run(rank: int, reduce) -> RingQueue:
        answers = iter((valid, pictures))
        queue = RingQueue(WIDTH, 64, normalize=False)
        feed = QueueFeed(
            queue, 20, seed=0, most=LENGTH + 3, rank=rank, ranks=2, gather=lambda tensor: next(answers), reduce=reduce
        )
        for batch in of_rank[rank]:
            feed.collect(*batch)
        feed.enqueue(0)
        return queue

    def keep(tensor: Tensor) -> Tensor:
        own_rows.append(tensor)
        return tensor

    run(0, keep), run(1, keep)
    expected = _queue_after(step, 1, 20)
    assert all(_same(run(rank, lambda tensor: own_rows[0] + own_rows[1]), expected) for rank in (0, 1))
