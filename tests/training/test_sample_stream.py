"""The order of the samples."""

from __future__ import annotations

import itertools

import pytest

from vlkd.training.stream import SampleStream


class Recorder:
    """Ten samples; each tells its epoch and its index."""

    def __init__(self) -> None:
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self.epoch, index

    def length(self, index: int) -> int:
        return (7 * index + 3 * self.epoch) % 11


def test_every_epoch_shows_every_sample_once_in_an_order_of_its_own() -> None:
    stream = SampleStream(Recorder(), 30, seed=1)
    drawn = [stream[position] for position in range(len(stream))]
    orders = [[index for e, index in drawn if e == epoch] for epoch in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert orders[0] != orders[1] != orders[2] and orders[0] != list(range(10))


def test_a_stream_taken_up_in_the_middle_goes_on_the_same() -> None:
    whole, resumed = SampleStream(Recorder(), 30, seed=1), SampleStream(Recorder(), 30, seed=1)
    expected = [whole[position] for position in range(30)]
    assert [resumed[position] for position in range(13, 30)] == expected[13:]


def test_another_seed_is_another_order() -> None:
    one, other = SampleStream(Recorder(), 10, seed=1), SampleStream(Recorder(), 10, seed=2)
    assert [one[i] for i in range(10)] != [other[i] for i in range(10)]


def length(sample: tuple[int, int]) -> int:
    epoch, index = sample
    return (7 * index + 3 * epoch) % 11


def drawn(**settings) -> list[tuple[int, int]]:
    stream = SampleStream(Recorder(), 48, seed=1, **settings)
    return [stream[position] for position in range(48)]


@pytest.mark.parametrize("micro_batches", [2, 4, 12])
def test_a_steps_samples_are_cut_into_micro_batches_of_like_length(micro_batches: int) -> None:
    """Steps of 12 cross the ends of epochs of 10."""
    as_drawn, sorted_ = drawn(), drawn(batch=12, micro_batches=micro_batches)
    size = 12 // micro_batches
    for first in range(0, 48, 12):
        step = sorted_[first : first + 12]
        assert sorted(step) == sorted(as_drawn[first : first + 12])
        cuts = [step[start : start + size] for start in range(0, 12, size)]
        for longer, shorter in itertools.pairwise(cuts):
            assert min(map(length, longer)) >= max(map(length, shorter))
        for cut in cuts:
            assert cut == sorted(cut, key=as_drawn.index)


def test_samples_of_like_length_share_a_step_within_a_window() -> None:
    as_drawn, windows = drawn(), drawn(batch=4, window=3)
    other = 0
    for first in range(0, 48, 12):
        window = windows[first : first + 12]
        assert sorted(window) == sorted(as_drawn[first : first + 12])
        steps = [window[start : start + 4] for start in range(0, 12, 4)]
        by_length = sorted(steps, key=lambda step: max(map(length, step)))
        for shorter, longer in itertools.pairwise(by_length):
            assert max(map(length, shorter)) <= min(map(length, longer))
        assert all(step == sorted(step, key=as_drawn.index) for step in steps)
        other += steps != by_length
    assert other > 0  # the steps of a window come in an order of their own
    assert drawn(batch=4, window=1) == as_drawn


@pytest.mark.parametrize("settings", [{"micro_batches": 3}, {"window": 2}, {"window": 2, "micro_batches": 3}, {}])
def test_a_sorted_stream_taken_up_in_the_middle_goes_on_the_same(settings) -> None:
    expected = drawn(batch=6, **settings)
    resumed = SampleStream(Recorder(), 48, seed=1, batch=6, **settings)
    assert [resumed[position] for position in range(18, 48)] == expected[18:]


@pytest.mark.parametrize("settings", [{"micro_batches": 3}, {"window": 2}, {"window": 2, "micro_batches": 3}, {}])
def test_a_step_knows_the_order_in_which_it_was_drawn(settings) -> None:
    stream = SampleStream(Recorder(), 48, seed=1, batch=6, **settings)
    as_drawn = drawn()
    for step in range(8):
        used = [stream[6 * step + place] for place in range(6)]
        order = stream.step_order(step)
        assert sorted(order.tolist()) == list(range(6))
        assert [used[place] for place in order.argsort()] == sorted(used, key=as_drawn.index)


def test_a_window_at_the_end_may_be_short() -> None:
    stream = SampleStream(Recorder(), 48, seed=1, batch=6, window=3)  # 8 steps
    assert sorted(stream[position] for position in range(36, 48)) == sorted(drawn()[36:])


def test_lengths_are_asked_for_once_though_a_loader_reads_ahead() -> None:
    asked: list[int] = []

    class Counting(Recorder):
        def length(self, index: int) -> int:
            asked.append(index)
            return super().length(index)

    stream = SampleStream(Counting(), 48, seed=1, batch=6, micro_batches=3)
    for step in range(7):
        _ = [stream[6 * step + place] for place in range(6)], stream[6 * (step + 1)]
        stream.step_order(step)
    assert len(asked) == 48
