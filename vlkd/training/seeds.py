"""Seeds for the draws of a run."""

from __future__ import annotations

import numpy as np


def derive_seed(seed: int, *numbers: int) -> int:
    """A 63-bit seed for (seed, numbers...); neighbouring arguments give unrelated streams."""
    low, high = np.random.SeedSequence((seed, *numbers)).generate_state(2)
    return (int(high) << 32 | int(low)) & (2**63 - 1)
