"""A hand-made folder of Oscar's at a small size, and Oscar's forward pass from its formulas, in float64.

Legend: B batch, T text and tag tokens, L all tokens, D width, F feature width, V vocabulary, A answers.
"""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vlkd.data.tokenizer import SPECIAL_TOKENS

# The first line as in conftest.
T, D, F, V, A = 8, 32, 10, 50, 7
HEADS, FFN, LAYERS, PLACES = 4, 64, 2, 16
EPS, REGION_EPS = 1e-5, 1e-3  # larger than Oscar's 1e-12, and different, so that a mix-up shows
WORDS = [*SPECIAL_TOKENS.values(), "a", "dog", "Dog", "##s", "run", "##ning", "é", "e", "?"]


def oscar_config(**changes: object) -> dict[str, object]:
    """``config.json`` as Oscar's training writes it."""
    return {
        "attention_probs_dropout_prob": 0.1,
        "finetuning_task": "vqa_text",
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.3,
        "hidden_size": D,
        "img_feature_dim": F,
        "img_feature_type": "faster_r-cnn",
        "img_layer_norm_eps": REGION_EPS,
        "initializer_range": 0.02,
        "intermediate_size": FFN,
        "layer_norm_eps": EPS,
        "loss_type": "bce",
        "max_position_embeddings": PLACES,
        "num_attention_heads": HEADS,
        "num_contrast_classes": 2,
        "num_hidden_layers": LAYERS,
        "num_labels": A,
        "output_attentions": False,
        "output_hidden_states": False,
        "torchscript": False,
        "type_vocab_size": 2,
        "use_img_layernorm": 0,
        "vocab_size": V,
        **changes,
    }


def linear(name: str, rows: int, columns: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(rows, columns) / columns**0.5, f"{name}.bias": torch.randn(rows) / 2}


def norm(name: str) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + torch.randn(D) / 4, f"{name}.bias": torch.randn(D) / 4}


def oscar_tensors(task: str, region_norm: bool) -> dict[str, Tensor]:
    """A state dict of Oscar's: BertImgForPreTraining, BertForImageCaptioning, ImageBertForSequenceClassification."""
    torch.manual_seed(0)
    embeddings = {"word": V, "position": PLACES, "token_type": 2}
    tensors = {f"bert.embeddings.{kind}_embeddings.weight": torch.randn(rows, D) for kind, rows in embeddings.items()}
    tensors |= norm("bert.embeddings.LayerNorm")
    for number in range(LAYERS):
        layer = f"bert.encoder.layer.{number}"
        for part in ("query", "key", "value"):
            tensors |= linear(f"{layer}.attention.self.{part}", D, D)
        tensors |= linear(f"{layer}.attention.output.dense", D, D) | norm(f"{layer}.attention.output.LayerNorm")
        tensors |= linear(f"{layer}.intermediate.dense", FFN, D)
        tensors |= linear(f"{layer}.output.dense", D, FFN) | norm(f"{layer}.output.LayerNorm")
    tensors |= linear("bert.pooler.dense", D, D) | linear("bert.img_embedding", D, F)
    if region_norm:
        tensors |= norm("bert.LayerNorm")
    if task == "vqa":
        return tensors | linear("classifier", A, D)
    tensors |= {"cls.predictions.bias": torch.randn(V)}
    tensors |= linear("cls.predictions.transform.dense", D, D) | norm("cls.predictions.transform.LayerNorm")
    tensors |= {"cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"]}
    return tensors | (linear("cls.seq_relationship", 2, D) if task == "pretraining" else {})


def write(folder: Path, tensors: dict[str, Tensor], form: str = "bin", **changes: object) -> Path:
    """The folder of a checkpoint, with a vocabulary and a poisoned ``training_args.bin`` as they lie around there."""
    (folder / "config.json").write_text(json.dumps(oscar_config(**changes)))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "training_args.bin").write_bytes(pickle.dumps(Poison(folder / "ran"), protocol=2))
    if form == "safetensors":
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    else:
        archive = form != "bin before torch 1.6"
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=archive)
    return folder


class Poison:
    """Whoever unpickles it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def layer_norm(x: Tensor, weights: dict[str, Tensor], name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def dense(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def oscar_layer(x: Tensor, weights: dict[str, Tensor], name: str, added: Tensor) -> Tensor:
    def heads(part: str) -> Tensor:  # [B, H, L, Dh]
        return dense(x, weights, f"{name}.attention.self.{part}").unflatten(-1, (HEADS, D // HEADS)).transpose(1, 2)

    scores = heads("query") @ heads("key").transpose(-1, -2) / math.sqrt(D // HEADS) + added
    context = (scores.softmax(-1) @ heads("value")).transpose(1, 2).flatten(2)
    attended = dense(context, weights, f"{name}.attention.output.dense") + x
    attended = layer_norm(attended, weights, f"{name}.attention.output.LayerNorm", EPS)
    inner = gelu(dense(attended, weights, f"{name}.intermediate.dense"))
    return layer_norm(
        dense(inner, weights, f"{name}.output.dense") + attended, weights, f"{name}.output.LayerNorm", EPS
    )


def oscar_hidden(weights: dict[str, Tensor], inputs: dict[str, Tensor], region_norm: bool) -> Tensor:
    """[B, L, D]"""
    kinds = {"word": "input_ids", "position": "position_ids", "token_type": "token_type_ids"}
    text = sum(weights[f"bert.embeddings.{kind}_embeddings.weight"][inputs[name]] for kind, name in kinds.items())
    text = layer_norm(text, weights, "bert.embeddings.LayerNorm", EPS)
    regions = dense(inputs["regions"].double(), weights, "bert.img_embedding")
    if region_norm:
        regions = layer_norm(regions, weights, "bert.LayerNorm", REGION_EPS)
    x = torch.cat((text, regions), dim=1)
    added = (1 - inputs["attention_mask"].double())[:, None] * -10000
    for number in range(LAYERS):
        x = oscar_layer(x, weights, f"bert.encoder.layer.{number}", added)
    return x


def oscar_logits(weights: dict[str, Tensor], hidden: Tensor, task: str) -> dict[str, Tensor]:
    pooled = torch.tanh(dense(hidden[:, 0], weights, "bert.pooler.dense"))
    if task == "vqa":
        return {"logits": dense(pooled, weights, "classifier")}
    transformed = gelu(dense(hidden[:, :T], weights, "cls.predictions.transform.dense"))
    transformed = layer_norm(transformed, weights, "cls.predictions.transform.LayerNorm", EPS)
    words = transformed @ weights["cls.predictions.decoder.weight"].T + weights["cls.predictions.bias"]
    if task == "captioning":
        return {"logits": words}
    return {"logits": words, "matching_logits": dense(pooled, weights, "cls.seq_relationship").flip(1)}
