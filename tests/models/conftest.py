"""Small models with random weights and inputs with padding, for both kinds of mask."""

from __future__ import annotations

import pytest
import torch

from vlkd.models import VLConfig

B, C, G, R = 3, 5, 3, 4  # samples, caption tokens, tag tokens, regions
T, L, F, V, A = C + G, C + G + R, 10, 50, 7


@pytest.fixture
def config() -> VLConfig:
    return VLConfig(
        vocab_size=V,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        region_dim=F,
        num_answers=A,
    )


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Model inputs of a bidirectional batch; the last sample is full, the first two have padding."""
    generator = torch.Generator().manual_seed(1)
    valid = torch.ones(B, L, dtype=torch.bool)
    valid[0, [3, 4, 7, 10, 11]] = False
    valid[1, C:] = False  # no picture
    return {
        "input_ids": torch.randint(5, V, (B, T), generator=generator),
        "token_type_ids": torch.tensor([0] * C + [1] * G).repeat(B, 1),
        "position_ids": torch.arange(T).repeat(B, 1),
        "regions": torch.randn(B, R, F, generator=generator),
        "attention_mask": valid[:, None],
    }


@pytest.fixture
def captioning_inputs(inputs) -> dict[str, torch.Tensor]:
    """The same under the captioning mask."""
    structure = torch.ones(L, L, dtype=torch.bool)
    structure[:C, :C] = torch.ones(C, C, dtype=torch.bool).tril()
    structure[C:, :C] = False
    valid = inputs["attention_mask"]
    return inputs | {"attention_mask": structure & valid & valid.transpose(1, 2)}
