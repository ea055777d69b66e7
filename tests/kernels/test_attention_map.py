"""`attention_map` against the whole map in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlkd_kernels import attention_map


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).mT * q.shape[-1] ** -0.5
    return scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("shape", [(), (2, 1, 1, 9), (7, 9), (2, 4, 7, 9), (2, 1, 7, 1)])
def test_all_of_it(shape: tuple[int, ...], is_causal: bool) -> None:
    q, k = draw(2, 4, 7, 8), draw(2, 2, 9, 8, seed=1)
    attn_mask = draw(*shape, seed=2) > 0 if shape else None
    visible = torch.ones(2, 4, 7, 9, dtype=torch.bool)
    visible = visible if attn_mask is None else visible & attn_mask
    visible = visible.tril() if is_causal else visible
    expected = whole(q, k, visible)
    options = {"attn_mask": attn_mask, "is_causal": is_causal}
    torch.testing.assert_close(attention_map(q, k, **options), expected)
    torch.testing.assert_close(attention_map(q, k, heads="mean", **options), expected.mean(1))
    for rows in ([5, 0], torch.tensor([6]), range(2, 4), []):
        torch.testing.assert_close(attention_map(q, k, rows=rows, **options), expected[:, :, list(rows)])


def test_half_precision_is_summed_in_float32() -> None:
    q, k = (draw(1, 2, 5, 16, seed=i).bfloat16() for i in range(2))
    got = attention_map(q, k)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, attention_map(q.float(), k.float()))


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self.nbytes = max(self.nbytes, x.nbytes)
        return result


def test_the_mean_of_a_long_sequence_needs_no_room_for_the_maps() -> None:
    q = draw(1, 8, 2000, 8)  # all maps: 128 MB
    with Largest() as largest:
        mean = attention_map(q, q, heads="mean")
    assert largest.nbytes == mean.nbytes == 16e6
    with Largest() as largest:
        attention_map(q, q, heads="mean", rows=[0, 1999])
    assert largest.nbytes <= 8 * 2**20


def test_a_nan_is_not_hidden() -> None:
    q = draw(1, 1, 2, 4)
    q[0, 0, 0, 0] = torch.nan
    assert attention_map(q, draw(1, 1, 3, 4), attn_mask=torch.ones(2, 3, dtype=torch.bool))[0, 0, 0].isnan().all()


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"k": draw(1, 2, 3, 5)}, ValueError, r"k must have shape .* = \[1, 2, 3, 4\], got \[1, 2, 3, 5\]"),
        ({"heads": "max"}, ValueError, "heads must be one of 'all', 'mean', got 'max'"),
        ({"rows": [0.5]}, ValueError, r"rows must be a list of integers, got \[1\] of torch.float32"),
        ({"rows": [[0]]}, ValueError, r"rows must be a list of integers, got \[1, 1\]"),
        ({"attn_mask": torch.ones(3, 3)}, TypeError, "attn_mask must be bool"),
        ({"rows": [2]}, IndexError, "index"),
    ],
)
def test_bad_input(changed: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        attention_map(**({"q": draw(1, 2, 2, 4), "k": draw(1, 2, 3, 4)} | changed))
