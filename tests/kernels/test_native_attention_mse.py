"""The compiled attention_mse against float64 truth."""

from __future__ import annotations

import functools

import pytest
import torch
from native_cases import DTYPES, assert_true_to, attention_inputs, needs_extension, poisoned_memory, processor_flags  # noqa: F401
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vlkd_kernels.attention_mse import native as attention
from vlkd_kernels.attention_mse import reference

pytestmark = [needs_extension, pytest.mark.usefixtures("poisoned_memory")]


def attention_truth(tensors: list, dtype: torch.dtype, options: dict) -> list[Tensor]:
    """Loss sum, count and gradients of the formula, by autograd in `dtype`."""
    q_s, k_s, q_t, k_t = (x.detach().to(dtype) for x in tensors)
    q_s.requires_grad_(), k_s.requires_grad_()
    loss, count = reference.loss(q_s, k_s, q_t, k_t, **options)
    grads = (
        torch.autograd.grad(loss, (q_s, k_s)) if loss.requires_grad else (torch.zeros_like(q_s), torch.zeros_like(k_s))
    )
    return [loss.detach(), count.detach(), *grads]


def moved_by_rounding(tensors: list, options: dict) -> tuple[Tensor | float, Tensor | float]:
    """The most by which the gradients move when that of every logit is rounded to bfloat16, by 2⁻⁸ of itself.

    All inputs in bfloat16 are multiplied by the processor's bfloat16 units where it has them, and they take it so.
    """
    if any(x.dtype != torch.bfloat16 for x in tensors):
        return 0.0, 0.0
    q_s, k_s, q_t, k_t = (x.detach().double() for x in tensors)
    group = q_s.shape[1] // max(1, k_s.shape[1])
    keys, scale = k_s.repeat_interleave(group, 1), options["scale_s"]
    logits = (scale * q_s @ keys.mT).requires_grad_()
    loss, _ = reference.loss(
        logits,
        torch.eye(keys.shape[2]).double().expand(*keys.shape[:2], -1, -1),
        q_t,
        k_t,
        **options | {"scale_s": 1.0},
    )
    (g,) = torch.autograd.grad(loss, logits) if loss.requires_grad else (torch.zeros_like(logits),)
    grad_k = (g.abs().mT @ q_s.abs()).unflatten(1, (-1, group)).sum(2)
    return 2**-8 * abs(scale) * g.abs() @ keys.abs(), 2**-8 * abs(scale) * grad_k


def check_attention(tensors: list, **options: object) -> None:
    options = {"scale_s": 0.35, "scale_t": 0.28, "attn_mask": None, "query_mask": None, "is_causal": False} | options
    options = {"distance": "mse"} | options
    names = ("scale_s", "scale_t", "attn_mask", "query_mask", "is_causal", "distance")
    run = functools.partial(attention.forward, *tensors, *(options[name] for name in names))
    got, mean = run(False, True), run(True, True)
    dtype = tensors[0].dtype
    truth, naive = attention_truth(tensors, torch.float64, options), attention_truth(tensors, dtype, options)
    moved = (0.0, 0.0, *moved_by_rounding(tensors, options))
    for true, value, plain, bound in zip(truth, (*got[:2], *got[3:]), naive, moved, strict=True):
        assert_true_to(true, value, plain, dtype, bound)
    assert mean[1] == got[1] and mean[2] == got[2] == 1
    rows = got[1].double().clamp(min=1)
    for i, value in zip((0, 2, 3), (mean[0], *mean[3:]), strict=True):
        assert_true_to(truth[i] / rows, value, naive[i].double() / rows, dtype, moved[i] / rows)
    without = run(False, False)
    assert torch.equal(without[0], got[0]) and torch.equal(without[1], got[1])
    assert without[3].shape == without[4].shape == (0,)


def attention_mask(form: str, b: int, h: int, q: int, m: int) -> Tensor:
    def some(*shape: int) -> Tensor:
        return torch.rand(shape) < 0.6

    forms = {
        "keys": lambda: some(b, 1, 1, m),
        "keys of all": lambda: some(1, 1, 1, m),
        "queries": lambda: some(b, 1, q, 1),
        "heads": lambda: some(1, h, 1, 1),
        "map": lambda: some(1, 1, q, m),
        "full": lambda: some(b, h, q, m),
        "transposed": lambda: some(b, 1, m, q).mT,
        "expanded": lambda: some(b, 1, 1, m).expand(b, h, q, m),
        "strided": lambda: some(b, 1, q, 2 * m)[..., ::2],
        "one": lambda: some(1, 1, 1, 1),
    }
    return forms[form]()


MASKS = ("keys", "keys of all", "queries", "heads", "map", "full", "transposed", "expanded", "strided", "one")


@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_matches_truth_in_every_dtype(dtype: torch.dtype, distance: str) -> None:
    check_attention(attention_inputs(2, 3, 7, 11, dtype=dtype), distance=distance)


@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", MASKS)
def test_attention_matches_truth_under_every_mask(form: str, causal: bool, distance: str) -> None:
    b, h, q, m = 3, 2, 9, 13
    check_attention(
        attention_inputs(b, h, q, m),
        attn_mask=attention_mask(form, b, h, q, m),
        query_mask=torch.rand(b, q) < 0.7,
        is_causal=causal,
        distance=distance,
    )


@pytest.mark.parametrize(
    ("b", "h", "q", "m", "heads"),
    [
        (1, 1, 1, 1, (None, None)),
        (2, 1, 1, 37, (None, None)),
        (2, 6, 5, 4, (2, 3)),
        (1, 4, 3, 17, (1, 4)),
        (1, 2, 700, 450, (1, None)),  # one head's map is more than a chunk: several row tiles, the last one ragged
        (5, 14, 65, 67, (7, None)),  # the heads do not fit one chunk, the last chunk is ragged
    ],
)
@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_matches_truth_in_every_shape(
    b: int, h: int, q: int, m: int, heads: tuple, dtype: torch.dtype, distance: str
) -> None:
    tensors = attention_inputs(b, h, q, m, heads=heads, dtype=dtype)
    check_attention(tensors, distance=distance, attn_mask=torch.rand(b, 1, 1, m) < 0.8, is_causal=q > m)


def test_attention_reads_through_strides_and_mixed_dtypes() -> None:
    q_s, k_s, q_t, k_t = attention_inputs(2, 3, 7, 11, dtype=torch.float64)
    mixed = [q_s.float(), k_s.float(), q_t.bfloat16(), k_t.bfloat16()]
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in mixed[:2]]
    strided += [x.mT.contiguous().mT for x in mixed[2:]]
    assert not any(x.is_contiguous() for x in strided)
    options = (0.35, 0.28, None, None, False, "mse", False, True)
    for plain, got in zip(attention.forward(*mixed, *options), attention.forward(*strided, *options), strict=True):
        assert torch.equal(plain, got)
    check_attention(mixed)


@pytest.mark.parametrize("widths", [(8, 12), (9, 13), (33, 16), (96, 31)])
@pytest.mark.parametrize("layout", ["contiguous", "heads last", "width first", "even rows", "odd rows"])
def test_attention_multiplies_bfloat16_of_every_width_and_layout(widths: tuple, layout: str) -> None:
    """Its numbers are taken in pairs, which an odd width or stride breaks up, and those 16 at a time with AMX."""

    def followed_by_others(x: Tensor, count: int) -> Tensor:
        return torch.cat([x, 9 * torch.randn_like(x)[..., :count]], -1)[..., : x.shape[-1]]

    layouts = {
        "contiguous": lambda x: x,
        "heads last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "width first": lambda x: x.mT.contiguous().mT,
        "even rows": lambda x: followed_by_others(x, 2 + x.shape[-1] % 2),
        "odd rows": lambda x: followed_by_others(x, 3 - x.shape[-1] % 2),
    }
    for q, m in ((16, 32), (7, 19), (77, 50)):
        tensors = attention_inputs(2, 3, q, m, widths=widths, dtype=torch.bfloat16)
        check_attention([layouts[layout](x) for x in tensors])


@pytest.mark.skipif("avx512_bf16" not in processor_flags(), reason="no bfloat16 units")
def test_attention_uses_the_bfloat16_units() -> None:
    tensors = attention_inputs(1, 2, 33, 40, dtype=torch.bfloat16)
    options = (0.35, 0.28, None, None, False, "mse", False, True)
    units, converted = (attention.forward(*inputs, *options) for inputs in (tensors, [x.float() for x in tensors]))
    assert abs(units[0] / converted[0] - 1) < 1e-6
    assert not torch.equal(units[3], converted[3]) and not torch.equal(units[4], converted[4])


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_attention_of_identical_models_is_exactly_zero(distance: str) -> None:
    q, k, _, _ = attention_inputs(2, 3, 33, 70)
    loss, count, _, grad_q, grad_k = attention.forward(
        q, k, q.clone(), k.clone(), 1.0, 1.0, None, None, True, distance, False, True
    )
    assert (loss.item(), count.item()) == (0, 2 * 3 * 33)
    assert not grad_q.any() and not grad_k.any()


@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("gap", [1e-2, 1e-3])
def test_attention_keeps_its_digits_near_the_teacher(distance: str, gap: float) -> None:
    """A learned student has p close to t, where the expanded square and the difference of logs have no digits left.

    The keys are unit vectors, so that a logit is one entry of its query and is exact; what is measured is the row loop. With
    u = 2^-24 an exponent is off by u times its own size and that of the row's largest logit, the polynomial and the
    division by 4 u, on each side independently. tests/kernels/test_attention_mse_near_teacher.py derives the rest.
    """
    m = 512
    for _ in range(20):
        logits = 2 * torch.randn(1, 1, 100, m)
        student = logits + gap * torch.randn_like(logits)
        keys = torch.eye(m)[None, None]
        inputs = (student, keys, logits, keys)
        loss = attention.forward(*inputs, 1.0, 1.0, None, None, False, distance, False, False)[0].item()
        options = {"scale_s": 1.0, "scale_t": 1.0, "distance": distance}
        truth, _ = reference.loss(*(x.double() for x in inputs), **options)
        p, t = student.double().softmax(-1), logits.double().softmax(-1)
        largest = logits.max(-1, keepdim=True).values
        relative = 2**0.5 * 2.0**-24 * (largest - logits + 2 * largest + 4)  # of p, both sides together
        if distance == "mse":
            moved, size = 2 * ((p - t) * p * relative).square().sum().sqrt(), (p - t).square().sum()
        else:
            moved, size = ((p - t) * relative).square().sum().sqrt(), (t * (t.log() - p.log())).sum()
        bound = (2 * moved / size).item()
        assert abs(loss / truth.item() - 1) <= bound < 1e-3


def test_attention_kl_stays_finite_when_the_maps_are_far_apart() -> None:
    q = torch.tensor([[[[300.0], [-300.0]]]])
    k = torch.tensor([[[[1.0], [-1.0]]]])
    loss, _, _, grad_q, grad_k = attention.forward(q, k, -q, k, 1.0, 1.0, None, None, False, "kl", False, True)
    assert loss.item() == pytest.approx(1200)  # two rows, each a certain teacher against a student 600 away
    assert grad_q.isfinite().all() and grad_k.isfinite().all()


@pytest.mark.parametrize(("b", "h", "q", "m"), [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0), (2, 2, 3, 4)])
def test_attention_without_a_row_is_zero(b: int, h: int, q: int, m: int) -> None:
    q_s, k_s, q_t, k_t = attention_inputs(b, h, q, m)
    hidden = torch.zeros(1, 1, 1, m, dtype=torch.bool)
    loss, count, _, grad_q, grad_k = attention.forward(
        q_s, k_s, q_t, k_t, 1.0, 1.0, hidden, None, False, "mse", False, True
    )
    assert (loss.item(), count.item()) == (0, 0)
    assert grad_q.shape == q_s.shape and grad_k.shape == k_s.shape
    assert not grad_q.any() and not grad_k.any()


@pytest.mark.parametrize("shape", [(1, 1, 700, 300), (2, 3, 20, 30)])  # one head in several slabs, a slab a head
def test_the_bits_do_not_depend_on_the_number_of_threads(shape: tuple[int, int, int, int]) -> None:
    inputs = attention_inputs(*shape)
    threads, results = torch.get_num_threads(), []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        results.append(attention.forward(*inputs, 0.3, 0.3, None, None, False, "mse", False, True))
    torch.set_num_threads(threads)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def test_attention_allocates_chunks_and_never_a_map() -> None:
    q_s, k_s, q_t, k_t = attention_inputs(1, 1, 4000, 3000)  # one map: 48 MB
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        attention.forward(q_s, k_s, q_t, k_t, 1.0, 1.0, None, None, True, "mse", False, True)
    allocated = sum(e.cpu_memory_usage for e in record.events() if e.name in ("aten::empty", "aten::zeros"))
    inputs = sum(x.nbytes for x in (q_s, k_s, q_t, k_t))
    assert 2**20 < allocated < 2 * 2**23 + 2 * inputs
