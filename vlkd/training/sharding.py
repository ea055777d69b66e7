"""FSDP2: weights, gradients and AdamW's moments split among the GPUs, each layer gathered while it computes."""

from __future__ import annotations

import os
import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import TrainingArguments

from vlkd.errors import VlkdError
from vlkd.models.encoder import VLLayer
from vlkd.recipes import Training

_LAYER = VLLayer.__name__


def require_sharding(training: Training) -> None:
    """Refuse sharding where there is nothing to shard over, and accelerate's own switch for it.

    Raises:
        VlkdError: there is one process, or no GPU; or ``accelerate launch`` asks for FSDP and the recipe does not.
    """
    if training.sharded:
        if not torch.cuda.is_available():
            raise VlkdError("training.sharded splits the model among GPUs, and there is none: leave it out.")
        if int(os.environ.get("WORLD_SIZE", 1)) < 2:
            raise VlkdError(
                "training.sharded splits the model among processes, but this is the only one: start several with "
                "`torchrun --nproc-per-node 8 -m vlkd.cli …`, or leave it out."
            )
    elif os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise VlkdError(
            "accelerate's configuration asks for FSDP, but the recipe does not: set training.sharded=true, which says all "
            "that FSDP has to know, or choose another configuration."
        )


def sharding_options(training: Training) -> dict[str, Any]:
    """The arguments of ``TrainingArguments`` that shard every layer by itself and the rest together."""
    if not training.sharded:
        return {}
    # Queries and keys are views; nothing here writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    return {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": [_LAYER]}}


def keep_sums_in_fp32(arguments: TrainingArguments) -> None:
    """Leave precision to autocast, as without sharding: what is gathered and what is summed over the GPUs is fp32."""
    plugin: dict[str, Any] | None = arguments.fsdp_plugin_args
    if plugin is not None:
        plugin["mixed_precision_policy"] = MixedPrecisionPolicy()


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """A sharded model's tensors, put together on the CPU of rank 0 and none elsewhere; every rank must call it.

    Tied weights are one tensor, as they are in the model.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    first: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied = first.setdefault(parameter, name)
        if tied in state:
            state[name] = state[tied]
    return state
