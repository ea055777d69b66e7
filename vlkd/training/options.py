"""What the recipe's section ``training`` asks of the machine, and what it switches on in a model."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import torch
from transformers import PreTrainedModel
from transformers.models.bert.modeling_bert import BertLayer

from vlkd.errors import VlkdError
from vlkd.recipes import Training
from vlkd.training.sharding import require_sharding


def require_options(training: Training) -> None:
    """Refuse what this machine cannot do. A missing TensorBoard is no mistake: its events are left out.

    Raises:
        VlkdError: a precision, sharding, a compiler or the package of a tracker that is not to be had here.
    """
    require_sharding(training)
    gpu = torch.cuda.is_available()
    if training.precision == "fp16" and not gpu:
        raise VlkdError("training.precision is fp16, which needs a GPU, and there is none: choose bf16 or fp32.")
    if training.precision == "bf16" and gpu and not torch.cuda.is_bf16_supported():
        raise VlkdError("training.precision is bf16, which this GPU does not compute in: choose fp16 or fp32.")
    if training.compile and not (find_spec("triton") if gpu else shutil.which(os.environ.get("CXX", "g++"))):
        lacking = "triton is not installed" if gpu else "there is no C++ compiler (g++, or what CXX names)"
        raise VlkdError(f"training.compile needs what torch.compile does, but {lacking}: install it, or leave it out.")
    for name in training.trackers:
        if name != "tensorboard" and find_spec(name) is None:
            raise VlkdError(
                f"training.trackers names '{name}', but the package '{name}' is not installed: run `pip install {name}`, or "
                "take the name out."
            )


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let every layer of a model in training keep its input alone and recompute the rest, dropout too, in the backward."""
    # "activation" is what newer versions of transformers 5 call it
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def compile_layers(model: PreTrainedModel) -> None:
    """Compile a model's layers in place, one by one: layers of one shape share their code.

    Of the last layer only what follows its attention is compiled: its queries and keys are captured and its input is what the
    ledger differentiates for, and both must be the tensors that the losses are computed from.
    """
    *layers, last = (module for module in model.modules() if isinstance(module, BertLayer))
    for module in (*layers, last.attention.output, last.intermediate, last.output):
        module.compile()
