"""Fused losses for knowledge distillation: one forward gives the loss and its gradient.

Each op is a folder: `op.py` (the public function), `reference.py` (the formula in plain PyTorch), `triton.py`, `native.py`
(the compiled extension) and a README with the derivation.
"""

from vlkd_kernels.attention_map import attention_map
from vlkd_kernels.attention_mse import attention_mse
from vlkd_kernels.backends import BackendError, available_backends, explain_backend
from vlkd_kernels.distill_attention import distill_attention
from vlkd_kernels.extension import build_info
from vlkd_kernels.ring_queue import RingQueue
from vlkd_kernels.token_nce import TokenNCEStats, token_nce

__all__ = [
    "BackendError",
    "RingQueue",
    "TokenNCEStats",
    "attention_map",
    "attention_mse",
    "available_backends",
    "build_info",
    "distill_attention",
    "explain_backend",
    "token_nce",
]
