"""Tables, curves, results.json and attention maps, one by one."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vlkd.errors import VlkdError
from vlkd.models import VLConfig, VLForVQA
from vlkd.report import terminal_table, write_results
from vlkd.report.attention import attention_figure, region_attention
from vlkd.report.curves import loss_curves, read_curve
from vlkd.report.pictures import drawable, picture_with_boxes
from vlkd.report.plots import score_bars
from vlkd.report.story import StageRecord
from vlkd.report.tables import hundredfold, score_columns


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_terminal_table_fits_80_columns_and_shows_every_model(story):
    from rich.console import Console

    console = Console(width=80, file=io.StringIO())
    console.print(terminal_table(story))
    lines = console.file.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    for row in story.rows:
        (line,) = [line for line in lines if line.strip().startswith(row.name)]
        assert hundredfold(row.captioning["picture"]["CIDEr"]) in line.split()
        assert line.split()[-1] == hundredfold(row.vqa["other"]["all"])


def test_a_score_that_is_absent_prints_as_a_dash(story):
    rows = (replace(story.rows[0], captioning={}), *story.rows[1:])
    cider = next(column for column in score_columns(rows) if column.heading == "CIDEr")
    assert cider.cell(rows[0]) == "–"
    assert cider.cell(rows[1]) == hundredfold(rows[1].captioning["picture"]["CIDEr"])
    assert len(score_bars(rows)) > 1000


def test_results_json_holds_null_for_what_was_not_measured(story, tmp_path):
    row = replace(story.rows[0], vqa={"picture": {"all": float("nan")}})
    path = write_results(tmp_path, replace(story, rows=(row,)))
    assert json.loads(path.read_text())["rows"][0]["vqa"] == {"picture": {"all": None}}


def test_curve_reads_what_training_logged(story):
    curve = read_curve(story.stages[-1])
    assert curve is not None
    assert curve.terms("raw/") == ["answers", "attention", "hidden", "classes"]
    steps = [step for step, _ in curve.columns["raw/attention"]]
    assert steps == list(range(10, 310, 10))


def test_curves_without_metrics_are_no_figure(tmp_path):
    stage = StageRecord("evaluate", "captioning", "student", 1.0, tmp_path / "absent.jsonl")
    assert read_curve(stage) is None
    assert loss_curves([stage], ["student"]) is None


def test_a_torn_line_is_one_clear_sentence(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    with pytest.raises(VlkdError, match=r"metrics.jsonl' line 2 is no JSON object"):
        read_curve(StageRecord("pretrain", "pretraining", "student", 1.0, path))


def test_the_same_figure_gives_the_same_bytes(story):
    assert score_bars(story.rows) == score_bars(story.rows)


def test_boxes_are_drawn_where_they_are():
    """Only the neighbourhood of the box's edge differs from the bare picture."""
    blank = np.full((100, 100, 3), 200, dtype=np.uint8)
    bare = pixels(picture_with_boxes(blank, np.zeros((0, 4)), ()))
    drawn = pixels(picture_with_boxes(blank, np.array([[20.0, 30.0, 60.0, 80.0]]), ()))
    changed = np.abs(drawn - bare).sum(axis=2) > 30
    inside = np.argwhere(bare.sum(axis=2) < 700)  # the picture itself, without the white margin
    (top, left), (bottom, right) = inside.min(axis=0), inside.max(axis=0) + 1
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    place = [(rows[0] - top) / (bottom - top), (rows[-1] - top) / (bottom - top),
             (columns[0] - left) / (right - left), (columns[-1] - left) / (right - left)]  # fmt: skip
    assert place == pytest.approx([0.3, 0.8, 0.2, 0.6], abs=0.02)  # half a line's width
    assert not changed[(rows[0] + rows[-1]) // 2, (columns[0] + columns[-1]) // 2]


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (3, 9000), (9001, 2)])
def test_a_picture_of_any_shape_can_be_drawn(story, shape: tuple[int, int]):
    """A panel as long as the picture would have a million pixels a side, or none."""
    long = np.full((*shape, 3), 90, dtype=np.uint8)
    boxes = np.array([[0.0, 0.0, shape[1], shape[0]]])
    drawn = pixels(picture_with_boxes(long, boxes, ["thing"]))
    assert max(drawn.shape) < 2000 and min(drawn.shape[:2]) > 30
    example = replace(story.attention[0], pixels=long, boxes=boxes, maps={"teacher": np.array([0.5])})
    assert max(pixels(attention_figure(example)).shape) < 2000


def test_a_huge_picture_is_drawn_smaller_and_its_boxes_with_it():
    huge = np.zeros((4100, 9001, 3), dtype=np.uint8)
    huge[:, 4500:] = 200
    small, boxes = drawable(huge, np.array([[4500.0, 0.0, 9000.0, 4098.0]]))
    assert small.shape == (1367, 3001, 3)
    np.testing.assert_allclose(boxes, [[1500, 0, 3000, 1366]])
    assert (small[:, :1500] == 0).all() and (small[:, 1500:] == 200).all()
    same = drawable(huge[:100, :4096], boxes)
    assert same[0].shape == (100, 4096, 3) and same[1] is boxes


def test_attended_regions_are_lit(story):
    """The region with all the attention keeps its brightness; the others lose it."""
    example = story.attention[0]
    full = replace(example, pixels=np.full_like(example.pixels, 250), maps={"teacher": np.array([0.6, 0.0, 0.0])})
    image = pixels(attention_figure(full))
    panel = image[:, image.shape[1] // 2 :].sum(axis=2)
    height, width = panel.shape
    scale = width / 96  # the panel shows 96 pixels, up to its margins

    def brightness(box) -> float:
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        top = height - scale * 96 - 0.02 * height
        return float(panel[int(top + scale * y), int(scale * x)])

    lit, dark, dark_too = (brightness(box) for box in example.boxes)
    assert lit > 700 and dark < 250 and dark_too < 250


def test_region_attention_is_the_softmax_over_what_a_token_sees():
    """Against the model's own eager attention probabilities."""
    torch.manual_seed(0)
    config = VLConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        region_dim=8, num_answers=3,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = VLForVQA(config).train()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    visible = torch.tensor([[[True] * 5 + [False] + [True] * 3 + [False]]])  # T 6, R 4
    batch = {
        "input_ids": torch.randint(5, 20, (1, 6)),
        "token_type_ids": torch.zeros(1, 6, dtype=torch.int64),
        "position_ids": torch.arange(6)[None],
        "student_regions": torch.randn(1, 4, 8),
        "attention_mask": visible,
    }
    seen = []
    handle = model.bert.encoder.layer[-1].attention.self.register_forward_hook(lambda *args: seen.append(args[2][1]))
    found = region_attention(model, batch, "student_regions")
    assert model.training  # left as it was
    model.eval()
    seen.clear()
    inputs = {name: tensor for name, tensor in batch.items() if name != "student_regions"}
    with torch.no_grad():
        model(**inputs, regions=batch["student_regions"])
    handle.remove()
    expected = seen[0][0].mean(dim=0)[:6, 6:]  # [T, R]
    # fp32 softmax over ten numbers; the hidden query row (5) also sees itself in both.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found[:, 3] == 0).all() and (found[:, :3] > 0).all()
