"""csrc's CUDA kernel of `attention_mse`: on a processor, thread by thread (emulation/gpu.h), and on a GPU where there is one.

On a processor its indices, masks, barriers and numbers are tested; nothing of its speed, and of the hardware's own ordering only
what two orders of the threads can show.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import pytest
import torch
from emulated import ELEMENTS, POINTER, library, moved
from kernel_truth import DEVICE, assert_as_good
from test_attention_mse import MASKS, make, mask, plain
from torch import Tensor

pytestmark = pytest.mark.slow

LOG2_E = math.log2(math.e)


class Input(ctypes.Structure):
    """csrc's HeadInput."""

    _fields_ = [
        ("data", POINTER),
        ("type", ctypes.c_int),
        ("vectors", ctypes.c_bool),
        ("strides", ctypes.c_int64 * 4),
        ("width", ctypes.c_int),
    ]


class Problem(ctypes.Structure):
    """csrc's HeadProblem."""

    _fields_ = [
        *((name, Input) for name in ("q_s", "k_s", "q_t", "k_t")),
        ("mask", POINTER),
        ("mask_strides", ctypes.c_int64 * 4),
        ("counted", POINTER),
        ("counted_strides", ctypes.c_int64 * 2),
        *((name, ctypes.c_int) for name in ("heads", "group_s", "group_t", "queries", "keys")),
        *((name, ctypes.c_float) for name in ("scale_s", "scale_t", "gradient_scale")),
        *((name, ctypes.c_bool) for name in ("causal", "kl", "with_grad")),
        *((name, POINTER) for name in ("loss", "count", "grad_q", "grad_k")),
    ]


@pytest.fixture(scope="module", params=["emulated", "gpu"])
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL | None:
    """The emulation's library, or None for the GPU's operator."""
    return library("attention_mse", request.param, tmp_path_factory)


def head_input(x: Tensor, dtype: torch.dtype) -> Input:
    even = all(stride % 8 == 0 for stride in x.stride()[:3]) and x.shape[3] % 8 == 0 and x.data_ptr() % 16 == 0
    vectors = x.dtype == dtype and x.stride(3) == 1 and even
    return Input(x.data_ptr(), ELEMENTS.index(x.dtype), vectors, (ctypes.c_int64 * 4)(*x.stride()), x.shape[3])


def forward(
    kernel: ctypes.CDLL | None, tensors: dict[str, Tensor], scale_s: float | None = None, scale_t: float | None = None,
    attn_mask: Tensor | None = None, query_mask: Tensor | None = None, is_causal: bool = False,
    distance: str = "mse", with_grad: bool = True, backwards: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The arguments that csrc/attention_mse/cuda.cpp makes, and the kernel on every block; as `reference.forward`."""
    device = "cuda" if kernel is None else "cpu"
    q_s, k_s, q_t, k_t = (moved(x, device) for x in tensors.values())
    scale_s, scale_t = scale_s or q_s.shape[3] ** -0.5, scale_t or q_t.shape[3] ** -0.5
    attn_mask, query_mask = (None if x is None else moved(x, device) for x in (attn_mask, query_mask))
    if attn_mask is not None:
        attn_mask = attn_mask[(None,) * (4 - attn_mask.ndim)]
    if kernel is None:
        outputs = torch.ops.vlkd.attention_mse(
            q_s, k_s, q_t, k_t, scale_s, scale_t, attn_mask, query_mask, is_causal, distance, False, with_grad
        )
        return tuple(outputs[i].cpu() for i in (0, 1, 3, 4))  # type: ignore[return-value]
    (batch, heads, queries, _), (_, key_heads, keys, _) = q_s.shape, k_s.shape
    problem = Problem(*(head_input(x, q_s.dtype) for x in (q_s, k_s, q_t, k_t)))
    if attn_mask is not None:
        attn_mask = attn_mask.expand(batch, heads, queries, keys)
        problem.mask, problem.mask_strides = attn_mask.data_ptr(), (ctypes.c_int64 * 4)(*attn_mask.stride())
    if query_mask is not None:
        problem.counted, problem.counted_strides = query_mask.data_ptr(), (ctypes.c_int64 * 2)(*query_mask.stride())
    problem.heads, problem.group_s, problem.group_t = heads, heads // key_heads, heads // k_t.shape[1]
    problem.queries, problem.keys = queries, keys
    problem.gradient_scale, problem.scale_s, problem.scale_t = scale_s, scale_s * LOG2_E, scale_t * LOG2_E
    problem.causal, problem.kl, problem.with_grad = is_causal, distance == "kl", with_grad
    outputs = [torch.full(shape, math.nan) for shape in ((2, batch * key_heads), q_s.shape, k_s.shape)]
    problem.loss, problem.count = outputs[0][0].data_ptr(), outputs[0][1].data_ptr()
    problem.grad_q, problem.grad_k = (x.data_ptr() for x in outputs[1:])
    error = ctypes.create_string_buffer(200)
    bfloat16 = q_s.dtype == torch.bfloat16
    code = kernel.run(ctypes.byref(problem), bfloat16, batch * key_heads, backwards, error, len(error))
    if code:
        raise RuntimeError(error.value.decode() or "no CUDA kernel for these shapes")
    loss, count = outputs[0].sum(1)
    return loss, count, outputs[1], outputs[2]


def check(kernel: ctypes.CDLL | None, tensors: dict[str, Tensor], **options: Any) -> None:
    """The rule of kernel_truth.py; and the same bits whichever way the threads are taken."""
    dtype = tensors["q_s"].dtype
    truth, yardstick = (
        plain(d, tensors, ("q_s", "k_s"), options | {"reduction": "sum"}) for d in (torch.float64, dtype)
    )
    results = [forward(kernel, tensors, backwards=backwards, **options) for backwards in (False, True)]
    loss, _, grad_q, grad_k = (moved(x, DEVICE) for x in results[0])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    for name, got in (("loss", loss), ("q_s", -1.7 * grad_q), ("k_s", -1.7 * grad_k)):
        assert_as_good(name, got, truth[name], yardstick[name], dtype)


@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("masks", MASKS)
def test_masks_and_grouped_heads(kernel: ctypes.CDLL | None, masks: str, distance: str) -> None:
    dtype = torch.bfloat16 if distance == "mse" else torch.float16
    tensors = make(2, 2, 21, 19, 8, 24, heads_s=1 if distance == "mse" else 2, heads_t=1, dtype=dtype)
    check(kernel, tensors, distance=distance, scale_s=0.5, scale_t=0.2, **MASKS[masks])


# One for each plan, its sides padded and not: B, H, L, M, D_s, D_t
SHAPES = [
    (1, 1, 1, 1, 8, 8),
    (2, 1, 70, 50, 32, 64),
    (1, 2, 33, 128, 20, 9),
    (1, 1, 65, 97, 64, 48),
    (1, 1, 17, 100, 72, 128),
    (1, 1, 40, 197, 32, 64),
    (1, 1, 35, 256, 48, 100),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_plans(kernel: ctypes.CDLL | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(kernel, make(*shape, dtype=dtype), is_causal=shape[2] == 40, attn_mask=mask(shape[3], keep=0.9))


@pytest.mark.parametrize("dtype_t", [torch.float16, torch.float32, torch.float64])
def test_teacher_of_another_dtype(kernel: ctypes.CDLL | None, dtype_t: torch.dtype) -> None:
    check(kernel, make(1, 2, 17, 20, 16, 8, dtype=torch.bfloat16, dtype_t=dtype_t))


def test_query_heads_that_share_keys(kernel: ctypes.CDLL | None) -> None:
    """The student's in threes, the teacher's in twos, several chunks of rows each: the teacher's keys change on the way."""
    check(kernel, make(1, 6, 70, 20, 16, 16, heads_s=2, heads_t=3, dtype=torch.bfloat16))


def test_layouts(kernel: ctypes.CDLL | None) -> None:
    base = make(2, 3, 18, 20, 16, 8, dtype=torch.bfloat16)
    odd = dict(base)
    odd["q_s"] = base["q_s"].transpose(1, 2).contiguous().transpose(1, 2)
    odd["k_s"] = base["k_s"].repeat_interleave(2, dim=2)[:, :, ::2]
    odd["q_t"] = base["q_t"].mT.contiguous().mT
    odd["k_t"] = base["k_t"][:, :1].expand(2, 3, 20, 8)
    base["k_t"] = odd["k_t"].contiguous()
    for one, other in zip(forward(kernel, base), forward(kernel, odd), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_identical_maps_give_exactly_zero(kernel: ctypes.CDLL | None, dtype: torch.dtype, distance: str) -> None:
    x = make(1, 2, 18, 70, dtype=dtype)
    same = {"q_s": x["q_s"], "k_s": x["k_s"], "q_t": x["q_s"].clone(), "k_t": x["k_s"].clone()}
    loss, _, grad_q, grad_k = forward(kernel, same, distance=distance, is_causal=True)
    assert loss == 0 and not grad_q.any() and not grad_k.any()


def test_rows_that_do_not_count(kernel: ctypes.CDLL | None) -> None:
    x = make(1, 1, 6, 5, dtype=torch.bfloat16)
    attn_mask = torch.ones(6, 5, dtype=torch.bool)
    attn_mask[2] = False
    query_mask = torch.tensor([[True, True, True, False, True, True]])
    _, count, grad_q, _ = forward(kernel, x, attn_mask=attn_mask, query_mask=query_mask)
    assert count == 4
    assert not grad_q[0, 0, [2, 3]].any() and grad_q[0, 0, [0, 1, 4, 5]].any(dim=-1).all()


def test_without_gradients_the_same_loss(kernel: ctypes.CDLL | None) -> None:
    x = make(1, 2, 40, 30, dtype=torch.bfloat16)
    plain_loss, _, grad_q, grad_k = forward(kernel, x, with_grad=False)
    assert plain_loss == forward(kernel, x)[0]
    assert not grad_q.isfinite().any() and not grad_k.isfinite().any()  # never written, or not even there


def test_small_gradients_survive_float16(kernel: ctypes.CDLL | None) -> None:
    """Queries a few parts in a thousand apart: most of the gradient is below the least float16, chunks differ in size."""
    x = make(1, 1, 130, 40, 16, 16, dtype=torch.float16)
    x["q_t"], x["k_t"] = x["q_s"].clone(), x["k_s"].clone()
    x["q_s"] = x["q_s"] * torch.linspace(1, 1.004, 130).half().to(DEVICE)[:, None]
    truth = plain(torch.float64, x, ("q_s", "k_s"), {"reduction": "sum"})
    _, _, grad_q, grad_k = (moved(x, DEVICE) for x in forward(kernel, x))
    assert grad_q.abs().max() < 2.0**-14
    for name, got in (("q_s", grad_q), ("k_s", grad_k)):
        assert (-1.7 * got - truth[name]).abs().max() <= 2e-3 * truth[name].abs().max()


def test_far_apart_maps_stay_finite(kernel: ctypes.CDLL | None) -> None:
    x = make(1, 1, 17, 18, dtype=torch.bfloat16)
    x["q_s"], x["q_t"] = x["q_s"] * 60, x["q_t"] * -60
    check(kernel, x, distance="kl")


@pytest.mark.parametrize("shape", [(257, 8, 8), (200, 65, 8), (100, 129, 8), (100, 8, 129)])
def test_what_no_plan_takes(kernel: ctypes.CDLL | None, shape: tuple[int, int, int]) -> None:
    keys, width_s, width_t = shape
    with pytest.raises(RuntimeError, match="no CUDA kernel"):
        forward(kernel, make(1, 1, 1, keys, width_s, width_t, dtype=torch.bfloat16))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_what_counts_and_is_no_number_makes_the_loss_nan(
    kernel: ctypes.CDLL | None, distance: str, value: float
) -> None:
    dtype = torch.bfloat16 if distance == "mse" else torch.float16
    for name in ("q_s", "k_s", "q_t", "k_t"):
        x = make(1, 2, 21, 19, 8, 24, heads_s=1, dtype=dtype)
        x[name][0, 0, 2, 1] = value
        loss, _, grad_q, grad_k = forward(kernel, x, distance=distance)
        assert loss.isnan() and grad_q.isnan().any() and grad_k.isnan().any(), name


@pytest.mark.parametrize("form", ["keys", "full"])
@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_what_does_not_count_and_is_no_number_leaves_no_trace(
    kernel: ctypes.CDLL | None, distance: str, form: str
) -> None:
    x = make(1, 2, 21, 19, 8, 24, heads_s=1, dtype=torch.bfloat16 if distance == "mse" else torch.float16)
    seen, counted = torch.ones(19, dtype=torch.bool, device=DEVICE), torch.ones(1, 21, dtype=torch.bool, device=DEVICE)
    seen[3] = counted[0, 5] = False
    attn_mask = seen if form == "keys" else seen.expand(1, 2, 21, 19).clone()
    options = {"distance": distance, "attn_mask": attn_mask, "query_mask": counted, "is_causal": form == "full"}
    expected = forward(kernel, x, **options)
    for value in (math.nan, math.inf):
        broken = {name: y.clone() for name, y in x.items()}
        for name in ("q_s", "q_t"):
            broken[name][:, :, 5] = value
        for name in ("k_s", "k_t"):
            broken[name][:, :, 3] = value
        for one, other in zip(forward(kernel, broken, **options), expected, strict=True):
            assert one.isfinite().all() and torch.equal(one, other)
