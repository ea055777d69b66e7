"""What the README says of run times is what was measured."""

import json
from pathlib import Path

from benchmarks.table import RESULTS, table

ROOT = Path(__file__).resolve().parent.parent


def test_attention_mse_was_never_slower_than_eager():
    """What the README says of the small shapes."""
    times = {}
    for row in json.loads((RESULTS / "grid" / "cpu.json").read_text())["benchmarks"]:
        times.setdefault(row["shape"], {})[row["contender"]] = row["seconds"]["median"]
    assert len(times) == 42
    assert [shape for shape, of in times.items() if of["vlkd"] > of["eager"]] == []


def test_the_table_of_run_times_is_that_of_the_committed_results():
    stored = sorted(path for path in RESULTS.glob("*.json") if path.name != "latest.json")
    assert stored
    assert table(stored) in (ROOT / "README.md").read_text(encoding="utf-8")
