"""What the Triton kernels share, run by Triton's interpreter or on a GPU."""

from __future__ import annotations

import types

import pytest
import torch
from kernel_truth import DEVICE, need

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from vlkd_kernels.attention_mse.triton import head_config  # noqa: E402
from vlkd_kernels.triton_attention import Gpu, gpu  # noqa: E402
from vlkd_kernels.triton_tiles import weighted_dot  # noqa: E402

KIB = 1024


@pytest.mark.parametrize(
    ("capability", "shared_memory", "keys", "width", "fits"),
    [
        ((9, 0), 227 * KIB, 256, 64, True),
        ((10, 0), 227 * KIB, 256, 64, True),
        ((10, 3), 227 * KIB, 128, 128, True),
        ((12, 0), 99 * KIB, 256, 64, False),
        ((12, 1), 99 * KIB, 128, 32, False),  # sm_80's matrix instructions, for which it would spill
        ((8, 0), 163 * KIB, 128, 32, False),
        ((9, 0), 99 * KIB, 128, 64, True),  # whatever GPU that may be
        ((9, 0), 99 * KIB, 256, 64, False),
        ((9, 0), 227 * KIB, 257, 64, False),
    ],
)
def test_one_tile_takes_a_head_where_the_gpu_has_the_memory(
    capability: tuple[int, int], shared_memory: int, keys: int, width: int, fits: bool
) -> None:
    assert (head_config(torch.bfloat16, keys, width, Gpu(capability, shared_memory)) is not None) == fits
    assert head_config(torch.float32, keys, width, Gpu(capability, shared_memory)) is None


def test_a_gpu_is_asked_for_its_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = types.SimpleNamespace(
        major=12, minor=0, shared_memory_per_block_optin=101376, multi_processor_count=170
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", {torch.device("cuda", 1): properties}.get)
    assert gpu(torch.device("cuda", 1)) == Gpu((12, 0), 101376, 170)
    assert gpu(torch.device("cpu")).capability == (9, 0)


@triton.jit
def _product_kernel(weights, values, out, SIZE: tl.constexpr):
    row = tl.arange(0, SIZE)
    at = row[:, None] * SIZE + row[None, :]
    zero = tl.zeros([SIZE, SIZE], tl.float32)
    product = weighted_dot(tl.load(weights + at), tl.load(values + at), zero, values.dtype.element_ty)
    tl.store(out + at, product)


def test_weights_of_float16_products_are_rounded_to_nearest() -> None:
    """To the 11 bits of TF32, to which the hardware would cut them off: a bias of half a unit."""
    need("token_nce", "triton", torch.float16)
    unit = 2.0**-10
    weights = {
        1 + 0.49 * unit: 1.0, 1 + 0.51 * unit: 1 + unit, -1 - 0.5 * unit: -1 - unit, 1.5 * unit + 2: 2 + 2 * unit,
        2 - 0.25 * unit: 2.0, 2.0**-100 * (1 + 0.75 * unit): 2.0**-100 * (1 + unit), 0.0: 0.0, 0.75: 0.75,
    }  # fmt: skip
    given, expected = torch.zeros(16, 16, device=DEVICE), torch.zeros(16, 16, device=DEVICE)
    given[0, : len(weights)] = torch.tensor(list(weights), device=DEVICE)
    expected[0, : len(weights)] = torch.tensor(list(weights.values()), device=DEVICE)
    for i, value in enumerate((torch.nan, torch.inf)):
        given[i + 1] = expected[i + 1] = value
    bits = torch.full((16,), 0x7FFFFFFF, dtype=torch.int32, device=DEVICE)  # the NaN that a GPU's arithmetic makes
    given[3], expected[3] = bits.view(torch.float32), torch.nan
    out = torch.empty_like(given)
    for column in range(16):  # one at a time: an infinity and a zero would make a NaN
        values = torch.zeros(16, 16, dtype=torch.float16, device=DEVICE)
        values[column] = 1
        if column < len(weights):
            _product_kernel[(1,)](given[:1].expand(16, 16).contiguous(), values, out, SIZE=16)
            assert torch.equal(out[0], expected[0, column].expand(16)), column
    _product_kernel[(1,)](given, torch.ones(16, 16, dtype=torch.float16, device=DEVICE), out, SIZE=16)
    assert out[1].isnan().all() and out[2].eq(torch.inf).all() and out[3].isnan().all()
