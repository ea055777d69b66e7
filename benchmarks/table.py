"""Turns stored measurements into a Markdown table.

python -m benchmarks.table [FILE ...]        every file of benchmarks/results/ if none is named
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.peers import CONTENDERS

RESULTS = Path(__file__).with_name("results")


def table(files: Iterable[Path]) -> str:
    """One section a file: the conditions, then a row for every op, shape and dtype. A missing GPU is said so."""
    runs = [json.loads(path.read_text()) for path in files]
    sections = [_section(run) for run in runs]
    if not any(run["machine_info"]["gpu"] for run in runs):
        sections.append("GPU: not yet measured.")
    return "\n\n".join(sections) + "\n"


def _section(run: dict[str, Any]) -> str:
    machine, commit = run["machine_info"], run["commit_info"]
    threads = f"{machine['threads']} threads" if machine["threads"] != 1 else "1 thread"
    place = machine["gpu"] or f"{machine['processor']}, {threads}"
    state = f"commit {commit['id'][:12]}" if commit["id"] else "no commit"
    changed = " with changes" if commit["dirty"] else ""
    conditions = (
        f"{place}; torch {machine['torch']}, Python {machine['python']}; {state}{changed}; {run['datetime'][:10]}. "
        "Loss and gradients together, milliseconds: median (first to third quartile); in brackets, times vlkd's median."
    )
    measured = {row["contender"] for row in run["benchmarks"]}
    contenders = [name for name in CONTENDERS if name in measured]
    header = ["op", "shape", "dtype", *contenders]
    lines = [header, ["---"] * len(header), *_rows(run["benchmarks"], contenders)]
    return conditions + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rows(benchmarks: list[dict[str, Any]], contenders: list[str]) -> list[list[str]]:
    cases: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    for row in benchmarks:
        cases.setdefault((row["op"], row["shape"], row["dtype"]), {})[row["contender"]] = row["seconds"]
    return [[*case, *(_cell(times, name) for name in contenders)] for case, times in cases.items()]


def _cell(times: dict[str, dict[str, float]], name: str) -> str:
    if name not in times:
        return "not measured"
    q1, median, q3 = (1000 * times[name][key] for key in ("q1", "median", "q3"))
    own = times.get("vlkd")
    ratio = f" [{times[name]['median'] / own['median']:.1f}×]" if own and name != "vlkd" else ""
    return f"{median:.3g} ({q1:.3g} to {q3:.3g}){ratio}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    print(table(parser.parse_args().files or sorted(RESULTS.glob("*.json"))), end="")


if __name__ == "__main__":
    main()
