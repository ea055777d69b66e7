"""`RingQueue`: the last K rows that were written, all of its state on the device and in the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlkd_kernels import backends, checks
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

    On a GPU the stream orders what reads and writes a queue. Calls on different streams are the caller's to order (events, or
    `wait_stream`): two writes that overlap leave rows, ids and head of either, and a read beside a write may see half of it. The queue
    stays usable, and nothing outside it is read or written.

    With several processes, each may have a queue of its rows alone, or, with `group` in every write, all of them the same
    queue: W times as many rows a step, the same bits on every rank, and a checkpoint that any number of processes can load.

    Shapes: K rows (`size`), E width (`dim`).

    `dtype` may be torch.float8_e4m3fn, half the memory of bfloat16. Then every row has a separate
    factor, `values` gives the rows, and they are off by about 2.6 % of their length.

    A queue that is cast, or whose module is, such as by `.half()` or `.double()`, converts its rows as any buffer; float8 rows
    stay in float8. `load_state_dict` takes the state of a queue with the same dim, size, dtype and normalize.

    Attributes:
        rows: [K, E] of `dtype`, for float8 its bits as uint8; rows that are not filled yet are 0.
        scales: float32 [K], what each row is to be multiplied by, for float8; None for other dtypes.
        ids: int64 [K]; -1 equals nothing.
        head: int64 scalar, the slot that is written next.
        fill: int64 scalar, how many rows are filled.
        normalize: whether rows are L2-normalised when they are written.
        normalized: the same as a bool scalar, for the state.
    """

    rows: Tensor
    scales: Tensor | None
    ids: Tensor
    head: Tensor
    fill: Tensor
    normalized: Tensor

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
        self.register_buffer("normalized", torch.tensor(normalize, device=device))

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
            from vlkd_kernels.ring_queue.reference import normalized

            # every row is normalised and rounded by the rank that has it, so that the others get these very bits
            if normalize:
                rows, normalize = normalized(rows), False
            rows = gathered(rows.to(self.rows.dtype), group)
            scales, mask, ids = (None if x is None else gathered(x, group) for x in (scales, mask, ids))
        if chosen == "reference":
            from vlkd_kernels.ring_queue.reference import enqueue_
        else:
            from vlkd_kernels.ring_queue.native import enqueue_
        enqueue_(self.rows, self.ids, self.head, self.fill, rows, mask, ids, normalize, self.scales, scales)

    def extra_repr(self) -> str:
        return _described(self.rows, self.normalize)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RingQueue:
        """What `.half()`, `.to(...)` and their like do: nothing but move the rows and scales of float8."""
        if self.scales is None:
            return super()._apply(_checked(fn), recurse)
        scales, self.scales = self.scales, None
        try:
            super()._apply(fn, recurse)
        finally:
            self.scales = scales
        self.scales = fn(scales.view(torch.int32)).view(torch.float32)  # which no cast changes
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """As any module, but it takes nothing from another kind of queue, where torch would convert it or mix the two."""
        rows, normalized = (state_dict.get(prefix + name) for name in ("rows", "normalized"))
        if normalized is None:  # of a version that did not write it
            normalized = self.normalized
            state_dict = {**state_dict, prefix + "normalized": normalized}
        if isinstance(rows, Tensor) and rows.ndim == 2:
            theirs, own = _described(rows, bool(normalized)), _described(self.rows, self.normalize)
            if theirs != own:
                error_msgs.append(
                    f"the state is that of a RingQueue({theirs}), but this one is RingQueue({own}); make it as that one was."
                )
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )  # type: ignore[misc]

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


def _described(rows: Tensor, normalize: bool) -> str:
    """The arguments that make a queue of such rows; those of float8 are kept as uint8."""
    size, dim = rows.shape
    dtype = float8.DTYPE if rows.dtype == torch.uint8 else rows.dtype
    return f"dim={dim}, size={size}, dtype={dtype}, normalize={normalize}"


def _checked(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A change of a queue's buffers, which may not leave its rows in eight bits without their scales."""

    def change(x: Tensor) -> Tensor:
        changed = fn(x)
        if x.is_floating_point() and (not changed.is_floating_point() or changed.dtype.itemsize < 2):
            raise TypeError(
                f"RingQueue: a queue of {x.dtype} cannot be cast to {changed.dtype}; make one with "
                "dtype=torch.float8_e4m3fn and write the rows again."
            )
        return changed

    return change
