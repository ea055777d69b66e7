"""What the README says of run times is what was measured."""

from pathlib import Path

from benchmarks.table import RESULTS, table

ROOT = Path(__file__).resolve().parent.parent


def test_the_table_of_run_times_is_that_of_the_committed_results():
    stored = sorted(path for path in RESULTS.glob("*.json") if path.name != "latest.json")
    assert stored
    assert table(stored) in (ROOT / "README.md").read_text(encoding="utf-8")
