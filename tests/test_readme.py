"""What README.md and benchmarks/README.md say was measured, and what README.md shows runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from benchmarks import distillation_table
from benchmarks.table import RESULTS, table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
MEASURED = re.sub(r"\s+", " ", README)  # where a line is broken does not matter


def test_attention_mse_was_never_slower_than_eager() -> None:
    """What benchmarks/README.md says of the small shapes."""
    times: dict[str, dict[str, float]] = {}
    for row in json.loads((RESULTS / "grid" / "cpu.json").read_text())["benchmarks"]:
        times.setdefault(row["shape"], {})[row["contender"]] = row["seconds"]["median"]
    assert len(times) == 42
    assert [shape for shape, of in times.items() if of["vlkd"] > of["eager"]] == []


def test_the_table_of_run_times_is_that_of_the_committed_results() -> None:
    stored = sorted(path for path in RESULTS.glob("*.json") if path.name != "latest.json")
    assert stored and table(stored) in BENCHMARKS


def test_the_attention_losses_speed_up_was_measured() -> None:
    run = json.loads((RESULTS / "cpu.json").read_text())
    of = {
        row["contender"]: row
        for row in run["benchmarks"]
        if (row["op"], row["phase"], row["dtype"]) == ("attention_mse", "both", "float32")
        and row["shape"] == "B 16, H 12, L 128, D 32/64"
    }
    ours, eager = of["vlkd"], of["eager"]
    assert (run["machine_info"]["processor"], run["machine_info"]["threads"]) == ("AMD EPYC", 2)
    times = [1000 * row["seconds"]["median"] for row in (ours, eager)]
    memory = [row["peak_memory"] / 2**20 for row in (ours, eager)]
    assert f"{times[0]:.3g} ms against {times[1]:.3g} ms" in MEASURED and f"**{times[1] / times[0]:.1f}×**" in MEASURED
    assert f"with {memory[0]:.3g} MiB instead of {memory[1]:.3g}" in MEASURED


def test_the_whole_steps_speed_up_was_measured() -> None:
    run = json.loads((distillation_table.RESULTS / "cpu.json").read_text())
    rows: dict[str, dict[str, Any]] = {row["contender"]: row for row in run["steps"] if row["case"]["batch"] == 64}
    ours, padded = rows["vlkd"], rows["vlkd, padded"]
    assert "Intel" in run["machine_info"]["processor"] and run["machine_info"]["threads"] == 2
    times = [row["seconds"]["median"] for row in (ours, padded)]
    assert f"{times[0]:.1f} s without padding against {times[1]:.1f} s with it" in MEASURED
    assert f"**{ours['of_padded']['median']:.2f}** of the time" in MEASURED


def test_the_code_block_runs() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    torch.manual_seed(0)
    batch, heads, length, dim = 2, 12, 6, 768
    names: dict[str, Any] = {
        "q_student": torch.randn(batch, heads, length, 32, requires_grad=True),
        "k_student": torch.randn(batch, heads, length, 32, requires_grad=True),
        "q_teacher": torch.randn(batch, heads, length, 64),
        "k_teacher": torch.randn(batch, heads, length, 64),
        "h_student": torch.randn(batch, length, dim, requires_grad=True),
        "h_teacher": torch.randn(batch, length, dim),
        "valid": torch.arange(length) < torch.tensor([[length], [length - 2]]),
        "device": "cpu",
    }
    names["mask"] = names["valid"][:, None, None]
    exec(block, names)
    assert names["loss"].isfinite() and names["queue"].fill == 2 * length - 2
    assert names["q_student"].grad.abs().sum() > 0  # the queue is empty, so that only the maps teach
