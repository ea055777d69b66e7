"""What the fused operators are measured against: the same thing as one would write it, eager and compiled, what is derived from
FlexAttention, and what other libraries offer, where they are installed.

Every contender is a function of the same tensors that returns a tuple of differentiable outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor
from torch.nn import functional as F

import vlkd_kernels

# One specialised kernel a shape; beyond the limit torch.compile would silently run eagerly.
torch._dynamo.config.recompile_limit = 256
torch._functorch.config.donated_buffer = False  # a backward is timed again and again on one forward

Contender = Callable[..., tuple[Tensor, ...]]
NAMES = {
    "attention_mse": ("vlkd", "vlkd cuda", "eager", "torch.compile", "FlexAttention"),
    "distill_attention": ("vlkd", "attention + attention_mse", "attention alone", "eager"),
    "token_nce": ("vlkd", "vlkd cuda", "eager", "torch.compile", "lightly", "pytorch-metric-learning"),
    "ring_queue": ("vlkd", "copy", "MoCo", "lightly"),
    "region_store": ("vlkd", "memory map", "LMDB", "safetensors", "TSV + JSON + base64"),
    "region_import": ("vlkd", "JSON + base64, nothing written", "bytes alone, nothing written"),
}
LIBRARIES = ("lightly", "pytorch-metric-learning")  # that a contender is named after
GPU_ONLY = ("vlkd cuda", "FlexAttention")  # FlexAttention's log-sum-exp has a gradient there alone


def attention_mse(q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor) -> tuple[Tensor]:
    """Mean square difference of two attention maps, [B, H, L, D] each."""
    p = (q_s @ k_s.mT * q_s.shape[-1] ** -0.5).softmax(-1)
    t = (q_t @ k_t.mT * q_t.shape[-1] ** -0.5).softmax(-1)
    return (F.mse_loss(p, t),)


def attention_mse_from_lse(q_s: Tensor, k_s: Tensor, q_t: Tensor, k_t: Tensor) -> tuple[Tensor]:
    """The same from five log-sum-exps: Σ p² = exp(lse(2s) − 2 lse(s)), Σ p t = exp(lse(s + u) − lse(s) − lse(u)).

    It loses its digits as the student nears its teacher (`vlkd_kernels/attention_mse/README.md`).
    """
    from torch.nn.attention.flex_attention import flex_attention

    def lse(q: Tensor, k: Tensor, scale: float) -> Tensor:
        return flex_attention(q, k, k, scale=scale, return_lse=True)[1]  # type: ignore[index, return-value]

    scale_s, scale_t = q_s.shape[-1] ** -0.5, q_t.shape[-1] ** -0.5
    both_q, both_k = torch.cat([q_s * scale_s, q_t * scale_t], -1), torch.cat([k_s, k_t], -1)
    padding = (0, 128 - both_q.shape[-1])  # to a power of two
    s, t = lse(q_s, k_s, scale_s), lse(q_t, k_t, scale_t)
    pp, tt = lse(q_s, k_s, 2 * scale_s) - 2 * s, lse(q_t, k_t, 2 * scale_t) - 2 * t
    pt = lse(F.pad(both_q, padding), F.pad(both_k, padding), 1.0) - s - t
    return ((pp.exp() - 2 * pt.exp() + tt.exp()).mean() / k_s.shape[-2],)


def distill_attention(q_s: Tensor, k_s: Tensor, v_s: Tensor, q_t: Tensor, k_t: Tensor) -> tuple[Tensor, Tensor]:
    """A student's attention output and the mean square difference of its map to the teacher's."""
    p = (q_s @ k_s.mT * q_s.shape[-1] ** -0.5).softmax(-1)
    t = (q_t @ k_t.mT * q_t.shape[-1] ** -0.5).softmax(-1)
    return p @ v_s, F.mse_loss(p, t)


def attention_and_loss(q_s: Tensor, k_s: Tensor, v_s: Tensor, q_t: Tensor, k_t: Tensor) -> tuple[Tensor, Tensor]:
    """torch's fused attention beside our fused loss."""
    loss: Any = vlkd_kernels.attention_mse(q_s, k_s, q_t, k_t)
    return F.scaled_dot_product_attention(q_s, k_s, v_s), loss


def attention_alone(q_s: Tensor, k_s: Tensor, v_s: Tensor, q_t: Tensor, k_t: Tensor) -> tuple[Tensor]:
    """torch's fused attention, no loss: what the student costs anyway."""
    return (F.scaled_dot_product_attention(q_s, k_s, v_s),)


def token_nce(h_s: Tensor, h_t: Tensor, negatives: Tensor) -> tuple[Tensor]:
    """Cross entropy of each token's teacher against K negatives, h [N, E], negatives [K, E]; temperature 0.07."""
    s, t, q = (F.normalize(x, dim=-1) for x in (h_s, h_t, negatives))
    logits = torch.cat([(s * t).sum(-1, keepdim=True), s @ q.mT], dim=1) / 0.07
    return (F.cross_entropy(logits.float(), logits.new_zeros(len(logits), dtype=torch.long)),)


@functools.cache
def _memory_bank_loss(rows: int, width: int) -> Any:
    from lightly.loss.ntx_ent_loss import NTXentLoss  # type: ignore[import-not-found]

    return NTXentLoss(temperature=0.07, memory_bank_size=(rows, width))


def token_nce_of_lightly(h_s: Tensor, h_t: Tensor, negatives: Tensor) -> tuple[Tensor]:
    """The same from lightly's NTXentLoss, which also writes h_t into its memory bank."""
    loss = _memory_bank_loss(*negatives.shape)
    loss.memory_bank.bank = F.normalize(negatives, dim=-1)
    loss.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.int64, device=negatives.device)
    return (loss(h_s, h_t),)


def token_nce_of_pytorch_metric_learning(h_s: Tensor, h_t: Tensor, negatives: Tensor) -> tuple[Tensor]:
    """The same from pytorch-metric-learning's NTXentLoss, which compares every positive pair with every negative one: N·N·K."""
    from pytorch_metric_learning.losses import NTXentLoss  # type: ignore[import-not-found]

    tokens = torch.arange(len(h_s), device=h_s.device)
    rows = torch.arange(len(negatives), device=h_s.device)
    pairs = (tokens, tokens, tokens.repeat_interleave(len(rows)), len(tokens) + rows.repeat(len(tokens)))
    labels = torch.cat([tokens, torch.full_like(rows, -1)])
    return (NTXentLoss(temperature=0.07)(h_s, tokens, pairs, torch.cat([h_t, negatives]), labels),)


def truth(op: str, name: str) -> Contender:
    """The plain form that a contender's numbers are held to."""
    if name == "attention alone":
        return attention_alone
    return {"attention_mse": attention_mse, "distill_attention": distill_attention, "token_nce": token_nce}[op]


@functools.cache
def contender(op: str, name: str) -> Contender:
    """A contender's function for an op."""
    if name == "vlkd cuda":
        return lambda **tensors: (getattr(vlkd_kernels, op)(**tensors, backend="cuda"),)
    if name == "vlkd":
        function = getattr(vlkd_kernels, op)
        return function if op == "distill_attention" else lambda **tensors: (function(**tensors),)
    if name == "FlexAttention":
        return torch.compile(attention_mse_from_lse, dynamic=False)
    if name == "attention + attention_mse":
        return attention_and_loss
    if name == "lightly":
        return token_nce_of_lightly
    if name == "pytorch-metric-learning":
        return token_nce_of_pytorch_metric_learning
    eager = truth(op, name)
    return torch.compile(eager, dynamic=False) if name == "torch.compile" else eager


def ring_write(
    name: str, size: int, rows: Tensor, mask: Tensor | None
) -> tuple[Callable[[], object], Callable[[], Tensor]]:
    """A contender's write of the same rows [N, E] into a queue of `size`, and what reads its rows [size, E].

    "MoCo" and "lightly" know no mask, normalise before they write, and ask the device where to. "copy" copies as many rows as
    are written, as they are.
    """
    width = rows.shape[1]
    if name == "vlkd":
        queue = vlkd_kernels.RingQueue(width, size, dtype=rows.dtype, device=rows.device)
        return lambda: queue.enqueue_(rows, mask), lambda: queue.rows
    if name == "copy":
        source = rows[: len(rows) if mask is None else int(mask.sum())]
        target = torch.empty_like(source)
        return lambda: target.copy_(source), lambda: F.normalize(target, dim=-1)
    if name == "lightly":
        from lightly.models.modules.memory_bank import MemoryBankModule  # type: ignore[import-not-found]

        bank = MemoryBankModule((size, width)).to(rows.device, rows.dtype)
        return lambda: bank._dequeue_and_enqueue(F.normalize(rows, dim=-1)), lambda: bank.bank
    keys, pointer = rows.new_zeros(width, size), torch.zeros(1, dtype=torch.long, device=rows.device)

    def write() -> None:
        """MoCo's `_dequeue_and_enqueue`: the queue lies the other way round."""
        begin = int(pointer)
        keys[:, begin : begin + len(rows)] = F.normalize(rows, dim=-1).T
        pointer[0] = (begin + len(rows)) % size

    return write, lambda: keys.T
