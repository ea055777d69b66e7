"""Distance between two attention maps: `op.py` is the public face, `reference.py` the formula, the rest the backends."""

from vlkd_kernels.attention_mse.op import attention_mse

__all__ = ["attention_mse"]
