"""A queue that several processes write together."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import fresh_process
import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from vlkd_kernels import RingQueue

SIZE, ROWS, WIDTH, STEPS = 11, 6, 8, 5  # of the queue; of a process and step
DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed"),
]


def drawn(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, mask and ids of one process at one step; the last rank writes nothing at step 1, all it has at step 2."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    mask = torch.rand(2, ROWS // 2, generator=generator) < 0.2 + 0.3 * rank
    mask = torch.full_like(mask, step == 2) if rank > 0 and step in (1, 2) else mask
    rows = torch.randn(2, ROWS // 2, WIDTH, generator=generator)
    return rows, mask, torch.arange(ROWS).view(2, -1) + 100 * rank


def process(rank: int, port: int, processes: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    dist.init_process_group("gloo", rank=rank, world_size=processes)
    for dtype in DTYPES:
        queue = RingQueue(WIDTH, SIZE, dtype=dtype)
        for step in range(STEPS):
            rows, mask, ids = drawn(step, rank)
            queue.enqueue_(rows, mask=mask, ids=ids, group=dist.group.WORLD)
        queue.enqueue_(rows[0], group=dist.group.WORLD)  # every row, without an id
        torch.save(queue.state_dict(), folder / f"{dtype}-{rank}")
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [2, 3])
def test_every_process_has_the_queue_that_one_would_have(processes: int, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [fresh_process.start(process, rank, port, processes, tmp_path) for rank in range(processes)]
    for finished in [one.end() for one in started]:
        assert finished.returncode == 0, finished.stderr
    for dtype in DTYPES:
        normalize = dtype == torch.float8_e4m3fn  # whose scales also say that a row has length 1
        alone = RingQueue(WIDTH, SIZE, dtype=dtype, normalize=normalize)
        for step in range(STEPS):
            rows, mask, ids = (
                torch.cat(parts) for parts in zip(*(drawn(step, r) for r in range(processes)), strict=True)
            )
            alone.enqueue_(rows if normalize else F.normalize(rows, dim=-1), mask=mask, ids=ids)
        rows = torch.cat([drawn(STEPS - 1, r)[0][0] for r in range(processes)])
        alone.enqueue_(rows if normalize else F.normalize(rows, dim=-1))
        # Of a queue that normalises its rows itself; this one was given such rows, so that their last bits are the same.
        expected = alone.state_dict() | {"normalized": torch.tensor(True)}
        for rank in range(processes):
            found = torch.load(tmp_path / f"{dtype}-{rank}", weights_only=True)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert torch.equal(found[name], value), (dtype, rank, name)
