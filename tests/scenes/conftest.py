"""Pictures that several tests of the rendered world look at."""

from __future__ import annotations

import pytest

from vlkd.scenes import Picture, make_picture


@pytest.fixture(scope="session")
def pictures() -> list[Picture]:
    """300 pictures at full size."""
    return [make_picture(11, "train", index) for index in range(300)]


@pytest.fixture(scope="session")
def corpus() -> tuple[list[Picture], list[Picture]]:
    """Pictures for what takes many of them to see: 1000 to learn from and 300 to test on, drawn small."""
    train = [make_picture(5, "train", index, size=64) for index in range(1000)]
    test = [make_picture(5, "test", index, size=64) for index in range(300)]
    return train, test
