"""A ring of rows on the device: `queue.py` is the module, `reference.py` the write in plain PyTorch."""

from vlkd_kernels.ring_queue.queue import RingQueue

__all__ = ["RingQueue"]
