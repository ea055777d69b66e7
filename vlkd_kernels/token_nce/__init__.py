"""Token-wise noise-contrastive loss: `op.py` is the public face, `reference.py` the formula, the rest the backends."""

from vlkd_kernels.token_nce.op import TokenNCEStats, token_nce

__all__ = ["TokenNCEStats", "token_nce"]
