"""Turns stored measurements into Markdown tables, which benchmarks/README.md shows.

python -m benchmarks.table [FILE ...]                 every file of benchmarks/results/ if none is named
python -m benchmarks.table --phases [FILE ...]        forward and backward each by itself too, and peak memory
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.floors import PHASES, floor
from benchmarks.peers import NAMES

RESULTS = Path(__file__).with_name("results")


def table(files: Iterable[Path], phases: bool = False) -> str:
    """One section a file: the conditions, then a table for every op. A missing GPU is said so."""
    runs = [json.loads(path.read_text()) for path in files]
    sections = [_section(run, phases) for run in runs]
    if not any(run["machine_info"]["gpu"] for run in runs):
        sections.append("GPU: not yet measured.")
    return "\n\n".join(sections) + "\n"


def _section(run: dict[str, Any], phases: bool) -> str:
    machine, commit = run["machine_info"], run["commit_info"]
    threads = f"{machine['threads']} threads" if machine["threads"] != 1 else "1 thread"
    place = machine["gpu"] or f"{machine['processor']}, {threads}"
    state = f"commit {commit['id'][:12]}" if commit["id"] else "no commit"
    changed = " with changes" if commit["dirty"] else ""
    best, half = machine["ceilings"], "bfloat16"
    products = best["operations_per_second"]
    conditions = (
        f"{place}; torch {machine['torch']}, Python {machine['python']}; {state}{changed}; {run['datetime'][:10]}. "
        f"Measured ceilings: {best['bytes_per_second'] / 1e9:.3g} GB/s, products {products['float32'] / 1e12:.3g} (float32) and "
        f"{products[half] / 1e12:.3g} ({half}) TFLOP/s, {best['exponentials_per_second'] / 1e9:.3g} G exponentials/s. "
        "Milliseconds: median (first to third quartile), times vlkd's median; then the share of that time which the contender's "
        "own floor takes."
    )
    tables = []
    for op, names in NAMES.items():
        rows = [
            row
            for row in run["benchmarks"]
            if row["op"] == op and (phases or row["phase"] in ("both", "write", "read")) and "growing" not in row
        ]
        if rows:
            tables.append(_table(op, [name for name in names if any(r["contender"] == name for r in rows)], rows, best))
    return "\n\n".join([textwrap.fill(conditions, 130, break_on_hyphens=False), *tables])


def _table(op: str, names: list[str], rows: list[dict[str, Any]], best: dict[str, Any]) -> str:
    phases = [phase for phase in PHASES if any(row["phase"] == phase for row in rows)]
    cases: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault((row["shape"], row["dtype"], row["phase"]), {})[row["contender"]] = row
    header = [op, "dtype", *(["phase"] if len(phases) > 1 else []), *names]
    lines = [header, ["---"] * len(header)]
    for (shape, dtype, phase), of in cases.items():
        where = [shape, dtype, *([phase] if len(phases) > 1 else [])]
        lines.append([*where, *(_cell(of, name, best) for name in names)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(of: dict[str, dict[str, Any]], name: str, best: dict[str, Any]) -> str:
    if name not in of:
        return "–"
    row = of[name]
    if "failed" in row:
        return row["failed"].split(":")[0]
    q1, median, q3 = (1000 * row["seconds"][key] for key in ("q1", "median", "q3"))
    own = of.get("vlkd")
    ratio = (
        f", {row['seconds']['median'] / own['seconds']['median']:.1f}×"
        if own and "failed" not in own and name != "vlkd"
        else ""
    )
    least, _ = floor(row["work"], best, row["dtype"])
    memory = f", {row['peak_memory'] / 2**20:.3g} MiB" if "peak_memory" in row else ""
    return f"{median:.3g} ({q1:.3g} to {q3:.3g}){ratio}; {least / row['seconds']['median']:.0%}{memory}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="as `make bench` writes them")
    parser.add_argument("--phases", action="store_true", help="forward, backward and both")
    options = parser.parse_args()
    print(table(options.files or sorted(RESULTS.glob("*.json")), options.phases), end="")


if __name__ == "__main__":
    main()
