"""`attention_mse` on every backend that runs here, against float64 autograd of its reference."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_truth import BACKENDS, DEVICE, assert_as_good, backends_here, error, loss_and_gradients, need
from torch import Tensor

from vlkd_kernels import attention_mse
from vlkd_kernels.attention_mse import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FACTOR = -1.7  # the incoming gradient


def make(
    batch: int, heads: int, queries: int, keys: int, width_s: int = 8, width_t: int = 8, *,
    heads_s: int | None = None, heads_t: int | None = None,
    dtype: torch.dtype = torch.float32, dtype_t: torch.dtype | None = None, seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def draw(head: int | None, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        x = torch.randn(batch, heads if head is None else head, rows, width, generator=generator)
        return (1.5 * x).to(DEVICE, dtype)

    dtype_t = dtype_t or dtype
    return {
        "q_s": draw(None, queries, width_s, dtype),
        "k_s": draw(heads_s, keys, width_s, dtype),
        "q_t": draw(None, queries, width_t, dtype_t),
        "k_t": draw(heads_t, keys, width_t, dtype_t),
    }


def mask(*shape: int, seed: int = 1, keep: float = 0.6) -> Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < keep).to(DEVICE)


def plain(
    dtype: torch.dtype, tensors: dict[str, Tensor], wanted: tuple[str, ...], options: dict[str, Any]
) -> dict[str, Tensor]:
    """The reference formula in a dtype, differentiated by autograd."""
    options = dict(options)
    reduction = options.pop("reduction", "mean")
    scales = {
        "scale_s": options.pop("scale_s", None) or tensors["q_s"].shape[-1] ** -0.5,
        "scale_t": options.pop("scale_t", None) or tensors["q_t"].shape[-1] ** -0.5,
    }

    def call(**tensors: Tensor) -> Tensor:
        loss, count = reference.loss(**tensors, **scales, **options)
        return loss / count.clamp(min=1) if reduction == "mean" else loss

    return loss_and_gradients(call, {name: x.to(dtype) for name, x in tensors.items()}, wanted, FACTOR)


def check(backend: str, tensors: dict[str, Tensor], wanted: tuple[str, ...] = ("q_s", "k_s"), **options: Any) -> None:
    dtype = tensors["q_s"].dtype
    need("attention_mse", backend, dtype)
    truth = plain(torch.float64, tensors, wanted, options)
    yardstick = plain(dtype, tensors, wanted, options)
    for route in routes(backend):
        with route:
            got = loss_and_gradients(
                lambda **x: attention_mse(**x, backend=backend, **options), tensors, wanted, FACTOR
            )
        for name, value in truth.items():
            assert_as_good(name, got[name], value, yardstick[name], dtype)


def routes(backend: str) -> list[AbstractContextManager[Any]]:
    """What a backend can be made to take: Triton has a kernel for short heads, and two for those that fit no tile."""
    if backend != "triton":
        return [nullcontext()]
    from vlkd_kernels.attention_mse import triton

    return [nullcontext(), mock.patch.object(triton, "head_config", lambda *_: None)]


MASKS: dict[str, dict[str, Any]] = {
    "none": {},
    "keys": {"attn_mask": mask(2, 1, 1, 19)},
    "full": {"attn_mask": mask(2, 2, 21, 19)},
    "heads": {"attn_mask": mask(1, 2, 21, 1)},
    "vector": {"attn_mask": mask(19), "is_causal": True},
    "queries": {"query_mask": mask(2, 21), "is_causal": True},
    "all": {"attn_mask": mask(2, 2, 21, 19, keep=0.15), "query_mask": mask(2, 21), "is_causal": True},
}


@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_with_masks_and_grouped_heads(backend: str, masks: str, distance: str) -> None:
    tensors = make(2, 2, 21, 19, 8, 24, heads_s=1 if distance == "mse" else 2, heads_t=1)
    check(backend, tensors, distance=distance, scale_s=0.5, scale_t=0.2, **MASKS[masks])


@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes(backend: str, dtype: torch.dtype, distance: str) -> None:
    check(backend, make(1, 2, 20, 19, 40, 16, dtype=dtype), distance=distance, attn_mask=mask(20, 19))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_teacher_of_another_dtype(backend: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    check(backend, make(1, 2, 17, 17, 16, 8, dtype=dtypes[0], dtype_t=dtypes[1]))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 1, 37), (3, 1, 31, 1), (1, 3, 16, 32)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ragged_shapes(backend: str, shape: tuple[int, int, int, int]) -> None:
    check(backend, make(*shape, width_s=20, width_t=9), reduction="sum")


@pytest.mark.parametrize("width", [8, 72, 256])
@pytest.mark.parametrize("backend", BACKENDS)
def test_head_widths(backend: str, width: int) -> None:
    check(backend, make(1, 1, 18, 20, width, 8), distance="kl")


@pytest.mark.parametrize("wanted", [("q_s",), ("k_s",)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_gradient(backend: str, wanted: tuple[str, ...]) -> None:
    check(backend, make(1, 2, 9, 11), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(backend: str) -> None:
    """Transposed [B, L, H, D], every other row of a longer tensor, and one head expanded over all."""
    need("attention_mse", backend)
    base = make(2, 3, 18, 20, 12, 8)
    odd = dict(base)
    odd["q_s"] = base["q_s"].transpose(1, 2).contiguous().transpose(1, 2)
    odd["k_s"] = base["k_s"].repeat_interleave(2, dim=2)[:, :, ::2]
    odd["q_t"] = base["q_t"].mT.contiguous().mT
    odd["k_t"] = base["k_t"][:, :1].expand(2, 3, 20, 8)
    base["k_t"] = odd["k_t"].contiguous()
    full = mask(2, 1, 18, 20)
    assert not any(x.is_contiguous() for x in odd.values())
    grads = []
    for tensors, attn_mask in ((base, full), (odd, full.mT.contiguous().mT)):
        leaves = {k: x.detach().requires_grad_(k.endswith("_s")) for k, x in tensors.items()}
        loss = attention_mse(**leaves, attn_mask=attn_mask, backend=backend)
        grads.append((loss, *torch.autograd.grad(loss, [leaves["q_s"], leaves["k_s"]])))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_addresses_beyond_32_bits(backend: str) -> None:
    need("attention_mse", backend, torch.float16)
    far = 2**31 + 64  # elements between the two heads; the pages in between are never touched
    small = make(1, 2, 5, 6, dtype=torch.float16)
    tensors = {
        name: torch.empty(far + x[0, 0].numel(), dtype=x.dtype, device=DEVICE)
        .as_strided(x.shape, (2 * far, far, 8, 1))
        .copy_(x)
        for name, x in small.items()
    }
    got = attention_mse(**tensors, backend=backend)
    torch.testing.assert_close(got, attention_mse(**small, backend=backend))


@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_identical_maps_give_exactly_zero(backend: str, dtype: torch.dtype, distance: str) -> None:
    need("attention_mse", backend, dtype)
    x = make(1, 2, 18, 18, dtype=dtype)
    q, k = x["q_s"].requires_grad_(), x["k_s"].requires_grad_()
    loss = attention_mse(q, k, q, k, distance=distance, is_causal=True, backend=backend)
    loss.backward()
    assert loss.item() == 0
    assert not q.grad.any() and not k.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_apart_maps_stay_finite(backend: str) -> None:
    """Scores of several hundred: exponentials of their differences would overflow."""
    need("attention_mse", backend)
    tensors = make(1, 1, 17, 18)
    tensors["q_s"] = tensors["q_s"] * 60
    tensors["q_t"] = tensors["q_t"] * -60
    check(backend, tensors, distance="kl")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_empty_inputs_give_zero(backend: str, shape: tuple[int, int, int, int]) -> None:
    need("attention_mse", backend)
    x = {name: t.requires_grad_() for name, t in make(*shape).items()}
    loss, count = attention_mse(**x, backend=backend, return_count=True)
    loss.backward()
    assert loss.item() == 0 and count.item() == 0
    assert not x["q_s"].grad.any() and x["q_s"].grad.shape == x["q_s"].shape


@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("hidden", ["attn_mask", "query_mask"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_that_hides_everything_gives_zero(backend: str, hidden: str, distance: str) -> None:
    need("attention_mse", backend)
    x = make(2, 2, 5, 6)
    q, k = x["q_s"].requires_grad_(), x["k_s"].requires_grad_()
    shape = (6,) if hidden == "attn_mask" else (2, 5)
    nothing = {hidden: torch.zeros(shape, dtype=torch.bool, device=DEVICE)}
    loss, count = attention_mse(
        q, k, x["q_t"], x["k_t"], backend=backend, distance=distance, return_count=True, **nothing
    )
    loss.backward()
    assert loss.item() == 0 and count.item() == 0
    assert not q.grad.any() and not k.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_do_not_count(backend: str) -> None:
    """A row counts if its query mask says so and it sees a key; the others get exactly no gradient."""
    need("attention_mse", backend)
    x = make(1, 1, 6, 5)
    q = x["q_s"].requires_grad_()
    attn_mask = torch.ones(6, 5, dtype=torch.bool, device=DEVICE)
    attn_mask[2] = False
    query_mask = torch.tensor([[True, True, True, False, True, True]], device=DEVICE)
    loss, count = attention_mse(**x, attn_mask=attn_mask, query_mask=query_mask, backend=backend, return_count=True)
    loss.backward()
    assert count.item() == 4
    assert q.grad[0, 0, [2, 3]].abs().sum() == 0
    assert (q.grad[0, 0, [0, 1, 4, 5]].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_see_one_key_have_nothing_to_learn(backend: str, distance: str) -> None:
    need("attention_mse", backend)
    tensors = make(2, 2, 9, 1)
    got = loss_and_gradients(
        lambda **x: attention_mse(**x, distance=distance, backend=backend), tensors, ("q_s", "k_s"), 3.0
    )
    assert not any(x.any() for x in got.values())


def test_without_a_mask_it_is_mse_loss() -> None:
    x = make(2, 2, 7, 9)
    p = (x["q_s"] @ x["k_s"].mT * 8**-0.5).softmax(-1)
    t = (x["q_t"] @ x["k_t"].mT * 8**-0.5).softmax(-1)
    torch.testing.assert_close(attention_mse(**x), torch.nn.functional.mse_loss(p, t))


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_drawn_shapes(data: st.DataObject) -> None:
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups, heads = draw(1, 3), draw(1, 2)
    queries, keys = draw(1, 20), draw(1, 20)
    tensors = make(
        draw(1, 2), groups * heads, queries, keys, draw(1, 20), draw(1, 20), heads_s=heads,
        dtype=data.draw(st.sampled_from(DTYPES)), seed=draw(0, 99),
    )  # fmt: skip
    options: dict[str, Any] = {
        "distance": data.draw(st.sampled_from(["mse", "kl"])),
        "is_causal": data.draw(st.booleans()),
        "reduction": data.draw(st.sampled_from(["mean", "sum"])),
    }
    if data.draw(st.booleans()):
        options["attn_mask"] = mask(1, 1, data.draw(st.sampled_from([1, queries])), keys, seed=draw(0, 99))
    for backend in backends_here("attention_mse", tensors["q_s"].dtype):
        check(backend, tensors, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_a_small_loss_do_not_underflow_in_float16(backend: str) -> None:
    """A mean over many rows times a loss scale: 1/count is applied in float32, so small entries survive."""
    need("attention_mse", backend, torch.float16)
    tensors = make(1, 2, 24, 40, dtype=torch.float16)
    truth = plain(torch.float64, tensors, ("q_s",), {})["q_s"]
    leaves = {**tensors, "q_s": tensors["q_s"].clone().requires_grad_()}
    (attention_mse(**leaves, backend=backend) * 2.0**14).backward()
    assert error(leaves["q_s"].grad.double() * FACTOR / 2.0**14, truth) < 2e-3


def test_products_of_bfloat16_are_computed_by_the_interpreter() -> None:
    """The helper that widens bfloat16 under the interpreter is in use: without it results are far off, not slightly."""
    need("attention_mse", "triton")
    tensors = make(1, 1, 17, 17, dtype=torch.bfloat16)
    triton = attention_mse(**tensors, backend="triton")
    assert error(triton, attention_mse(**tensors, backend="reference").double()) < 0.02


def test_backends_agree_on_the_count() -> None:
    x, attn_mask = make(2, 2, 5, 6), mask(5, 6)
    counts = {
        attention_mse(**x, attn_mask=attn_mask, is_causal=True, backend=name, return_count=True)[1].item()
        for name in backends_here("attention_mse")
    }
    assert len(counts) == 1
