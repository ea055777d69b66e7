"""Attention maps side by side: how much one word of the text attends to each region, drawn on the picture.

Letters: H heads, L places of the sequence, T text and tag tokens, R regions, Dh head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from vlkd.models import capture_attention
from vlkd.report.pictures import drawable, outline, picture_panels
from vlkd.report.story import AttentionExample
from vlkd.report.style import INK, MUTED, png
from vlkd_kernels import attention_map

_INPUTS = ("input_ids", "token_type_ids", "position_ids", "attention_mask", "sequence_index")
_DARK = 0.22  # brightness of what nobody looks at
_EDGE = "#ffd166"


@torch.no_grad()
def region_attention(model: nn.Module, batch: Mapping[str, Tensor], regions: str) -> Tensor:
    """Attention of every text token over the regions and the padding behind them, last layer, mean over heads, fp32 [T, at least R].

    ``batch`` holds one picture (B = 1); ``regions`` is the key of the features that ``model`` reads. The map is computed
    from the captured queries and keys, over what a token may see.
    """
    was_training = model.training
    model.eval()
    with capture_attention(model) as captured:
        model(**{name: batch[name] for name in _INPUTS if name in batch}, regions=batch[regions])
    model.train(was_training)
    query, key, scale = captured[-1]  # [1, H, L, Dh]
    visible = batch["attention_mask"][0] | torch.eye(query.shape[2], dtype=torch.bool, device=query.device)
    text = batch["input_ids"].shape[1]
    maps = attention_map(query, key, scale=scale, attn_mask=visible, heads="mean", rows=range(text))  # [1, T, L]
    index = batch.get("sequence_index")
    of_regions = torch.arange(maps.shape[-1]) >= text if index is None else index[0].cpu() >= text
    return maps[0, :, of_regions].float()


def attention_example(
    models: Mapping[str, tuple[nn.Module, str]],
    batch: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    *,
    key: str,
    pixels: np.ndarray,
    boxes: np.ndarray,
) -> AttentionExample:
    """Maps of ``models`` (name -> (model, its regions' key); the teacher first) for one word of ``batch``'s text.

    The word is the one whose attention on a single region is the largest in the first model: chosen by the teacher,
    so that the student is not shown at its best.
    """
    maps = {name: region_attention(model, batch, regions).cpu() for name, (model, regions) in models.items()}
    ids = batch["input_ids"][0].tolist()
    words = ids[: ids.index(tokenizer.sep_token_id) + 1]
    special = set(tokenizer.all_special_ids)
    eligible = [place for place, word in enumerate(words) if word not in special]
    if not eligible:
        raise ValueError(f"picture {key!r}: its text holds no word to show attention for")
    teacher = next(iter(maps.values()))
    word = max(eligible, key=lambda place: float(teacher[place].max()))
    count = len(boxes)  # the rest is padding
    return AttentionExample(
        key=key,
        pixels=pixels,
        boxes=boxes,
        words=tuple(tokenizer.convert_ids_to_tokens(words)),
        word=word,
        maps={name: attention[word, :count].numpy() for name, attention in maps.items()},
    )


def attention_figure(example: AttentionExample) -> bytes:
    """The picture with all regions, then one panel a model: the more a region is attended, the brighter it is lit."""
    pixels, all_boxes = drawable(example.pixels, example.boxes)
    example = replace(example, pixels=pixels, boxes=all_boxes)
    with picture_panels(example.pixels, 1 + len(example.maps), header=0.45) as (figure, panels):
        panels[0].set_title(f"“{example.words[example.word]}”", fontsize=12)
        boxes = example.boxes.tolist()
        for box in boxes:
            outline(panels[0], box, "#ffffff", width=0.9)
        for axes, (name, weights) in zip(panels[1:], example.maps.items(), strict=True):
            total = float(weights.sum())
            shares = weights / total if total > 0 else weights
            axes.get_images()[0].set_data(_lit(example, shares))
            for place in np.argsort(shares):
                strength = float(shares[place] / max(shares.max(), 1e-12))
                outline(axes, boxes[place], _EDGE, width=0.3 + 2.2 * strength)
            for place in np.argsort(shares)[-2:]:
                x1, y1, _, _ = boxes[place]
                axes.text(
                    x1, y1, f"{100 * shares[place]:.0f} %", fontsize=7.5, color=INK, va="bottom", clip_on=True,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.85},
                )  # fmt: skip
            axes.set_title(name)
            axes.text(
                0.5, -0.03, f"{100 * total:.0f} % of its attention is on regions", transform=axes.transAxes,
                ha="center", va="top", fontsize=8, color=MUTED,
            )  # fmt: skip
        return png(figure)


def _lit(example: AttentionExample, shares: np.ndarray) -> np.ndarray:
    """The pixels [H, W, 3] in the dark, each as bright as the most attended region over it."""
    light = np.zeros(example.pixels.shape[:2])
    for (x1, y1, x2, y2), share in zip(example.boxes, shares / max(shares.max(), 1e-12), strict=True):
        rows = slice(max(int(np.floor(y1)), 0), int(np.ceil(y2)))
        columns = slice(max(int(np.floor(x1)), 0), int(np.ceil(x2)))
        light[rows, columns] = np.maximum(light[rows, columns], share)
    brightness = _DARK + (1 - _DARK) * light[..., None]
    return (example.pixels * brightness).astype(np.uint8)
