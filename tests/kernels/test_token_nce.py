"""`token_nce` on every backend that runs here, against float64 autograd of its reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_truth import BACKENDS, DEVICE, assert_as_good, backends_here, error, loss_and_gradients, need
from torch import Tensor
from torch.nn import functional as F

from vlkd_kernels import RingQueue, token_nce
from vlkd_kernels.token_nce import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FACTOR = 2.3  # the incoming gradient


def make(tokens: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """A student that is somewhat like its teacher."""
    generator = torch.Generator().manual_seed(seed)
    h_t = torch.randn(tokens, width, generator=generator)
    h_s = h_t + torch.randn(tokens, width, generator=generator)
    return {"h_s": (0.7 * h_s).to(DEVICE, dtype), "h_t": h_t.to(DEVICE, dtype)}


def rows(count: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 5) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def integers(low: int, high: int, count: int, seed: int = 7) -> Tensor:
    return torch.randint(low, high, (count,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def queue(
    size: int, width: int, filled: int, *, normalize: bool = True, dtype: torch.dtype = torch.float32
) -> RingQueue:
    ring = RingQueue(width, size, dtype=dtype, device=DEVICE, normalize=normalize)
    ring.enqueue_(rows(filled, width), ids=integers(-1, 9, filled, seed=8))
    return ring


@pytest.mark.parametrize("fill", [-3, 10, 2**40, 3 << 48 | 4])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_broken_count_of_filled_rows_is_brought_into_the_queue(backend: str, fill: int) -> None:
    need("token_nce", backend)
    expected = queue(9, 8, 0 if fill < 0 else 9)
    broken = queue(9, 8, 0 if fill < 0 else 9)
    broken.fill.fill_(fill)
    losses = [token_nce(**make(5, 8), negatives=ring, backend=backend) for ring in (broken, expected)]
    assert torch.equal(*losses)


def plain(
    dtype: torch.dtype,
    tensors: dict[str, Tensor],
    wanted: tuple[str, ...],
    negatives: Tensor | RingQueue,
    options: dict[str, Any],
) -> dict[str, Tensor]:
    """The reference formula in a dtype, differentiated by autograd."""
    options = dict(options)
    reduction = options.pop("reduction", "mean")
    temperature = options.pop("temperature", 0.07)
    ring = negatives if isinstance(negatives, RingQueue) else None
    stored = negatives.rows if isinstance(negatives, RingQueue) else negatives
    if ring is not None:
        options |= {"fill": ring.fill, "negative_ids": ring.ids}
    options["normalize_negatives"] = ring is None and options.get("normalize", True)

    def call(**x: Tensor) -> Tensor:
        tau = x.pop("temperature", temperature)
        loss, count = reference.loss(**x, negatives=stored.to(dtype), temperature=tau, **options)
        return loss / count.clamp(min=1) if reduction == "mean" else loss

    return loss_and_gradients(call, {name: x.to(dtype) for name, x in tensors.items()}, wanted, FACTOR)


def check(
    backend: str,
    tensors: dict[str, Tensor],
    negatives: Tensor | RingQueue,
    wanted: tuple[str, ...] = ("h_s",),
    **options: Any,
) -> None:
    dtype = tensors["h_s"].dtype
    need("token_nce", backend, dtype)
    got = loss_and_gradients(
        lambda **x: token_nce(**x, negatives=negatives, backend=backend, **options), tensors, wanted, FACTOR
    )
    truth = plain(torch.float64, tensors, wanted, negatives, options)
    yardstick = plain(dtype, tensors, wanted, negatives, options)
    tau = float(tensors.get("temperature", options.get("temperature", 0.07)))
    for name, value in truth.items():
        # the truth takes the difference of two logits itself, in float64: a loss of 1e-15 has no digits there
        own = 2**-50 / tau / max(value.abs().max().item(), 1e-300) if value.numel() else 0.0
        assert_as_good(name, got[name], value, yardstick[name], dtype, cancellation=own)


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "masked": {"token_mask": integers(0, 3, 37) > 0, "reduction": "sum"},
    "ids": {"token_ids": integers(-1, 9, 37)},
    "in batch": {"in_batch": True},
    "all": {"in_batch": True, "token_mask": integers(0, 3, 37) > 0, "token_ids": integers(-1, 9, 37)},
}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_ids_and_a_half_filled_queue(backend: str, call: str, normalize: bool) -> None:
    temperature = 0.1 if normalize else 4.0
    negatives = queue(45, 24, 34, normalize=normalize)
    check(backend, make(37, 24), negatives, normalize=normalize, temperature=temperature, **CALLS[call])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes_and_a_learned_temperature(backend: str, dtype: torch.dtype) -> None:
    tensors = make(19, 70, dtype)
    tensors["temperature"] = torch.tensor(0.2, dtype=dtype, device=DEVICE)
    check(backend, tensors, rows(33, 70, dtype), ("h_s", "temperature"), in_batch=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_teacher_and_queue_of_other_dtypes(backend: str) -> None:
    tensors = make(9, 16, torch.bfloat16)
    tensors["h_t"] = tensors["h_t"].float()
    check(backend, tensors, queue(20, 16, 20, dtype=torch.float16))


@pytest.mark.parametrize("wanted", [("h_s",), ("temperature",)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_gradient(backend: str, wanted: tuple[str, ...]) -> None:
    tensors = {**make(5, 8), "temperature": torch.tensor(0.3, device=DEVICE)}
    check(backend, tensors, rows(6, 8), wanted)


@pytest.mark.parametrize("temperature", [0.005, 0.02, 1.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_temperatures(backend: str, temperature: float) -> None:
    """At 0.005 the logits span ±200: float32 exponentials need the row's true maximum."""
    check(backend, make(11, 16), rows(21, 16), temperature=temperature)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("temperature", [0.005, 0.05, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_temperature_overflows(backend: str, dtype: torch.dtype, temperature: float, learned: bool) -> None:
    """Tokens equal to, and opposite to, their teacher and the queue: the largest and smallest logits there are."""
    need("token_nce", backend, dtype)
    h_t = rows(6, 16, dtype)
    signs = torch.tensor([1, -1] * 3, dtype=dtype, device=DEVICE)[:, None]
    h_s = (h_t * signs).requires_grad_()
    tau = torch.tensor(temperature, device=DEVICE, requires_grad=True) if learned else temperature
    loss = token_nce(h_s, h_t, rows(6, 16, dtype), temperature=tau, backend=backend)
    loss.backward()
    assert loss.isfinite() and h_s.grad.isfinite().all()
    if isinstance(tau, Tensor):
        assert tau.grad.isfinite()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 3), (35, 3, 1), (2, 7, 67)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_ragged_shapes(backend: str, shape: tuple[int, int, int]) -> None:
    tokens, width, count = shape
    if width == 1:  # a normalised number is ±1 and its gradient 0
        check(backend, make(tokens, width), rows(count, width), normalize=False, temperature=3.0)
    else:
        check(backend, make(tokens, width), rows(count, width))


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(backend: str) -> None:
    """Leading dimensions, a transposed student, every other row of a teacher, an expanded mask, strided ids."""
    need("token_nce", backend)
    x = make(12, 10)
    ids, mask = integers(-1, 5, 12), (integers(0, 4, 4) > 0).expand(3, 4)
    even: dict[str, Tensor] = {
        "h_s": x["h_s"].view(3, 4, 10),
        "h_t": x["h_t"].view(3, 4, 10),
        "token_ids": ids.view(3, 4),
    }
    odd = {
        "h_s": even["h_s"].permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "h_t": x["h_t"].repeat_interleave(2, dim=0)[::2].view(3, 4, 10),
        "token_ids": ids.repeat_interleave(2)[::2].view(3, 4),
    }
    ring = queue(9, 10, 9)
    results = []
    for tensors, token_mask in ((even, mask.contiguous()), (odd, mask)):
        h_s = tensors["h_s"].detach().requires_grad_()
        loss = token_nce(
            h_s,
            tensors["h_t"],
            ring,
            token_ids=tensors["token_ids"],
            token_mask=token_mask,
            in_batch=True,
            backend=backend,
        )
        results.append((loss, *torch.autograd.grad(loss, h_s)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    flat = token_nce(
        x["h_s"][::2], x["h_t"][::2], ring, token_ids=ids[::2], token_mask=mask.flatten()[::2], backend=backend
    )
    dense = token_nce(
        x["h_s"][::2].contiguous(), x["h_t"][::2].contiguous(), ring,
        token_ids=ids[::2].contiguous(), token_mask=mask.flatten()[::2].contiguous(), backend=backend,
    )  # fmt: skip
    torch.testing.assert_close(flat, dense)


@pytest.mark.parametrize("backend", BACKENDS)
def test_addresses_beyond_32_bits(backend: str) -> None:
    need("token_nce", backend, torch.float16)
    far = 2**31 + 64  # elements between the two rows; the pages in between are never touched
    negatives = rows(2, 8, torch.float16)
    spread = torch.empty(far + 8, dtype=torch.float16, device=DEVICE).as_strided((2, 8), (far, 1)).copy_(negatives)
    x = make(3, 8, torch.float16)
    torch.testing.assert_close(
        token_nce(**x, negatives=spread, backend=backend), token_nce(**x, negatives=negatives, backend=backend)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_student_far_ahead_keeps_its_digits(backend: str) -> None:
    """A loss of about 1e-6 is the log of a number next to 1; the gradient is a difference of nearly equal vectors."""
    need("token_nce", backend)
    x = make(7, 64)
    x["h_s"] = x["h_t"] * 1.001
    negatives = rows(16, 64)
    got = loss_and_gradients(lambda **x: token_nce(**x, negatives=negatives, backend=backend), x, ("h_s",), FACTOR)
    truth = plain(torch.float64, x, ("h_s",), negatives, {})
    assert 0 < truth["loss"] < 1e-2
    assert error(got["loss"], truth["loss"]) < 1e-4
    assert error(got["h_s"], truth["h_s"]) < 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_queue_counts_its_tokens_and_gives_zero(backend: str) -> None:
    need("token_nce", backend)
    x = make(6, 8)
    h_s, tau = x["h_s"].requires_grad_(), torch.tensor(0.1, device=DEVICE, requires_grad=True)
    loss, count, stats = token_nce(
        h_s,
        x["h_t"],
        RingQueue(8, 5, device=DEVICE),
        temperature=tau,
        backend=backend,
        return_count=True,
        return_stats=True,
    )
    loss.backward()
    assert loss.item() == 0 and count.item() == 6
    assert not h_s.grad.any() and tau.grad.item() == 0
    assert stats.negative_similarity.item() == 0 and stats.accuracy.item() == 1


@pytest.mark.parametrize("case", ["no token", "no token counts"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_count_gives_zero(backend: str, case: str) -> None:
    need("token_nce", backend)
    x = make(0 if case == "no token" else 4, 8)
    h_s = x["h_s"].requires_grad_()
    mask = torch.zeros(len(h_s), dtype=torch.bool, device=DEVICE)
    loss, count, stats = token_nce(
        h_s, x["h_t"], rows(5, 8), token_mask=mask, in_batch=True, backend=backend, return_count=True, return_stats=True
    )
    loss.backward()
    assert loss.item() == 0 and count.item() == 0 and [s.item() for s in stats] == [0, 0, 0]
    assert h_s.grad.shape == h_s.shape and not h_s.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_batch_alone(backend: str) -> None:
    """A queue of size 0 is legal when the batch brings the negatives; a single token then has none."""
    need("token_nce", backend)
    empty = RingQueue(8, 0, device=DEVICE)
    x = make(5, 8)
    s, t = (F.normalize(v.double(), dim=-1) for v in x.values())
    expected = F.cross_entropy(s @ t.mT / 0.07, torch.arange(5, device=DEVICE))
    assert error(token_nce(**x, negatives=empty, in_batch=True, backend=backend), expected) < 1e-5
    one = {name: v[:1] for name, v in x.items()}
    assert token_nce(**one, negatives=empty, in_batch=True, backend=backend).item() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids(backend: str) -> None:
    """An equal id takes a negative out; -1 equals nothing, not even -1."""
    need("token_nce", backend)
    ring = RingQueue(8, 4, device=DEVICE)
    ring.enqueue_(rows(4, 8), ids=torch.tensor([3, -1, 7, 3], device=DEVICE))
    x = make(2, 8)
    ids = torch.tensor([3, -1], device=DEVICE)
    got = token_nce(**x, negatives=ring, token_ids=ids, reduction="sum", backend=backend)
    first, second = ({name: v[i : i + 1] for name, v in x.items()} for i in (0, 1))
    expected = token_nce(**first, negatives=ring.rows[1:3], backend=backend) + token_nce(
        **second, negatives=ring.rows, backend=backend
    )
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics(backend: str) -> None:
    need("token_nce", backend)
    x, negatives = make(9, 12), rows(7, 12)
    mask = integers(0, 3, 9) > 0
    stats = token_nce(**x, negatives=negatives, token_mask=mask, backend=backend, return_stats=True)[1]
    s, t, q = (F.normalize(v, dim=-1)[...] for v in (x["h_s"][mask], x["h_t"][mask], negatives))
    positive, negative = (s * t).sum(-1), s @ q.mT
    torch.testing.assert_close(stats.positive_similarity, positive.mean())
    torch.testing.assert_close(stats.negative_similarity, negative.mean())
    torch.testing.assert_close(stats.accuracy, (positive > negative.amax(-1)).float().mean())


@pytest.mark.parametrize("temperature", [0.0229, 0.0231])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_at_the_edge_of_what_a_float_holds(backend: str, dtype: torch.dtype, temperature: float) -> None:
    """Where every negative, the positive, or both are opposite to the token, exp((b - 1)/τ) is as small as it can be."""
    axis = torch.eye(8, device=DEVICE)
    own, other = axis[0], -axis[0] + axis[2] / 16  # similarities of 1 and -0.998
    x = {"h_s": torch.stack([own, own]), "h_t": torch.stack([own, -own + axis[3] / 16])}
    for negatives in (other, own + axis[2] / 16):
        check(
            backend,
            {name: v.to(dtype) for name, v in x.items()},
            negatives[None].to(dtype),
            temperature=temperature,
            reduction="sum",
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_of_every_token(backend: str) -> None:
    need("token_nce", backend)
    x, negatives = make(12, 8), rows(7, 8)
    shaped = {name: v.view(3, 4, 8).requires_grad_(name == "h_s") for name, v in x.items()}
    mask = (integers(0, 3, 12) > 0).view(3, 4)
    options = {"negatives": negatives, "token_mask": mask, "backend": backend}
    loss, count, losses = token_nce(**shaped, **options, return_count=True, return_losses=True)
    assert losses.shape == mask.shape and not losses.requires_grad and not losses[~mask].any()
    torch.testing.assert_close(losses.sum() / count, loss.detach())
    alone = token_nce(shaped["h_s"][mask][:1], shaped["h_t"][mask][:1], negatives, backend=backend)
    torch.testing.assert_close(losses[mask][0], alone.detach())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zero_token_has_a_finite_loss(backend: str) -> None:
    need("token_nce", backend)
    tensors = make(4, 8)
    tensors["h_s"][2] = 0
    got = token_nce(**tensors, negatives=rows(5, 8), backend=backend)
    assert error(got, plain(torch.float64, tensors, ("h_s",), rows(5, 8), {})["loss"]) < 1e-5


def test_it_is_cross_entropy() -> None:
    x, negatives = make(6, 8), rows(9, 8)
    s, t, q = (F.normalize(v, dim=-1) for v in (x["h_s"], x["h_t"], negatives))
    logits = torch.cat([(s * t).sum(-1, keepdim=True), s @ q.mT], dim=1) / 0.07
    torch.testing.assert_close(
        token_nce(**x, negatives=negatives), F.cross_entropy(logits, torch.zeros(6, dtype=torch.long, device=DEVICE))
    )


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_drawn_shapes(data: st.DataObject) -> None:
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    tokens, width, size = draw(1, 20), draw(2, 20), draw(1, 20)
    dtype = data.draw(st.sampled_from(DTYPES))
    normalize = data.draw(st.booleans())
    options: dict[str, Any] = {
        "normalize": normalize,
        "temperature": data.draw(st.sampled_from([0.05, 0.3, 1.0])) if normalize else 5.0,
        "in_batch": data.draw(st.booleans()),
        "reduction": data.draw(st.sampled_from(["mean", "sum"])),
        "token_ids": integers(-1, 4, tokens, seed=draw(0, 99)),
        "token_mask": integers(0, 3, tokens, seed=draw(0, 99)) > 0,
    }
    # in the student's dtype, in which products are taken: the truth is that of the rows that were given
    ring = queue(size, width, draw(0, 25), normalize=normalize, dtype=dtype)
    tensors = make(tokens, width, dtype, seed=draw(0, 99))
    for backend in backends_here("token_nce", dtype):
        check(backend, tensors, ring, **options)
