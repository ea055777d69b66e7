"""Attention and its distillation in one op: `op.py` is the public face, `reference.py` the formula, the rest the backends."""

from vlkd_kernels.distill_attention.op import distill_attention

__all__ = ["distill_attention"]
