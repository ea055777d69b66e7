"""A student that has nearly learned its teacher: the loss is a sum of squares far below the probabilities' own size.

What rounding must cost there follows from the inputs. With u = 2^-24 (fp32):

    score       s_ij = scale * sum_k q_ik k_jk          error of about u * scale * sum_k |q_ik k_jk| =: e_ij
    probability p_ij = softmax(s_i)_j                   error of about p_ij (e_ij + sum_j p_ij e_ij + 2u), first order
    difference  d = p - t                               errors of both sides, independent: their root sum of squares, E
    loss        sum d^2, or sum d^2 / 2p near KL's 0    error of about 2 sqrt(sum (d E)^2), or sqrt(sum (d E / p)^2)

Twice that is the bound. It is a few 1e-4 of the loss here, where a form that cancels is wrong by a tenth.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from kernel_truth import BACKENDS, DEVICE, error, loss_and_gradients, need
from torch import Tensor

from vlkd_kernels import attention_mse

SEEDS = range(40)
DISTANCES = ("mse", "kl")


def near(seed: int) -> dict[str, Tensor]:
    """Queries that differ by one part in a thousand."""
    generator = torch.Generator().manual_seed(seed)
    q, k = (1.5 * torch.randn(1, 2, rows, 16, generator=generator) for rows in (16, 48))
    q_s = q * (1 + 1e-3 * torch.randn(q.shape, generator=generator))
    return {name: x.to(DEVICE) for name, x in {"q_s": q_s, "k_s": k, "q_t": q, "k_t": k}.items()}


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)


def roundings(q: Tensor, k: Tensor) -> Tensor:
    """Error of the probabilities, fp64."""
    u = 2.0**-24
    p = probabilities(q, k)
    scores = u * q.shape[-1] ** -0.5 * (q.abs() @ k.abs().mT)
    return p * (scores + (p * scores).sum(dim=-1, keepdim=True) + 2 * u)


def truth_and_bound(tensors: dict[str, Tensor], distance: str) -> tuple[float, float]:
    """The loss in fp64, and how far rounding may move it, relative to it."""
    wide = {name: x.double() for name, x in tensors.items()}
    p, t = probabilities(wide["q_s"], wide["k_s"]), probabilities(wide["q_t"], wide["k_t"])
    d = p - t
    both = (roundings(wide["q_s"], wide["k_s"]) ** 2 + roundings(wide["q_t"], wide["k_t"]) ** 2).sqrt()
    if distance == "mse":
        moved, size = 2 * (d * both).square().sum().sqrt(), (d**2).sum()
    else:
        moved, size = (d * both / p).square().sum().sqrt(), (t * (t.log() - p.log())).sum()
    truth = attention_mse(**wide, distance=distance, backend="reference")
    return truth.item(), (2 * moved / size).item()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rounding_moves_the_loss_no_further_than_it_must(backend: str, distance: str) -> None:
    need("attention_mse", backend)
    interpreted = backend == "triton" and DEVICE == "cpu"
    for seed in SEEDS[:4] if interpreted else SEEDS:
        tensors = near(seed)
        truth, bound = truth_and_bound(tensors, distance)
        got = attention_mse(**tensors, distance=distance, backend=backend)
        assert abs(got.item() - truth) <= bound * truth, f"seed {seed}"
        assert bound < 1e-3


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_keeps_its_digits(backend: str, distance: str) -> None:
    need("attention_mse", backend)
    for seed in SEEDS[:4]:
        tensors = near(seed)
        wide = {name: x.double() for name, x in tensors.items()}
        got = loss_and_gradients(partial(attention_mse, distance=distance, backend=backend), tensors, ("q_s",), 1.7)
        truth = loss_and_gradients(partial(attention_mse, distance=distance, backend="reference"), wide, ("q_s",), 1.7)
        assert error(got["q_s"], truth["q_s"]) < 1e-2


def expanded(tensors: dict[str, Tensor]) -> Tensor:
    """Sum p^2 - 2 sum pt + sum t^2, means over queries and keys: a sweep less, and it cancels."""
    p = probabilities(tensors["q_s"], tensors["k_s"])
    t = probabilities(tensors["q_t"], tensors["k_t"])
    return (p * p).mean() - 2 * (p * t).mean() + (t * t).mean()


def with_tf32_inputs(tensors: dict[str, Tensor]) -> Tensor:
    """What a tensor core makes of fp32 where nobody forbids it: 10 bits of mantissa."""
    short = {name: (x.view(torch.int32) & -(1 << 13)).view(torch.float32) for name, x in tensors.items()}
    return attention_mse(**short, backend="reference")


@pytest.mark.parametrize("careless", [expanded, with_tf32_inputs])
def test_careless_forms_break_the_bound(careless) -> None:
    excess = []
    for seed in SEEDS:
        tensors = near(seed)
        truth, bound = truth_and_bound(tensors, "mse")
        excess.append(abs(careless(tensors).item() - truth) / (bound * truth))
    assert sorted(excess)[len(excess) // 2] > 20
    assert sum(one > 1 for one in excess) >= 0.9 * len(excess)
