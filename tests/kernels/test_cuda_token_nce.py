"""csrc's CUDA kernels of `token_nce`: on a processor, thread by thread (emulation/gpu.h), and on a GPU where there is one.

On a processor their indices, masks, barriers and numbers are tested; nothing of their speed.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import pytest
import torch
from emulated import ELEMENTS, POINTER, address, library, moved
from kernel_truth import DEVICE, assert_as_good
from test_token_nce import CALLS, FACTOR, integers, make, plain, queue, rows
from torch import Tensor

from vlkd_kernels import RingQueue
from vlkd_kernels.token_nce import reference

pytestmark = pytest.mark.slow

TILE, SUMS = 128, 5  # csrc's kTile, kSums
HALVES = (torch.bfloat16, torch.float16)


class Rows(ctypes.Structure):
    """csrc's RowsInput."""

    _fields_ = [("data", POINTER), ("type", ctypes.c_int), ("row", ctypes.c_int64), ("column", ctypes.c_int64)]


class Problem(ctypes.Structure):
    """csrc's NceProblem."""

    _fields_ = [
        *((name, Rows) for name in ("h_s", "h_t", "negatives")),
        *((name, ctypes.c_int64) for name in ("tokens", "rows", "columns", "width")),
        *((name, POINTER) for name in ("token_mask", "token_ids", "negative_ids", "fill")),
        ("temperature", ctypes.c_float),
        ("temperature_tensor", POINTER),
        ("temperature_type", ctypes.c_int),
        *((name, ctypes.c_bool) for name in ("normalize", "normalize_negatives", "with_grad")),
        *((name, POINTER) for name in ("students", "candidates")),
        *((name, ctypes.c_int64) for name in ("student_stride", "candidate_stride")),
        *((name, ctypes.c_bool) for name in ("copy_students", "copy_candidates")),
        *((name, POINTER) for name in ("divisors", "norm_s", "norm_t", "positives", "masses", "scales", "weights")),
        *((name, ctypes.c_int64) for name in ("chunk", "candidate_chunk")),
        *((name, POINTER) for name in ("partial", "state", "change", "gradient", "values", "grad_temperature")),
    ]


@pytest.fixture(scope="module", params=["emulated", "gpu"])
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL | None:
    """The emulation's library, or None for the GPU's operator."""
    return library("token_nce", request.param, tmp_path_factory)


def in_place(x: Tensor, dtype: torch.dtype) -> bool:
    aligned = x.stride(0) % 8 == 0 and x.shape[1] % 8 == 0 and x.data_ptr() % 16 == 0
    return x.dtype == dtype and x.stride(1) == 1 and aligned


def forward(
    kernel: ctypes.CDLL | None, tensors: dict[str, Tensor], negatives: Tensor | RingQueue, temperature: float = 0.07,
    token_mask: Tensor | None = None, token_ids: Tensor | None = None, normalize: bool = True, in_batch: bool = False,
    with_grad: bool = True, backwards: bool = False, chunks: tuple[int, int] = (TILE, TILE),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The arguments that csrc/token_nce/cuda.cpp makes, and its kernels; as `reference.forward`."""
    device = "cuda" if kernel is None else "cpu"
    ring = negatives if isinstance(negatives, RingQueue) else None
    stored = moved(negatives.rows if isinstance(negatives, RingQueue) else negatives, device)
    h_s, h_t = (moved(tensors[name], device) for name in ("h_s", "h_t"))
    fill = None if ring is None else moved(ring.fill, device)
    other_ids = None if ring is None or token_ids is None else moved(ring.ids, device)
    mask, ids = (None if x is None else moved(x, device) for x in (token_mask, token_ids))
    learned = moved(tensors["temperature"], device) if "temperature" in tensors else None
    fresh = normalize and ring is None
    if kernel is None:
        options = (None if learned is not None else temperature, learned, normalize, fresh, in_batch, with_grad)
        outputs = torch.ops.vlkd.token_nce(h_s, h_t, stored, fill, other_ids, mask, ids, *options)
        return tuple(x.cpu() for x in outputs)  # type: ignore[return-value]

    tokens, width = h_s.shape
    columns = stored.shape[0] + (tokens if in_batch else 0)

    def memory(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full(shape, math.nan, dtype=dtype)

    problem = Problem(*(Rows(x.data_ptr(), ELEMENTS.index(x.dtype), *x.stride()) for x in (h_s, h_t, stored)))
    problem.tokens, problem.rows, problem.columns, problem.width = tokens, stored.shape[0], columns, width
    problem.token_mask, problem.token_ids, problem.negative_ids = address(mask), address(ids), address(other_ids)
    problem.fill, problem.temperature = address(fill), temperature
    if learned is not None:
        problem.temperature_tensor, problem.temperature_type = address(learned), ELEMENTS.index(learned.dtype)
    problem.normalize, problem.normalize_negatives, problem.with_grad = normalize, fresh, with_grad
    problem.copy_students = not in_place(h_s, h_s.dtype)
    scaled = fresh and h_s.dtype == torch.float16
    problem.copy_candidates = in_batch or scaled or not in_place(stored, h_s.dtype)
    padded = (width + 7) // 8 * 8
    students = memory(tokens, padded, dtype=h_s.dtype) if problem.copy_students else h_s
    candidates = memory(columns, padded, dtype=h_s.dtype) if problem.copy_candidates else stored
    problem.students, problem.student_stride = address(students), students.stride(0)
    divisors = memory(columns)
    problem.divisors = address(divisors) if fresh or problem.copy_candidates else None
    problem.candidates, problem.candidate_stride = address(candidates), candidates.stride(0)
    problem.chunk, problem.candidate_chunk = chunks
    weights, partial = memory(*chunks, dtype=h_s.dtype), memory(SUMS, chunks[1] // TILE, chunks[0])
    state, change = memory(SUMS, tokens), memory(chunks[0])
    problem.state, problem.change = address(state), address(change)
    of_tokens, values, gradient = memory(6, tokens), memory(4, tokens), memory(tokens, width)
    names = ("norm_s", "norm_t", "positives", "masses", "scales", "grad_temperature")
    for name, x in zip(names, of_tokens, strict=True):
        setattr(problem, name, address(x))
    problem.weights, problem.partial = address(weights), address(partial)
    problem.gradient, problem.values = address(gradient), address(values)
    error = ctypes.create_string_buffer(200)
    if kernel.run(ctypes.byref(problem), h_s.dtype == torch.bfloat16, backwards, error, len(error)):
        raise RuntimeError(error.value.decode())
    count = torch.tensor(float(tokens)) if mask is None else mask.sum().float()
    return values[0].sum(), count, gradient, of_tokens[5].sum(), values


def check(
    kernel: ctypes.CDLL | None,
    tensors: dict[str, Tensor],
    negatives: Tensor | RingQueue,
    chunks: tuple[int, int] = (TILE, TILE),
    **options: Any,
) -> None:
    """The rule of kernel_truth.py; and the same bits whichever way the threads are taken."""
    dtype = tensors["h_s"].dtype
    results = [forward(kernel, tensors, negatives, chunks=chunks, backwards=b, **options) for b in (False, True)]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    loss, _, gradient, grad_temperature, values = (x.to(DEVICE) for x in results[0])
    wanted = ("h_s", "temperature") if "temperature" in tensors else ("h_s",)
    summed = options | {"reduction": "sum"}
    truth, yardstick = (plain(d, tensors, wanted, negatives, summed) for d in (torch.float64, dtype))
    got = {"loss": loss, "h_s": FACTOR * gradient, "temperature": FACTOR * grad_temperature}
    for name, value in truth.items():
        assert_as_good(name, got[name], value, yardstick[name], dtype)
    check_values(values, tensors, negatives, options)


def check_values(
    values: Tensor, tensors: dict[str, Tensor], negatives: Tensor | RingQueue, options: dict[str, Any]
) -> None:
    """Each token's loss, similarities and whether its positive is at the top, where that is not a matter of rounding."""
    ring = negatives if isinstance(negatives, RingQueue) else None
    stored = negatives.rows if isinstance(negatives, RingQueue) else negatives
    normalize, ids = options.get("normalize", True), options.get("token_ids")
    temperature = float(tensors.get("temperature", options.get("temperature", 0.07)))
    truth = reference.forward(
        *(x.double() for x in (tensors["h_s"], tensors["h_t"], stored)), None if ring is None else ring.fill,
        None if ring is None or ids is None else ring.ids, options.get("token_mask"), ids, temperature, None, normalize,
        normalize and ring is None, options.get("in_batch", False), False,
    )[4]  # fmt: skip
    assert (values[:3] - truth[:3]).abs().max() <= 2**-6 * max(1.0, truth[:3].abs().max().item())
    assert (values[3] != truth[3]).sum() <= 0.1 * values.shape[1]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_masks_ids_and_a_half_filled_queue(
    kernel: ctypes.CDLL | None, call: str, normalize: bool, dtype: torch.dtype
) -> None:
    options = {name: value for name, value in CALLS[call].items() if name != "reduction"}
    negatives = queue(45, 24, 34, normalize=normalize, dtype=dtype)
    check(kernel, make(37, 24, dtype), negatives, normalize=normalize, temperature=0.1 if normalize else 4.0, **options)


# N, K, E: one tile and several each way, sides that end in a tile, rows that are copied first and such that are not
SHAPES = [(1, 1, 1), (1, 300, 8), (130, 20, 40), (200, 259, 150), (129, 128, 136), (5, 1, 33), (300, 129, 24)]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(kernel: ctypes.CDLL | None, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    tokens, count, width = shape
    check(kernel, make(tokens, width, dtype), rows(count, width, dtype), temperature=0.2, in_batch=tokens == 130)


@pytest.mark.parametrize("tokens", [1, 300, 3000, 8192, 131072])
@pytest.mark.parametrize("columns", [0, 1, 4096, 65536])
def test_chunks_are_whole_tiles_of_at_most_32_mib(kernel: ctypes.CDLL | None, tokens: int, columns: int) -> None:
    if kernel is None:
        pytest.skip("the operator does not tell its chunks")
    problem = Problem(tokens=tokens, columns=columns)
    kernel.cut_chunks(ctypes.byref(problem))
    for chunk, size in ((problem.chunk, tokens), (problem.candidate_chunk, columns)):
        assert chunk % TILE == 0 and TILE <= chunk < max(size, 1) + TILE
    assert 2 * problem.chunk * problem.candidate_chunk <= 2**25


def test_one_chunk_of_tokens_and_several_give_the_same_bits(kernel: ctypes.CDLL | None) -> None:
    if kernel is None:
        pytest.skip("the operator cuts its chunks itself")
    tensors, negatives = make(300, 24, torch.bfloat16), rows(150, 24, torch.bfloat16)
    results = [forward(kernel, tensors, negatives, chunks=(tokens, 256)) for tokens in (128, 256, 384)]
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("candidates", [128, 256, 384, 512])
def test_chunks_of_candidates(kernel: ctypes.CDLL | None, candidates: int, dtype: torch.dtype) -> None:
    """The nearest ones come last, so that every token's reference moves up from chunk to chunk; the first are all known."""
    tensors = make(140, 33, dtype)
    h_t = tensors["h_t"].float()
    negatives = torch.cat([rows(200, 33), h_t + 3 * rows(140, 33, seed=6), h_t + rows(140, 33, seed=7)]).to(DEVICE)
    ring = RingQueue(33, 480, dtype=dtype, device=DEVICE)
    ring.enqueue_(negatives, ids=(torch.arange(480, device=DEVICE) < 130).long())
    ids = integers(0, 2, 140)
    check(kernel, tensors, ring, (TILE, candidates), temperature=0.02, token_ids=ids + (ids == 0) * 5)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("temperature", [0.005, 0.02, 0.07, 1.0])
@pytest.mark.parametrize("learned", [False, True])
def test_temperatures(kernel: ctypes.CDLL | None, temperature: float, learned: bool, dtype: torch.dtype) -> None:
    """At 0.005 the logits span ±200: a weight is finite and a gradient right only next to its tile's largest."""
    tensors = make(11, 16, dtype)
    if learned:
        tensors["temperature"] = torch.tensor(temperature, device=DEVICE)
        check(kernel, tensors, rows(150, 16, dtype))
    else:
        check(kernel, tensors, rows(150, 16, dtype), temperature=temperature)


def test_teacher_and_queue_of_other_dtypes_and_layouts(kernel: ctypes.CDLL | None) -> None:
    tensors = make(9, 16, torch.bfloat16)
    tensors["h_t"] = tensors["h_t"].float()
    check(kernel, tensors, queue(20, 16, 20, dtype=torch.float16))
    plain_rows, wide = rows(20, 16, torch.bfloat16), rows(20, 64, torch.bfloat16)
    wide[:, 8:24] = plain_rows
    tensors["h_s"] = tensors["h_s"].mT.contiguous().mT
    results = [forward(kernel, tensors, x) for x in (plain_rows, wide[:, 8:24])]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("in_batch", [False, True])
def test_rows_of_any_length(kernel: ctypes.CDLL | None, in_batch: bool, dtype: torch.dtype) -> None:
    """From one to the next far beyond what a weight of half precision could be divided by; and a row of zeros."""
    largest = 8 if dtype == torch.bfloat16 else 3
    negatives = rows(40, 16) * torch.logspace(-largest, largest, 40, device=DEVICE)[:, None]
    negatives[7] = 0
    check(kernel, make(11, 16, dtype), negatives.to(dtype), in_batch=in_batch, temperature=0.1)


@pytest.mark.parametrize("fill", [-3, 32, 2**40, 3 << 48 | 4])
@pytest.mark.parametrize("in_batch", [False, True])
def test_nothing_behind_the_queue_is_read(kernel: ctypes.CDLL | None, in_batch: bool, fill: int) -> None:
    """Whatever the count of filled rows says."""
    x = make(9, 8, torch.bfloat16)
    expected = queue(31, 8, 0 if fill < 0 else 31, dtype=torch.bfloat16)
    broken = queue(31, 8, 31, dtype=torch.bfloat16)
    broken.rows = torch.cat([expected.rows, torch.full((200, 8), math.nan, dtype=torch.bfloat16, device=DEVICE)])[:31]
    broken.fill.fill_(fill)
    got, truth = (forward(kernel, x, negatives, in_batch=in_batch) for negatives in (broken, expected))
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(got, truth, strict=True))


@pytest.mark.parametrize("filled", [0, 1, 31])
def test_what_is_not_filled_is_not_read(kernel: ctypes.CDLL | None, filled: int) -> None:
    negatives = queue(31, 8, filled, dtype=torch.bfloat16)
    tensors = make(5, 8, torch.bfloat16)
    before = forward(kernel, tensors, negatives)
    negatives.rows[filled:] = math.nan
    for one, other in zip(before, forward(kernel, tensors, negatives), strict=True):
        assert torch.equal(one, other)
    if filled == 0:
        assert not before[0] and not before[2].any() and not before[3]


@pytest.mark.parametrize("in_batch", [False, True])
def test_a_token_that_does_not_count_gives_zero(kernel: ctypes.CDLL | None, in_batch: bool) -> None:
    tensors, negatives = make(6, 8, torch.float16), rows(9, 8, torch.float16)
    mask = torch.tensor([True, False, True, True, False, True], device=DEVICE)
    for x in tensors.values():
        x[1] = math.nan
    loss, count, gradient, _, values = forward(kernel, tensors, negatives, token_mask=mask, in_batch=in_batch)
    assert loss.isfinite() and count == 4 and gradient.isfinite().all() and values.isfinite().all()
    for i in range(6):
        assert gradient[i].any() == bool(mask[i])


def test_a_broken_token_stays_broken(kernel: ctypes.CDLL | None) -> None:
    tensors, negatives = make(5, 8, torch.bfloat16), rows(9, 8, torch.bfloat16)
    tensors["h_s"][2, 3] = math.nan
    loss, _, gradient, _, _ = forward(kernel, tensors, negatives)
    assert loss.isnan() and gradient[2].isnan().all() and gradient[[0, 1, 3, 4]].isfinite().all()


def test_without_gradients_the_same_loss(kernel: ctypes.CDLL | None) -> None:
    tensors, negatives = make(20, 16, torch.bfloat16), rows(140, 16, torch.bfloat16)
    with_grad, without = (forward(kernel, tensors, negatives, with_grad=flag) for flag in (True, False))
    assert with_grad[0] == without[0] and torch.equal(with_grad[4], without[4])
    assert not without[2].isfinite().any()  # never written, or not even there


def test_no_negative_at_all(kernel: ctypes.CDLL | None) -> None:
    loss, count, gradient, grad_temperature, _ = forward(kernel, make(3, 8, torch.float16), rows(0, 8, torch.float16))
    assert (loss, count, grad_temperature) == (0, 3, 0) and not gradient.any()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("normalize", [True, False])
def test_what_counts_and_is_no_number_makes_the_loss_nan(
    kernel: ctypes.CDLL | None, normalize: bool, dtype: torch.dtype
) -> None:
    values = [math.nan, math.inf, -math.inf] + ([1e30] if normalize and dtype == torch.bfloat16 else [])
    for name in ("h_s", "h_t", "negatives"):
        for value in values:
            x, negatives = make(5, 24, dtype), rows(9, 24, dtype)
            (negatives if name == "negatives" else x[name])[2, 3] = value
            loss, _, gradient, _, values_of = forward(kernel, x, negatives, normalize=normalize, in_batch=name != "h_s")
            assert loss.isnan() and gradient[2].isnan().all(), f"{name} {value}"
            assert values_of[0, 2].isnan() and values_of[3, 2].isnan(), f"{name} {value}"
            assert name != "h_s" or values_of[:, [0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan, math.inf])
def test_a_temperature_without_a_meaning_gives_nan(kernel: ctypes.CDLL | None, temperature: float) -> None:
    x = make(5, 24, torch.bfloat16) | {"temperature": torch.tensor(temperature, device=DEVICE)}
    loss, _, gradient, grad_temperature, _ = forward(kernel, x, rows(9, 24, torch.bfloat16))
    assert loss.isnan() and gradient.isnan().all() and grad_temperature.isnan()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("in_batch", [False, True])
def test_what_does_not_count_and_is_no_number_leaves_no_trace(
    kernel: ctypes.CDLL | None, in_batch: bool, dtype: torch.dtype
) -> None:
    x, ring = make(5, 24, dtype), queue(12, 24, 9, dtype=dtype)
    mask = torch.tensor([True, True, False, True, False], device=DEVICE)
    options = {"token_mask": mask, "token_ids": ring.ids[4].expand(5).contiguous(), "in_batch": in_batch}
    expected = forward(kernel, x, ring, **options)
    for value in (math.nan, math.inf):
        broken = {name: y.clone() for name, y in x.items()}
        for name in ("h_s", "h_t"):
            broken[name][~mask] = value
        ring.rows[9:] = value
        ring.rows[ring.ids == ring.ids[4]] = value
        for one, other in zip(forward(kernel, broken, ring, **options), expected, strict=True):
            assert one.isfinite().all() and torch.equal(one, other)
