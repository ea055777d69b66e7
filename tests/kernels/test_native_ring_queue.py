"""csrc's ring_enqueue_ against a queue written as Python lists: C++; CUDA on a processor, thread by thread, and on a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from emulated import ELEMENTS, POINTER, address, library
from native_cases import DTYPES, SLACK, Ring, needs_extension, poisoned_memory  # noqa: F401
from torch import Tensor

from vlkd_kernels import available_backends
from vlkd_kernels.ring_queue import native as ring

pytestmark = [pytest.mark.slow, needs_extension, pytest.mark.usefixtures("poisoned_memory")]


class Problem(ctypes.Structure):
    """csrc's RingWrite."""

    _fields_ = [
        *((name, POINTER) for name in ("rows", "scales", "ids", "head", "fill", "arrivals")),
        *((name, ctypes.c_int64) for name in ("size", "width")),
        ("new_rows", POINTER),
        *((name, ctypes.c_int64) for name in ("row_stride", "column_stride")),
        *((name, kind) for x in ("new_scales", "mask", "new_ids") for name, kind in ((x, POINTER), (x + "_stride", ctypes.c_int64))),
        ("count", ctypes.c_int64),
        ("normalize", ctypes.c_bool),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("blocks", "rows_of_block")),
        ("packed", ctypes.c_bool),
    ]  # fmt: skip


class Writer(NamedTuple):
    """A compiled ring_enqueue_, with the arguments of `native.enqueue_`, and the device that its tensors are on."""

    write: Callable[..., None]
    device: str

    def queue(self, size: int, width: int, dtype: torch.dtype = torch.float32) -> Ring:
        return Ring(size, width, dtype, self.device, self.write)


@pytest.fixture(scope="module", params=["cpu", "emulated forwards", "emulated backwards", "gpu"])
def writer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Writer:
    where, _, order = request.param.partition(" ")
    if where == "emulated":
        kernel = library("ring_queue", where, tmp_path_factory)
        return Writer(lambda *arguments: emulate(kernel, order == "backwards", *arguments), "cpu")
    if where == "gpu" and "cuda" not in available_backends("ring_queue", device="cuda"):
        pytest.skip("cuda does not run here")
    return Writer(ring.enqueue_, "cuda" if where == "gpu" else "cpu")


def emulate(
    kernel: ctypes.CDLL | None, backwards: bool, rows: Tensor, ids: Tensor, head: Tensor, fill: Tensor, new_rows: Tensor,
    mask: Tensor | None, new_ids: Tensor | None, normalize: bool, scales: Tensor | None = None,
    new_scales: Tensor | None = None,
) -> None:  # fmt: skip
    """The arguments that csrc/ring_queue/cuda.cu makes, and its kernel."""
    assert kernel is not None
    if rows.shape[0] == 0 or new_rows.shape[0] == 0:
        return
    arrivals = torch.zeros(1, dtype=torch.int32)
    problem = described(arrivals, rows, ids, head, fill, new_rows, mask, new_ids, normalize, scales, new_scales)
    error, types = ctypes.create_string_buffer(200), (ELEMENTS.index(x.dtype) for x in (rows, new_rows))
    if kernel.run(ctypes.byref(problem), *types, backwards, error, len(error)):
        raise RuntimeError(error.value.decode())


def described(
    arrivals: Tensor, rows: Tensor, ids: Tensor, head: Tensor, fill: Tensor, new_rows: Tensor, mask: Tensor | None,
    new_ids: Tensor | None, normalize: bool, scales: Tensor | None, new_scales: Tensor | None,
) -> Problem:  # fmt: skip
    """The arguments of the kernel."""
    problem = Problem(arrivals=address(arrivals))
    for name, x in (
        ("rows", rows),
        ("scales", scales),
        ("ids", ids),
        ("head", head),
        ("fill", fill),
        ("new_rows", new_rows),
    ):
        setattr(problem, name, address(x))
    for name, x in (("new_scales", new_scales), ("mask", mask), ("new_ids", new_ids)):
        setattr(problem, name, address(x))
        setattr(problem, name + "_stride", 0 if x is None else x.stride(0))
    problem.size, problem.width = rows.shape
    problem.row_stride, problem.column_stride = new_rows.stride()
    problem.count, problem.normalize, problem.eps = new_rows.shape[0], normalize, 1e-12
    return problem


@pytest.mark.parametrize("size", [0, 1, 7, 64, 3000])
@pytest.mark.parametrize("masked", [False, True])
def test_ring_is_a_ring(writer: Writer, size: int, masked: bool) -> None:
    queue = writer.queue(size, 3)
    for count in (3, 0, 1, 5, 7, 2, 30, 1, 64, 129, 4000):
        mask = torch.rand(count, device=writer.device) < 0.6 if masked else None
        ids = torch.arange(count, device=writer.device) if count % 2 else None
        queue.enqueue(torch.randn(count, 3, device=writer.device), mask, ids)
        queue.check()


@pytest.mark.parametrize("count", [8192, 8193, 30_001])
def test_ring_takes_more_rows_than_blocks_can_be(writer: Writer, count: int) -> None:
    queue = writer.queue(count // 2, 1)
    for _ in range(2):
        queue.enqueue(torch.randn(count, 1, device=writer.device), torch.rand(count, device=writer.device) < 0.8, None)
        queue.check()


@pytest.mark.parametrize("begin", [0, 3, 8])
def test_ring_reads_a_mask_from_any_address(writer: Writer, begin: int) -> None:
    queue = writer.queue(50, 2)
    mask = torch.rand(100, device=writer.device) < 0.5
    for end in (begin + 1, begin + 8, begin + 39, 100):
        queue.enqueue(torch.randn(end - begin, 2, device=writer.device), mask[begin:end], None)
        queue.check()


def test_ring_takes_nothing_when_the_mask_hides_everything(writer: Writer) -> None:
    queue = writer.queue(4, 2)
    queue.enqueue(torch.randn(3, 2, device=writer.device), None, None)
    queue.enqueue(torch.randn(9, 2, device=writer.device), torch.zeros(9, dtype=torch.bool, device=writer.device), None)
    queue.check()
    assert queue.fill.item() == 3


@pytest.mark.parametrize("lead", [0, 1, 3])
@pytest.mark.parametrize("counts", [(30, 30), (30, 11), (11, 30)])  # 4 blocks or 2
def test_two_writes_at_a_time_leave_a_queue_that_works(
    counts: tuple[int, int], lead: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """On two streams, against the rules: which rows stay is open, but no later call may find the queue broken."""
    kernel = library("ring_queue", "emulated", tmp_path_factory)
    assert kernel is not None
    queue = Ring(50, 3)
    new, arrivals = [torch.randn(count, 3) for count in counts], torch.zeros(2, dtype=torch.int32)
    writes = [
        described(arrivals[i:], *queue.state(), rows, None, None, False, None, None) for i, rows in enumerate(new)
    ]
    error = ctypes.create_string_buffer(200)
    assert not kernel.run_together(*(ctypes.byref(write) for write in writes), lead, error, len(error)), error.value
    assert 0 <= queue.head.item() < 50 and max(counts) <= queue.fill.item() <= 50

    before, rows = queue.head.item(), torch.randn(20, 3)
    emulate(kernel, False, *queue.state(), rows, None, None, False)
    assert queue.head.item() == (before + 20) % 50 and max(counts) <= queue.fill.item() <= 50
    assert torch.equal(queue.rows[torch.arange(before, before + 20) % 50], rows)


@pytest.mark.parametrize("fill", [-(2**40), -1, 8, 3 << 48 | 4])
def test_a_write_brings_a_broken_count_back(writer: Writer, fill: int) -> None:
    """As an overlap left it in a checkpoint of an earlier version, whose blocks were counted there."""
    queue = writer.queue(7, 3)
    queue.fill.fill_(fill)
    queue.enqueue(torch.randn(2, 3, device=writer.device), None, None)
    assert queue.fill.item() == (2 if fill < 0 else 7)


@pytest.mark.parametrize("width", [40, 37])
@pytest.mark.parametrize("strided", ["rows", "columns", "rows of an odd length"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("new_dtype", DTYPES)
def test_ring_converts_as_torch_does_and_reads_through_strides(
    writer: Writer, dtype: torch.dtype, new_dtype: torch.dtype, strided: str, width: int
) -> None:
    queue = writer.queue(5, width, dtype)
    if strided == "columns":
        new = torch.randn(width, 14, device=writer.device).to(new_dtype).T[::2]
    else:
        new = torch.randn(14, width + (strided != "rows"), device=writer.device).to(new_dtype)[::2, :width]
    mask = torch.ones(14, dtype=torch.bool, device=writer.device)[::2]
    queue.enqueue(new, mask, torch.arange(14, device=writer.device)[::2])
    queue.check()


@pytest.mark.parametrize("width", [128, 129])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ring_normalises_in_float32(writer: Writer, dtype: torch.dtype, width: int) -> None:
    queue = writer.queue(6, width, dtype)
    new = torch.randn(4, width, device=writer.device).to(dtype)
    new[2] = 0
    writer.write(*queue.state(), new, None, None, True)
    truth = torch.nn.functional.normalize(new.double(), dim=-1, eps=1e-12)
    # one rounding to the queue's dtype, half its epsilon relative, besides those of the float32 norm
    torch.testing.assert_close(queue.rows[:4].double(), truth, rtol=torch.finfo(dtype).eps / 2 + SLACK[dtype], atol=0)
    assert not queue.rows[2].any()


@pytest.mark.parametrize("width", [32, 33])
def test_ring_takes_bytes_with_a_scale_a_row(writer: Writer, width: int) -> None:
    """As a float32 queue takes the same numbers, its scales as one more column."""
    queue, scales = writer.queue(9, width, torch.uint8), torch.ones(9, device=writer.device)
    plain = writer.queue(9, width + 1)
    plain.rows[:, width] = 1
    for count in (4, 3, 30, 7):
        new = torch.randint(0, 256, (count, width), device=writer.device, dtype=torch.uint8)
        new_scales = torch.rand(2 * count, device=writer.device)[::2]
        mask, ids = torch.rand(count, device=writer.device) < 0.7, torch.arange(count, device=writer.device)
        writer.write(*queue.state(), new, mask, ids, False, scales, new_scales)
        writer.write(*plain.state(), torch.cat([new, new_scales[:, None]], 1), mask, ids, False)
        assert torch.equal(torch.cat([queue.rows, scales[:, None]], 1), plain.rows)
        assert all(torch.equal(a, b) for a, b in zip(queue.state()[1:], plain.state()[1:], strict=True))


def test_ring_refuses_bytes_that_no_float8_row_is_made_of() -> None:
    queue, numbers = Ring(4, 3, torch.uint8), torch.rand(2, 3)
    with pytest.raises(RuntimeError, match="or uint8 rows that are not to be normalised, got Byte and Float"):
        ring.enqueue_(*queue.state(), numbers, None, None, False)
    with pytest.raises(RuntimeError, match="scales float32"):
        ring.enqueue_(*queue.state(), numbers.byte(), None, None, False, torch.ones(4))


def test_ring_write_invalidates_what_autograd_saved() -> None:
    queue = Ring(4, 3)
    h = torch.randn(2, 3, requires_grad=True)
    loss = (h @ queue.rows.T).sum()
    ring.enqueue_(*queue.state(), torch.randn(2, 3), None, None, False)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.skipif("cuda" not in available_backends("ring_queue"), reason="needs a GPU and an extension with CUDA")
def test_ring_replays_in_a_cuda_graph() -> None:
    queue, twin = (Ring(7, 3, device="cuda") for _ in range(2))
    new, mask = torch.randn(5, 3, device="cuda"), torch.rand(5, device="cuda") < 0.5
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ring.enqueue_(*queue.state(), new, mask, None, False)
    for _ in range(6):
        new.normal_()
        mask.bernoulli_(0.6)
        graph.replay()
        twin.enqueue(new, mask, None)
    for a, b in zip(queue.state(), twin.state(), strict=True):
        assert torch.equal(a, b)
