"""`distill_attention` in Triton: flash attention whose backward also carries the loss of the maps; no map ever in memory.

Launches of the kernels in `kernels.py`, and the operators that torch.compile sees.

Shapes: B batch, H heads, L queries, M keys, D head width.
"""

# Triton gives a launch the signature of its kernel, which is not that of a launch.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from vlkd_kernels.distill_attention.kernels import forward_kernel, keys_kernel, queries_kernel
from vlkd_kernels.fused_loss import NO_SECOND_DERIVATIVE
from vlkd_kernels.triton_attention import LOG2_E, MAX_REGISTERS, TileConfig, mask_kind, padded, strided


def tile_config(kernel: str, dtype: torch.dtype, width: int) -> TileConfig:
    """The default tile of the "forward", "queries" or "keys" kernel for a dtype and the widest of the head widths.

    The largest that spill nothing on sm_80, sm_90 and sm_100; `benchmarks/static_table.json` has the registers.
    """
    if dtype == torch.float32:
        if kernel == "queries" and width <= 64:
            return TileConfig(32, 16, 32, 4, 1)
        return TileConfig(16, 16, 32, 8 if kernel == "forward" and width > 128 else 4, 1)
    if kernel == "keys" and width > 64:
        return TileConfig(64, 16, 64, 8, 1)
    return TileConfig(64, 32, 64, 8, 1) if width <= 128 else TileConfig(64, 16, 32, 8, 1)


def launch(
    q_s: Tensor,
    k_s: Tensor,
    v_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    lse_t: Tensor | None,
    attn_mask: Tensor | None,
    query_mask: Tensor | None,
    seed: Tensor | None,
    scale_s: float,
    scale_t: float,
    dropout_p: float,
    is_causal: bool,
    distance: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, loss sum, count and the four numbers of every row that the backward needs, [4, B, H, L]."""
    out = q_s.new_empty(*q_s.shape[:3], v_s.shape[3])
    row_loss = torch.empty(q_s.shape[:3], dtype=torch.float32, device=q_s.device)
    row_stats = torch.empty(4, *q_s.shape[:3], dtype=torch.float32, device=q_s.device)
    tensors, strides, shape, flags = _common(q_s, k_s, v_s, q_t, k_t, attn_mask, seed, is_causal, distance)
    batch, heads, queries = q_s.shape[:3]
    query = (q_s, (0,) * 2) if query_mask is None else strided(query_mask, (batch, queries))
    lse = (row_loss, (0,) * 3) if lse_t is None else (lse_t, lse_t.stride())
    options = _options("forward", q_s, v_s, q_t)
    del options["BLOCK_DV"], flags["WIDTH"]
    tiles = triton.cdiv(queries, options["BLOCK_L"])
    with torch.cuda.device_of(q_s):
        forward_kernel[(batch * heads * tiles,)](
            *tensors[:6], query[0], lse[0], tensors[6], out, row_loss, row_stats,
            *strides, *lse[1], *query[1], *shape, tiles, scale_s * LOG2_E, scale_t * LOG2_E, dropout_p, row_loss.numel(),
            HAS_QUERY_MASK=query_mask is not None, HAS_LSE=lse_t is not None, **flags, **options,
        )  # fmt: skip
    return out, row_loss.sum(), (row_stats[0] > 0).sum().float(), row_stats


def launch_backward(
    grad_out: Tensor,
    grad_loss: Tensor,
    out: Tensor,
    row_stats: Tensor,
    q_s: Tensor,
    k_s: Tensor,
    v_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    attn_mask: Tensor | None,
    seed: Tensor | None,
    scale_s: float,
    scale_t: float,
    dropout_p: float,
    is_causal: bool,
    distance: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q_s, k_s and v_s, in their dtype."""
    grad_out = grad_out.to(q_s.dtype)
    weight, delta = row_stats[0], row_stats[3]
    nothing = grad_out == 0  # of an output that nobody takes, which may be no number
    along_out = (grad_out.float() * out.float()).masked_fill(nothing, 0).sum(-1)
    coefficient = weight * grad_loss if distance == "kl" else 2 * weight * grad_loss
    use = torch.where(~nothing.all(-1), 2.0, (coefficient != 0).float())
    total = along_out if distance == "kl" else along_out + coefficient * delta
    row_terms = torch.stack([coefficient, total, use])
    grads = _empty_gradients(q_s, k_s, v_s)
    tensors, strides, shape, flags = _common(q_s, k_s, v_s, q_t, k_t, attn_mask, seed, is_causal, distance)
    batch, heads, queries = q_s.shape[:3]
    arguments = (*tensors[:6], grad_out, tensors[6], row_stats, row_terms)
    numbers = (scale_s * LOG2_E, scale_t * LOG2_E, scale_s, dropout_p, weight.numel())
    with torch.cuda.device_of(q_s):
        options = _options("queries", q_s, v_s, q_t)
        tiles = triton.cdiv(queries, options["BLOCK_L"])
        rows_flags = {name: value for name, value in flags.items() if name != "WIDTH_V"}
        queries_kernel[(batch * heads * tiles,)](
            *arguments, grads[0], *strides, *grad_out.stride(), *shape, tiles, *numbers, **rows_flags, **options
        )
        options = _options("keys", q_s, v_s, q_t)
        tiles = triton.cdiv(k_s.shape[2], options["BLOCK_M"])
        keys_kernel[(batch * k_s.shape[1] * tiles,)](
            *arguments, grads[1], grads[2], *strides, *grad_out.stride(), *shape, tiles, *numbers, **flags, **options
        )
    return grads


def _empty_gradients(q_s: Tensor, k_s: Tensor, v_s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_s, k_s, v_s))
    return grad_q, grad_k, grad_v


def _common(
    q_s: Tensor, k_s: Tensor, v_s: Tensor, q_t: Tensor, k_t: Tensor, attn_mask: Tensor | None, seed: Tensor | None,
    is_causal: bool, distance: str,
) -> tuple[tuple[Tensor, ...], tuple[int, ...], tuple[int, ...], dict[str, Any]]:  # fmt: skip
    """What all three kernels take: tensors (queries, keys, values, mask, seed), strides, shape and flags."""
    batch, heads, queries, width_s = q_s.shape
    keys = k_s.shape[2]
    mask = (q_s, (0,) * 4) if attn_mask is None else strided(attn_mask, (batch, heads, queries, keys))
    tensors = (q_s, k_s, v_s, q_t, k_t, mask[0], q_s if seed is None else seed)
    strides = tuple(stride for x in tensors[:5] for stride in x.stride()) + tuple(mask[1])
    flags = {
        "D_S": width_s,
        "D_T": q_t.shape[3],
        "D_V": v_s.shape[3],
        "WIDTH": padded(width_s),
        "WIDTH_V": padded(v_s.shape[3]),
        "MASK": mask_kind(attn_mask),
        "HAS_DROPOUT": seed is not None,
        "IS_CAUSAL": is_causal,
        "KL": distance == "kl",
    }
    return tensors, strides, (heads, heads // k_s.shape[1], heads // k_t.shape[1], queries, keys), flags


def _options(kernel: str, q_s: Tensor, v_s: Tensor, q_t: Tensor) -> dict[str, int]:
    """A kernel's tile as the arguments of its launch."""
    widths = {"BLOCK_DS": q_s.shape[3], "BLOCK_DT": q_t.shape[3], "BLOCK_DV": v_s.shape[3]}
    config = tile_config(kernel, q_s.dtype, max(widths.values()))
    return {name: min(padded(width), config.block_d) for name, width in widths.items()} | {
        "BLOCK_L": config.block_l,
        "BLOCK_M": config.block_m,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "maxnreg": MAX_REGISTERS,
    }


_forward = torch.library.custom_op("vlkd_triton::distill_attention", launch, mutates_args=())
_backward = torch.library.custom_op("vlkd_triton::distill_attention_backward", launch_backward, mutates_args=())


@_forward.register_fake
def _(q_s, k_s, v_s, q_t, k_t, lse_t, attn_mask, query_mask, seed, scale_s, scale_t, dropout_p, is_causal, distance):
    scalar = q_s.new_empty((), dtype=torch.float32)
    row_stats = q_s.new_empty(4, *q_s.shape[:3], dtype=torch.float32)
    return q_s.new_empty(*q_s.shape[:3], v_s.shape[3]), scalar, torch.empty_like(scalar), row_stats


@_backward.register_fake
def _(grad_out, grad_loss, out, row_stats, q_s, k_s, v_s, *_rest):
    return _empty_gradients(q_s, k_s, v_s)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q_s, k_s, v_s, q_t, k_t, _, attn_mask, _, seed, *numbers = inputs
    out, _, _, row_stats = output
    ctx.save_for_backward(out, row_stats, q_s, k_s, v_s, q_t, k_t, attn_mask, seed)
    ctx.numbers = numbers


def _differentiate(ctx: Any, grad_out: Tensor, grad_loss: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
    out, row_stats, *tensors = ctx.saved_tensors
    grads = _backward(grad_out, grad_loss, out, row_stats, *tensors, *ctx.numbers)
    return (*grads, *(None for _ in range(11)))


def _refuse(*_: object) -> None:
    raise RuntimeError(NO_SECOND_DERIVATIVE)


_backward.register_autograd(_refuse)
_forward.register_autograd(_differentiate, setup_context=_keep_for_backward)


def _savable(x: Any) -> Any:
    """What autograd saves for the backward; it does not take tensors that were made in inference mode, as a teacher's may be."""
    wanted = isinstance(x, Tensor) and not torch.compiler.is_compiling() and torch.is_grad_enabled()
    return x.clone() if wanted and x.is_inference() else x


def forward(
    q_s: Tensor,
    k_s: Tensor,
    v_s: Tensor,
    q_t: Tensor,
    k_t: Tensor,
    dropout_p: float,
    scale_s: float,
    scale_t: float,
    attn_mask: Tensor | None,
    query_mask: Tensor | None,
    is_causal: bool,
    distance: str,
    lse_t: Tensor | None,
    return_lse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Output, loss sum, count, and the student's log-sum-exp if it is wanted."""
    q_t, k_t, attn_mask = (_savable(x) for x in (q_t, k_t, attn_mask))
    # The seed stays on the device and comes from its generator, so that a CUDA graph draws anew at every replay.
    seed = torch.randint(2**62, (1,), device=q_s.device) if dropout_p > 0 else None
    out, loss, count, row_stats = _forward(
        q_s, k_s, v_s, q_t, k_t, lse_t, attn_mask, query_mask, seed, scale_s, scale_t, dropout_p, is_causal, distance
    )
    lse = row_stats[1].detach() * (1 / LOG2_E) if return_lse else None
    return out, loss, count.detach(), lse
