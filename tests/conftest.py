"""Before any test module is imported: without a GPU, Triton runs its interpreter.

Triton reads the variable when its own library is imported, which any test module may cause; so it is set here, for the
whole run, and taken out again for the subprocesses that compile or that stand for a user's own command.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
