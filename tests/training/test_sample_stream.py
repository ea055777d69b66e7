"""The order of the samples."""

from __future__ import annotations

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
