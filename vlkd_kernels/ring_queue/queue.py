"""`RingQueue`: the last K rows that were written, all of its state on the device and in the checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlkd_kernels import backends, checks
from vlkd_kernels.dtypes import accumulator
from vlkd_kernels.ring_queue import float8

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_OP = "RingQueue.enqueue_"


class RingQueue(nn.Module):
    """A ring buffer of rows, each with an id, that is written and read without a question to the device.

    Every part of its state is a persistent buffer, so that a checkpoint restores it exactly. No buffer is a parameter and
    no gradient flows through it. Keep it outside a module that DistributedDataParallel wraps, and write it once per
    optimizer step, after the last backward: between a forward and its backward, recomputation under activation
    checkpointing would see other rows.

    With several processes, each may have a queue of its own rows, or, with `group` in every write, all of them the same
    queue: W times as many rows a step, the same bits on every rank, and a checkpoint that any number of processes can load.

    Shapes: K rows (`size`), E width (`dim`).

    `dtype` may be torch.float8_e4m3fn, half the memory of bfloat16: then every row has a factor
    of its own, `values` gives the rows, and they are off by about 2.6 % of their length.

    Attributes:
        rows: [K, E] of `dtype`, for float8 its bits as uint8; rows that are not filled yet are 0.
        scales: float32 [K], what each row is to be multiplied by, for float8; None for other dtypes.
        ids: int64 [K]; -1 equals nothing.
        head: int64 scalar, the slot that is written next.
        fill: int64 scalar, how many rows are filled.
        normalize: whether rows are L2-normalised when they are written.
    """

    rows: Tensor
    scales: Tensor | None
    ids: Tensor
    head: Tensor
    fill: Tensor

    def __init__(
        self,
        dim: int,
        size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        for name, value, least in (("dim", dim, 1), ("size", size, 0)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"RingQueue: {name} must be an integer, got {type(value).__name__}.")
            if value < least:
                raise ValueError(f"RingQueue: {name} must be at least {least}, got {value}.")
        if not dtype.is_floating_point or (dtype.itemsize < 2 and dtype != float8.DTYPE):
            raise TypeError(
                "RingQueue: dtype must be a floating-point dtype of 16 bits or more, or float8_e4m3fn, "
                f"got {str(dtype).removeprefix('torch.')}."
            )
        self.normalize = normalize
        kept = torch.uint8 if dtype == float8.DTYPE else dtype
        self.register_buffer("rows", torch.zeros(size, dim, dtype=kept, device=device))
        scales = torch.ones(size, device=device) if dtype == float8.DTYPE else None
        self.register_buffer("scales", scales)
        self.register_buffer("ids", torch.full((size,), -1, dtype=torch.int64, device=device))
        self.register_buffer("head", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("fill", torch.zeros((), dtype=torch.int64, device=device))

    @property
    def dtype(self) -> torch.dtype:
        """What the rows' numbers are kept in."""
        return self.rows.dtype if self.scales is None else float8.DTYPE

    @property
    def valid(self) -> Tensor:
        """Which rows are filled: bool [K], on the device."""
        return torch.arange(self.rows.shape[0], device=self.rows.device) < self.fill

    def values(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The rows as numbers [K, E]: `rows` as they are, or float8 rows times their scales in `dtype`."""
        return self.rows if self.scales is None else float8.dequantized(self.rows, self.scales, dtype)

    @torch.no_grad()
    def enqueue_(
        self,
        rows: Tensor,
        mask: Tensor | None = None,
        ids: Tensor | None = None,
        *,
        group: ProcessGroup | None = None,
        backend: str | None = None,
    ) -> None:
        """Write rows in order, over the oldest ones; of more than K, the last K stay.

        Args:
            rows: [..., E], any floating-point dtype of 16 bits or more; converted to the queue's.
            mask: bool [...]; only rows where it is True are written.
            ids: int64 [...], the id of each row; -1, which equals nothing, if left out.
            group: every rank of this group makes the same call with tensors of the same shapes (masks may differ), and
                writes the rows of all of them, in the order of the ranks: those of rank 0 first.
            backend: "reference", "cpu" or "cuda"; None picks.

        Raises:
            ValueError, TypeError: an argument of the wrong shape, dtype or device.
            BackendError: the named backend cannot run here.
        """
        self._check(rows, mask, ids)
        chosen = backends.choose("ring_queue", backend, self.rows.device.type, self.dtype)
        rows = rows.flatten(0, -2)
        mask = mask.flatten().contiguous() if mask is not None else None
        ids = ids.flatten().contiguous() if ids is not None else None
        normalize, scales = self.normalize, None
        if self.scales is not None:
            (rows, scales), normalize = float8.quantized(rows, normalize), False
        if group is not None:
            from vlkd_kernels.ring_queue.gather import gathered

            # every row is normalised and rounded by the rank that has it, so that the others get these very bits
            if normalize:
                rows, normalize = F.normalize(rows.to(accumulator(rows.dtype)), dim=-1, eps=1e-12), False
            rows = gathered(rows.to(self.rows.dtype), group)
            scales, mask, ids = (None if x is None else gathered(x, group) for x in (scales, mask, ids))
        if chosen == "reference":
            from vlkd_kernels.ring_queue.reference import enqueue_
        else:
            from vlkd_kernels.ring_queue.native import enqueue_
        enqueue_(self.rows, self.ids, self.head, self.fill, rows, mask, ids, normalize, self.scales, scales)

    def extra_repr(self) -> str:
        size, dim = self.rows.shape
        return f"dim={dim}, size={size}, dtype={self.dtype}, normalize={self.normalize}"

    def _check(self, rows: Tensor, mask: Tensor | None, ids: Tensor | None) -> None:
        checks.check_float_tensors(_OP, {"rows": rows})
        checks.check_device(_OP, "rows", rows, "the queue", self.rows)
        dim = self.rows.shape[1]
        if rows.ndim < 2 or rows.shape[-1] != dim:
            raise ValueError(f"{_OP}: rows must have shape [..., E] with E = {dim}, got {checks.shape_of(rows)}.")
        for name, x, dtype in (("mask", mask, torch.bool), ("ids", ids, torch.int64)):
            if x is not None:
                checks.check_dtype(_OP, name, x, dtype)
                checks.check_device(_OP, name, x, "the queue", self.rows)
                checks.check_shape(_OP, name, x, rows.shape[:-1], "that of rows without E")
