"""`RingQueue` against a Python list."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vlkd_kernels import RingQueue, available_backends, token_nce

BACKENDS = [name for name in available_backends("ring_queue") if name != "triton"]


def saved_and_loaded(ring: RingQueue) -> RingQueue:
    """A new queue with the state that a checkpoint of this one holds."""
    stored = io.BytesIO()
    torch.save(ring.state_dict(), stored)
    stored.seek(0)
    size, dim = ring.rows.shape
    twin = RingQueue(dim, size, dtype=ring.dtype, normalize=ring.normalize)
    twin.load_state_dict(torch.load(stored, weights_only=True))
    return twin


RENEWALS = {
    "checkpoint": saved_and_loaded,
    "copy": copy.deepcopy,
    "pickle": lambda ring: pickle.loads(pickle.dumps(ring)),
    "to": lambda ring: ring.to("cpu", torch.float32),
}
WRITES = st.tuples(st.integers(0, 17), st.booleans(), st.booleans())  # rows, whether with a mask, whether with ids


def drawn(
    generator: torch.Generator, count: int, with_mask: bool, with_ids: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Rows [N, 3], mask and ids of one of the WRITES."""
    rows = torch.randn(count, 3, generator=generator)
    mask = torch.rand(count, generator=generator) < 0.7 if with_mask else None
    return rows, mask, torch.randint(-1, 50, (count,), generator=generator) if with_ids else None


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=1500, deadline=None)
@given(
    size=st.integers(0, 7),
    operations=st.lists(st.one_of(WRITES, st.sampled_from(sorted(RENEWALS))), max_size=8),
    seed=st.integers(0, 99),
)
def test_it_is_a_list_of_the_last_rows(backend: str, size: int, operations: list, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ring = RingQueue(3, size, normalize=False)
    slots: list[tuple[list[float], int]] = [([0.0] * 3, -1)] * size
    written = 0
    for operation in operations:
        if isinstance(operation, str):
            ring = RENEWALS[operation](ring)
            continue
        rows, mask, ids = drawn(generator, *operation)
        ring.enqueue_(rows, mask, ids, backend=backend)
        for i, row in enumerate(rows.tolist()):
            if size and (mask is None or mask[i]):
                slots[written % size] = (row, -1 if ids is None else int(ids[i]))
                written += 1
    assert ring.rows.tolist() == [row for row, _ in slots]
    assert ring.ids.tolist() == [name for _, name in slots]
    assert ring.head.item() == (written % size if size else 0)
    assert ring.fill.item() == min(written, size)
    assert ring.valid.sum().item() == ring.fill.item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_are_normalised_on_the_way_in(backend: str, dtype: torch.dtype) -> None:
    ring = RingQueue(16, 8, dtype=dtype)
    rows = torch.randn(2, 3, 16) * 100
    rows[0, 0] = 0
    ring.enqueue_(rows, backend=backend)
    expected = F.normalize(rows.flatten(0, 1), dim=-1).to(dtype)
    torch.testing.assert_close(ring.rows[:6], expected)
    assert not ring.rows[6:].any() and ring.ids.tolist() == [-1] * 8


def test_a_run_that_is_saved_and_resumed_gives_the_same_losses() -> None:
    def losses(ring: RingQueue, steps: range) -> list[float]:
        found = []
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            h_s, h_t = torch.randn(2, 6, 4, generator=generator)
            found.append(token_nce(h_s, h_t, ring, in_batch=True).item())
            ring.enqueue_(h_t, ids=torch.arange(6))
        return found

    straight, first = RingQueue(4, 15), RingQueue(4, 15)
    expected = losses(straight, range(6))
    found = losses(first, range(3))
    second = saved_and_loaded(first)
    found += losses(second, range(3, 6))
    assert found == expected
    assert all(torch.equal(a, b) for a, b in zip(straight.buffers(), second.buffers(), strict=True))
    assert len(list(second.parameters())) == 0 and len(second.state_dict()) == 5


def test_a_deep_copy_goes_its_own_way() -> None:
    ring = RingQueue(4, 5)
    ring.enqueue_(torch.randn(3, 4), ids=torch.arange(3))
    twin = copy.deepcopy(ring)
    assert all(torch.equal(a, b) for a, b in zip(ring.buffers(), twin.buffers(), strict=True))
    ring.enqueue_(torch.randn(1, 4))
    assert (ring.fill.item(), twin.fill.item()) == (4, 3) and not twin.rows[3].any()


@pytest.mark.parametrize("new_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_backends_write_the_same_bits(dtype: torch.dtype, new_dtype: torch.dtype) -> None:
    """Without normalisation a write copies and rounds, which every backend does alike."""
    if len(BACKENDS) < 2:
        pytest.skip("one backend runs here")
    generator = torch.Generator().manual_seed(3)
    rings = [RingQueue(6, 9, dtype=dtype, normalize=False) for _ in BACKENDS]
    for count in (4, 0, 7, 1, 31):
        rows = torch.randn(count, 6, generator=generator).to(new_dtype)
        mask = torch.rand(count, generator=generator) < 0.6
        for ring, backend in zip(rings, BACKENDS, strict=True):
            ring.enqueue_(rows, mask=mask, ids=torch.arange(count), backend=backend)
        for ring in rings[1:]:
            assert all(torch.equal(a, b) for a, b in zip(rings[0].buffers(), ring.buffers(), strict=True))


def test_writing_after_the_loss_does_not_change_its_gradient() -> None:
    ring, h = RingQueue(4, 5), torch.randn(6, 4, requires_grad=True)
    ring.enqueue_(torch.randn(5, 4))
    loss = token_nce(h, torch.randn(6, 4), ring)
    before = torch.autograd.grad(loss, h, retain_graph=True)[0]
    ring.enqueue_(torch.randn(5, 4))
    assert torch.equal(before, torch.autograd.grad(loss, h)[0])


def test_rows_that_need_a_gradient_are_stored_without_one() -> None:
    ring = RingQueue(4, 5)
    ring.enqueue_(torch.randn(2, 4, requires_grad=True))
    assert not ring.rows.requires_grad


def float8(size: int, width: int, *, normalize: bool = True) -> RingQueue:
    return RingQueue(width, size, dtype=torch.float8_e4m3fn, normalize=normalize)


@pytest.mark.parametrize("size_of_rows", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("normalize", [False, True])
def test_float8_rows_keep_three_bits_behind_the_leading_one(normalize: bool, size_of_rows: float) -> None:
    ring, rows = float8(9, 40, normalize=normalize), torch.randn(7, 40) * size_of_rows
    rows[3] = 0
    ring.enqueue_(rows.view(1, 7, 40))
    expected = F.normalize(rows, dim=-1) if normalize else rows
    found, largest = ring.values()[:7], expected.abs().amax(-1, keepdim=True)
    allowance = 2**-3 if normalize else 2**-4  # the length that rounding changed is put right
    assert ((found - expected).abs() <= allowance * expected.abs() + 2**-15 * largest).all()
    assert not ring.values()[7:].any() and not found[3].any()
    if normalize:
        torch.testing.assert_close(found.norm(dim=-1)[rows.any(-1)], torch.ones(6), rtol=1e-6, atol=0)
    assert ring.values(torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(0, 7),
    operations=st.lists(st.one_of(WRITES, st.sampled_from(("checkpoint", "copy", "pickle"))), max_size=8),
    seed=st.integers(0, 99),
)
def test_float8_rows_lie_where_others_do(backend: str, size: int, operations: list, seed: int) -> None:
    """A float32 queue that is given what float8 made of each row."""
    generator = torch.Generator().manual_seed(seed)
    ring, plain = float8(size, 3), RingQueue(3, size, normalize=False)
    for operation in operations:
        if isinstance(operation, str):
            ring = RENEWALS[operation](ring)
            continue
        rows, mask, ids = drawn(generator, *operation)
        one_by_one = float8(len(rows), 3)
        one_by_one.enqueue_(rows)
        ring.enqueue_(rows, mask, ids, backend=backend)
        plain.enqueue_(one_by_one.values(), mask, ids)
    assert torch.equal(ring.values(), plain.rows)
    for name in ("ids", "head", "fill"):
        assert torch.equal(ring.get_buffer(name), plain.get_buffer(name))


@pytest.mark.parametrize(
    ("width", "dtype", "row", "loss", "gradient"),
    [
        (64, torch.bfloat16, 0.0016, 4.2e-5, 5.1e-4),
        (64, torch.float8_e4m3fn, 0.024, 7.7e-5, 6.5e-3),
        (768, torch.bfloat16, 0.0017, 1.1e-6, 9.9e-5),
        (768, torch.float8_e4m3fn, 0.026, 2.3e-5, 1.5e-3),
    ],
)
def test_what_a_narrower_queue_costs(width: int, dtype: torch.dtype, row: float, loss: float, gradient: float) -> None:
    """The figures of vlkd_kernels/ring_queue/README.md: N 128, K 1024, τ 0.07, random rows, against a float32 queue."""
    generator = torch.Generator().manual_seed(0)
    h_t, noise = torch.randn(2, 128, width, generator=generator)
    h_s, rows = (h_t + noise).requires_grad_(), torch.randn(1024, width, generator=generator)
    results = []
    for ring in (RingQueue(width, 1024), RingQueue(width, 1024, dtype=dtype)):
        ring.enqueue_(rows)
        value = token_nce(h_s, h_t, ring)
        results.append((ring.values().float(), value.detach(), *torch.autograd.grad(value, h_s)))
    (exact, true_loss, true_gradient), (found, got_loss, got_gradient) = results
    assert row / 2 < (found - exact).norm(dim=-1).mean() < 2 * row
    assert abs(got_loss / true_loss - 1) < 2 * loss
    assert gradient / 2 < (got_gradient - true_gradient).norm() / true_gradient.norm() < 2 * gradient


def test_other_eight_bit_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match="or float8_e4m3fn, got float8_e5m2"):
        RingQueue(4, 4, dtype=torch.float8_e5m2)


CASTS = {
    "half": lambda ring: ring.half(),
    "bfloat16": lambda ring: ring.bfloat16(),
    "double": lambda ring: ring.double(),
    "to": lambda ring: ring.to(torch.float16),
    "module": lambda ring: torch.nn.Sequential(ring).half()[0],
    "back": lambda ring: ring.half().float(),
    "device": lambda ring: ring.to("cpu"),
}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_a_queue_that_is_cast_stays_right(dtype: torch.dtype, cast: str) -> None:
    ring, old = (RingQueue(8, 6, dtype=dtype) for _ in range(2))
    rows = torch.randn(9, 8)
    for queue in (ring, old):
        queue.enqueue_(rows[:4], ids=torch.arange(4))
    ring = CASTS[cast](ring)
    if dtype == torch.float8_e4m3fn:
        assert ring.dtype == dtype and ring.scales is not None and ring.scales.dtype == torch.float32
        assert torch.equal(ring.scales, old.scales)  # type: ignore[arg-type]
    assert ring.ids.dtype == ring.head.dtype == ring.fill.dtype == torch.int64
    rounding = 2e-2 if "bfloat16" in (cast, str(dtype).removeprefix("torch.")) else 2e-3
    torch.testing.assert_close(ring.values().float(), old.values().float(), atol=rounding, rtol=0)
    for queue in (ring, old):
        queue.enqueue_(rows[4:], ids=torch.arange(4, 9))
    torch.testing.assert_close(ring.values().float(), old.values().float(), atol=rounding, rtol=0)
    h_s, h_t = torch.randn(2, 5, 8)
    got, expected = (token_nce(h_s, h_t, queue, token_ids=torch.arange(5)) for queue in (ring, old))
    torch.testing.assert_close(got, expected, atol=20 * rounding, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(ring.buffers(), saved_and_loaded(ring).buffers(), strict=True))


def test_a_cast_to_eight_bits_is_refused() -> None:
    ring = RingQueue(4, 3)
    with pytest.raises(
        TypeError, match=r"cannot be cast to torch.float8_e4m3fn; make one with dtype=torch\.float8_e4m3fn"
    ):
        ring.to(torch.float8_e4m3fn)
    assert ring.dtype == torch.float32


@pytest.mark.parametrize(
    "other",
    [{"normalize": False}, {"dim": 5}, {"size": 4}, {"dtype": torch.bfloat16}, {"dtype": torch.float8_e4m3fn}],
    ids=str,
)
@pytest.mark.parametrize("strict", [True, False])
def test_the_state_of_another_queue_is_refused(other: dict, strict: bool) -> None:
    made = {"dim": 4, "size": 3, "dtype": torch.float32, "normalize": True}
    for theirs, own in ((made, made | other), (made | other, made)):
        ring = RingQueue(**own)  # type: ignore[arg-type]
        before = [x.clone() for x in ring.buffers()]
        state = torch.nn.Sequential(RingQueue(**theirs)).state_dict()  # type: ignore[arg-type]
        with pytest.raises(
            RuntimeError, match=r"the state is that of a RingQueue\(dim=.*\), but this one is RingQueue\("
        ):
            torch.nn.Sequential(ring).load_state_dict(state, strict=strict)
        assert all(torch.equal(a, b) for a, b in zip(before, ring.buffers(), strict=True))


@pytest.mark.parametrize("assign", [True, False])
def test_a_state_of_before_normalize_was_written_is_taken(assign: bool) -> None:
    ring, twin = RingQueue(4, 3), RingQueue(4, 3)
    ring.enqueue_(torch.randn(2, 4))
    state = {name: x for name, x in ring.state_dict().items() if name != "normalized"}
    twin.load_state_dict(state, assign=assign)
    assert torch.equal(twin.rows, ring.rows) and twin.fill.item() == 2 and "normalized" not in state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_whose_length_overflows_is_nan_and_not_zero(backend: str, dtype: torch.dtype) -> None:
    ring = RingQueue(4, 3)
    ring.enqueue_(torch.tensor([[1e30] * 4, [1.0] * 4, [torch.inf, 0, 0, 0]], dtype=dtype), backend=backend)
    assert ring.rows[0].isnan().all() and ring.rows[1].isfinite().all() and ring.rows[2].isnan().any()
