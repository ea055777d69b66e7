"""The compiled token_nce against float64 truth."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from native_cases import DTYPES, assert_true_to, nce_inputs, needs_extension, poisoned_memory, processor_flags  # noqa: F401
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vlkd_kernels.token_nce import native as nce
from vlkd_kernels.token_nce import reference

pytestmark = [needs_extension, pytest.mark.usefixtures("poisoned_memory")]


def nce_truth(h_s: Tensor, h_t: Tensor, negatives: Tensor, dtype: torch.dtype, options: dict) -> list[Tensor]:
    """Loss sum, count, gradients for h_s and the temperature by autograd in `dtype`."""
    h_s, h_t, negatives = (x.detach().to(dtype) for x in (h_s, h_t, negatives))
    tau = torch.as_tensor(options["temperature"], dtype=dtype).requires_grad_()
    h_s.requires_grad_()
    loss, count = reference.loss(h_s, h_t, negatives, tau, **{k: v for k, v in options.items() if k != "temperature"})
    return [loss.detach(), count.detach(), *torch.autograd.grad(loss, (h_s, tau))]


def moved_by_rounding(h_s: Tensor, h_t: Tensor, negatives: Tensor, options: dict) -> Tensor | float:
    """The most by which the gradient moves when every negative's weight is rounded to bfloat16, by 2⁻⁸ of itself.

    Inputs all in bfloat16 are multiplied by the processor's bfloat16 units where it has them, and they take it so.
    """
    if any(x.dtype != torch.bfloat16 for x in (h_s, h_t, negatives)):
        return 0.0
    assert all(options[name] is None for name in ("fill", "negative_ids", "token_mask", "token_ids"))
    s, t, q = (x.double() for x in (h_s, h_t, negatives))
    unit_s, unit_t = (F.normalize(x, dim=-1) if options["normalize"] else x for x in (s, t))
    others = F.normalize(q, dim=-1) if options["normalize_negatives"] else q
    logits = torch.cat([(unit_s * unit_t).sum(-1, keepdim=True), unit_s @ others.mT], 1)
    if options["in_batch"]:
        each_other = (unit_s @ unit_t.mT).fill_diagonal_(-math.inf)
        logits, others = torch.cat([logits, each_other], 1), torch.cat([others, unit_t])
    weights = (logits / options["temperature"]).softmax(-1)[:, 1:]
    moved = 2**-8 * weights @ others.abs() / options["temperature"]
    if not options["normalize"]:
        return moved
    return (moved + unit_s.abs() * (unit_s.abs() * moved).sum(-1, keepdim=True)) / s.norm(dim=-1, keepdim=True)


def check_nce(h_s: Tensor, h_t: Tensor, negatives: Tensor, **options: object) -> None:
    given = {
        "fill": None,
        "negative_ids": None,
        "token_mask": None,
        "token_ids": None,
        "temperature": 0.07,
        "normalize": True,
        "normalize_negatives": True,
        "in_batch": False,
    } | options
    temperature = given["temperature"]
    by_tensor = isinstance(temperature, Tensor)
    arguments = [given[name] for name in ("fill", "negative_ids", "token_mask", "token_ids")]
    arguments += [None if by_tensor else temperature, temperature if by_tensor else None]
    arguments += [given[name] for name in ("normalize", "normalize_negatives", "in_batch")]
    got = nce.forward(h_s, h_t, negatives, *arguments, True)
    truth = nce_truth(h_s, h_t, negatives, torch.float64, given)
    naive = nce_truth(h_s, h_t, negatives, h_s.dtype, given)
    # a similarity of unit rows is good to some 2⁻²³ in float32, so a logit to 2⁻²³/τ, and a weight to that part of itself
    conditioning = (
        2**-23 / float(torch.as_tensor(temperature).detach())
        if h_s.dtype == torch.float32 and given["normalize"]
        else 0.0
    )
    rounding = (0.0, 0.0, moved_by_rounding(h_s, h_t, negatives, given), 0.0)
    for i, (true, value, plain) in enumerate(zip(truth, got[:4], naive, strict=True)):
        moved = rounding[i] + (conditioning * true.abs().max() if i >= 2 and true.numel() else 0.0)
        assert_true_to(true, value, plain, h_s.dtype, moved)
    values = reference.forward(*(x.double() for x in (h_s, h_t, negatives)), *arguments, True)[4]
    torch.testing.assert_close(got[4], values.to(got[4].dtype), rtol=1e-5, atol=1e-5)
    without = nce.forward(h_s, h_t, negatives, *arguments, False)
    assert torch.equal(without[0], got[0]) and torch.equal(without[4], got[4]) and without[2].shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_nce_matches_truth_in_every_dtype(dtype: torch.dtype, normalize: bool, in_batch: bool) -> None:
    temperature = 0.07 if normalize else 3.0
    check_nce(*nce_inputs(11, 17, 8, dtype), normalize=normalize, in_batch=in_batch, temperature=temperature)


@pytest.mark.parametrize("temperature", [0.005, 0.02, 0.07, 1.0, torch.tensor(0.05), torch.tensor(0.2)])
@pytest.mark.parametrize("in_batch", [False, True])
def test_nce_matches_truth_with_ids_masks_and_fill(temperature: float | Tensor, in_batch: bool) -> None:
    n, k = 23, 31
    check_nce(
        *nce_inputs(n, k, 16),
        temperature=temperature,
        fill=torch.tensor(19),
        negative_ids=torch.randint(-1, 5, (k,)),
        token_ids=torch.randint(-1, 5, (n,)),
        token_mask=torch.rand(n) < 0.7,
        in_batch=in_batch,
    )


@pytest.mark.parametrize(("n", "k", "e"), [(1, 1, 1), (1, 1031, 5), (300, 2100, 24), (257, 3, 7), (3, 1024, 64)])
def test_nce_matches_truth_in_every_shape(n: int, k: int, e: int) -> None:
    check_nce(*nce_inputs(n, k, e), temperature=0.1, normalize_negatives=False)
    check_nce(*nce_inputs(n, k, e), in_batch=True, token_ids=torch.arange(n) % 7, negative_ids=torch.arange(k) % 7)


@pytest.mark.parametrize(
    ("n", "k", "e"), [(1, 1, 2), (1, 1031, 6), (300, 1100, 24), (65, 3, 7), (3, 513, 64), (109, 70, 100)]
)
def test_nce_multiplies_bfloat16_of_every_shape(n: int, k: int, e: int) -> None:
    """Its numbers are taken in pairs, which an odd width or number of candidates breaks up, and those 16 at a time with AMX."""
    inputs = nce_inputs(n, k, e, torch.bfloat16)
    check_nce(*inputs, temperature=0.1, normalize_negatives=False)
    check_nce(*inputs, temperature=0.03, in_batch=True)
    check_nce(*(x.mT.contiguous().mT for x in inputs), temperature=0.1)


@pytest.mark.skipif("avx512_bf16" not in processor_flags(), reason="no bfloat16 units")
def test_nce_uses_the_bfloat16_units() -> None:
    arguments = (None, None, None, None, 0.07, None, True, True, False, True)
    inputs = nce_inputs(40, 70, 32, torch.bfloat16)
    units, converted = (nce.forward(*rows, *arguments) for rows in (inputs, [x.float() for x in inputs]))
    assert abs(units[0] / converted[0] - 1) < 1e-6
    assert not torch.equal(units[2], converted[2])


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan])
def test_nce_without_a_meaningful_temperature_is_nan(temperature: float) -> None:
    arguments = (None, None, None, None, None, torch.tensor(temperature), True, True, False, True)
    loss, count, grad, grad_temperature, _ = nce.forward(*nce_inputs(5, 9, 8), *arguments)
    assert loss.isnan() and grad_temperature.isnan() and grad.isnan().all() and count == 5


def test_nce_of_a_broken_token_is_nan() -> None:
    h_s, h_t, negatives = nce_inputs(5, 9, 8)
    h_s[2, 3] = math.nan
    loss, _, grad, _, _ = nce.forward(h_s, h_t, negatives, None, None, None, None, 0.07, None, True, True, False, True)
    assert loss.isnan() and grad[2].isnan().all() and grad[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("filled", [0, 1, 31])
def test_nce_sees_the_filled_rows_only(filled: int) -> None:
    h_s, h_t, negatives = nce_inputs(5, 31, 8)
    check_nce(h_s, h_t, negatives, fill=torch.tensor(filled))
    unfilled = negatives.clone()
    unfilled[filled:] = math.nan
    arguments = (torch.tensor(filled), None, None, None, 0.07, None, True, True, False, True)
    for a, b in zip(
        nce.forward(h_s, h_t, negatives, *arguments), nce.forward(h_s, h_t, unfilled, *arguments), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", ["no token", "all masked", "no negatives", "empty queue"])
def test_nce_without_anything_to_compare_is_zero(case: str) -> None:
    h_s, h_t, negatives = nce_inputs(0 if case == "no token" else 6, 0 if case == "no negatives" else 9, 8)
    mask = torch.zeros(6, dtype=torch.bool) if case == "all masked" else None
    fill = torch.tensor(0) if case == "empty queue" else None
    loss, count, grad, grad_temperature, values = nce.forward(
        h_s, h_t, negatives, fill, None, mask, None, 0.07, None, True, True, False, True
    )
    assert loss.item() == grad_temperature.item() == 0
    assert count.item() == (6 if case in ("no negatives", "empty queue") else 0)
    assert grad.shape == h_s.shape and not grad.any()
    assert not values[[0, 2]].any() and values[3].sum() == count


def test_nce_tokens_that_do_not_count_leave_no_trace() -> None:
    h_s, h_t, negatives = nce_inputs(12, 9, 8)
    mask = torch.arange(12) % 3 != 0
    arguments = (None, None, mask, None, 0.07, None, True, True, True, True)
    clean = nce.forward(h_s, h_t, negatives, *arguments)
    h_s[~mask], h_t[~mask] = math.nan, math.nan
    for a, b in zip(clean, nce.forward(h_s, h_t, negatives, *arguments), strict=True):
        assert torch.equal(a, b)
    assert not clean[2][~mask].any()


def test_nce_keeps_the_digits_of_a_small_loss() -> None:
    """A student that has learned: log Z - l_0 would cancel to nothing, log1p does not."""
    h = torch.eye(4, 64)
    arguments = (None, None, None, None, 0.05, None, True, True, False, True)
    loss, _, grad, _, _ = nce.forward(h, h, -h[:1], *arguments)
    truth = math.log1p(math.exp(-40)) + 3 * math.log1p(math.exp(-20))
    assert loss.item() == pytest.approx(truth, rel=1e-6)
    assert grad.isfinite().all()


def test_nce_gradient_of_rows_shorter_than_eps_follows_the_clamp() -> None:
    h_s, h_t, negatives = nce_inputs(3, 5, 8, torch.float64)
    h_s[0] = 0
    h_s[1] *= 1e-14
    check_nce(h_s, h_t, negatives)


def test_nce_allocates_blocks_and_never_the_logits() -> None:
    h_s, h_t, negatives = nce_inputs(3000, 6000, 4)  # the logits: 72 MB
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        nce.forward(h_s, h_t, negatives, None, None, None, None, 0.07, None, True, True, False, True)
    largest = max(e.cpu_memory_usage for e in record.events() if e.name == "aten::empty")
    assert 2**16 < largest <= 2**23
