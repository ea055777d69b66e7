"""`attention_mse` in Triton: launches of the kernels in `kernels.py`, and the operator that torch.compile sees.

Shapes: B batch, H heads, L queries, M keys, D head width.
"""

# Triton gives a launch the signature of its kernel, which is not that of a launch.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from vlkd_kernels.attention_mse.kernels import head_kernel, keys_kernel, rows_kernel
from vlkd_kernels.fused_loss import reduced
from vlkd_kernels.triton_attention import LOG2_E, MAX_REGISTERS, Gpu, TileConfig, gpu, mask_kind, padded, strided


def head_config(dtype: torch.dtype, keys: int, width: int, gpu: Gpu) -> TileConfig | None:
    """The tile of `head_kernel` for a dtype, a number of keys, the wider of the two head widths and a GPU.

    None where a head fits no tile without spilling (`benchmarks/static_table.json`), or not the shared memory of a block.
    Products of sm_90 and sm_100 read it; on sm_80, sm_120 and their like the compiler holds both sides' keys in registers
    throughout. float32 products take no matrix instructions.
    """
    if dtype == torch.float32 or gpu.capability[0] not in (9, 10):
        return None
    if keys > 256 or width > (128 if keys <= 128 else 64) or head_shared_bytes(dtype, keys, width) > gpu.shared_memory:
        return None
    return TileConfig(16, padded(keys), padded(width), 4 if keys <= 64 else 8, 1)


def head_shared_bytes(dtype: torch.dtype, keys: int, width: int) -> int:
    """The most shared memory that a block of `head_kernel` takes: both sides' keys, tiles of queries and of the gradient.

    The student's keys and the queries lie there once more for the products with the gradient, which float16 takes in float32.
    """
    keys, width, weight = padded(keys), padded(width), 4 if dtype == torch.float16 else 2
    return keys * width * (2 + 2 + weight) + 16 * (keys + 3 * width) * weight + 64  # and a few barriers


def tile_config(dtype: torch.dtype, width: int) -> TileConfig:
    """The tile of `rows_kernel` and `keys_kernel` for a dtype and the wider of the two head widths.

    The largest that spill nothing on sm_80, sm_90 and sm_100; `benchmarks/static_table.json` has the registers.
    """
    if dtype == torch.float32:
        return TileConfig(16, 32, 32, 8 if width <= 32 else 4, 1) if width <= 64 else TileConfig(16, 16, 32, 4, 1)
    if width <= 64:
        return TileConfig(64, 64, 64, 8, 2)
    return TileConfig(64, 64, 64, 8, 1) if width <= 128 else TileConfig(64, 32, 32, 8, 1)


def launch(
    q_s: Tensor,
    k_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    scale_s: float,
    scale_t: float,
    attn_mask: Tensor | None,
    query_mask: Tensor | None,
    is_causal: bool,
    distance: str,
    mean: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, count, scale and gradients, as `reference.forward` gives them."""
    batch, heads, queries, width_s = q_s.shape
    key_heads, keys, width_t = k_s.shape[1], k_s.shape[2], q_t.shape[3]
    float32 = {"dtype": torch.float32, "device": q_s.device}
    grad_q = torch.empty(q_s.shape if with_grad else 0, **float32)
    grad_k = torch.empty(k_s.shape if with_grad else 0, **float32)
    mask = (q_s, (0,) * 4) if attn_mask is None else strided(attn_mask, (batch, heads, queries, keys))
    query = (q_s, (0,) * 2) if query_mask is None else strided(query_mask, (batch, queries))
    inputs = (q_s, k_s, q_t, k_t, mask[0])
    strides = (*q_s.stride(), *k_s.stride(), *q_t.stride(), *k_t.stride(), *mask[1])
    shape = (heads, heads // key_heads, heads // k_t.shape[1], queries, keys)
    scales = (scale_s * LOG2_E, scale_t * LOG2_E, scale_s)
    flags = {
        "D_S": width_s,
        "D_T": width_t,
        "MASK": mask_kind(attn_mask),
        "IS_CAUSAL": is_causal,
        "KL": distance == "kl",
    }
    rows_flags = {"HAS_QUERY_MASK": query_mask is not None, "WITH_GRAD": with_grad}
    config = head_config(q_s.dtype, keys, max(width_s, width_t), gpu(q_s.device))
    if config is not None:
        loss, count = (torch.empty(batch * key_heads, **float32) for _ in range(2))
        with torch.cuda.device_of(q_s):
            head_kernel[(batch * key_heads,)](
                *inputs, query[0], loss, count, grad_q, grad_k, *strides, *query[1], *shape, *scales,
                RELOAD_T=shape[2] % shape[1] != 0, **rows_flags, **flags, **_options(config, width_s, width_t),
            )  # fmt: skip
        return *reduced(loss.sum(), count.sum(), mean), grad_q, grad_k

    loss = torch.empty(batch, heads, queries, **float32)
    stats = torch.empty(4 if with_grad else 1, batch, heads, queries, **float32)
    flags["WIDTH"] = padded(width_s)
    with torch.cuda.device_of(q_s):
        config = tile_config(q_s.dtype, max(width_s, width_t))
        tiles = triton.cdiv(queries, config.block_l)
        rows_kernel[(batch * heads * tiles,)](
            *inputs, query[0], loss, stats, grad_q, *strides, *query[1], *shape, tiles, *scales, loss.numel(),
            **rows_flags, **flags, **_options(config, width_s, width_t),
        )  # fmt: skip
        if with_grad:
            tiles = triton.cdiv(keys, config.block_m)
            keys_kernel[(batch * key_heads * tiles,)](
                *inputs, stats, grad_k, *strides, *shape, tiles, *scales, loss.numel(),
                **flags, **_options(config, width_s, width_t),
            )  # fmt: skip
    return *reduced(loss.sum(), (stats[0] > 0).sum().float(), mean), grad_q, grad_k


forward = torch.library.custom_op("vlkd_triton::attention_mse", launch, mutates_args=())


@forward.register_fake
def _(q_s, k_s, q_t, k_t, scale_s, scale_t, attn_mask, query_mask, is_causal, distance, mean, with_grad):
    loss, count, scale = (q_s.new_empty((), dtype=torch.float32) for _ in range(3))
    grad_q = q_s.new_empty(q_s.shape if with_grad else 0, dtype=torch.float32)
    grad_k = k_s.new_empty(k_s.shape if with_grad else 0, dtype=torch.float32)
    return loss, count, scale, grad_q, grad_k


def _options(config: TileConfig, width_s: int, width_t: int) -> dict[str, Any]:
    """A tile as the arguments of a launch."""
    return {
        "BLOCK_DS": min(padded(width_s), config.block_d),
        "BLOCK_DT": min(padded(width_t), config.block_d),
        "BLOCK_L": config.block_l,
        "BLOCK_M": config.block_m,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "maxnreg": MAX_REGISTERS,
    }
