"""Turns stored measurements of the whole step into Markdown, which benchmarks/README.md shows.

python -m benchmarks.distillation_table [FILE ...]      every file of benchmarks/results/step/ but latest.json if none is named
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.distillation_contenders import PARTS

RESULTS = Path(__file__).with_name("results") / "step"
Row = dict[str, Any]


def stored() -> list[Path]:
    """What has been measured and kept."""
    return sorted(path for path in RESULTS.glob("*.json") if path.name != "latest.json")


def table(files: Iterable[Path]) -> str:
    """A section a file: the conditions, then a table for every case."""
    sections = [_section(json.loads(path.read_text())) for path in files]
    return "\n\n".join(sections or ["Not yet measured."]) + "\n"


def _section(run: dict[str, Any]) -> str:
    machine, commit = run["machine_info"], run["commit_info"]
    place = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
    state = f"commit {commit['id'][:12]}" if commit["id"] else "no commit"
    changed = " with changes" if commit["dirty"] else ""
    of = machine["versions"]
    conditions = (
        f"{place}; torch {of['torch']}, transformers {of['transformers']}, Python {of['python']}; {state}{changed}; "
        f"{run['datetime'][:10]}."
    )
    cases: dict[str, list[Row]] = {}
    for row in run["steps"]:
        cases.setdefault(_title(row["case"]), []).append(row)
    return "\n\n".join([conditions, *(_case(title, rows) for title, rows in cases.items())])


def _title(case: dict[str, Any]) -> str:
    (layers_t, width_t), (layers_s, width_s) = case["teacher"], case["student"]
    compared = "every layer" if case["every_layer"] else "the last layer"
    cut = f" in {case['micro_batches']} micro-batches" if case["micro_batches"] > 1 else ""
    return (
        f"Teacher {layers_t} × {width_t}, student {layers_s} × {width_s}, {case['heads']} heads, {case['tokens']} tokens, "
        f"batch {case['batch']}{cut}, {case['dtype']}, queue {case['queue']:,}, vocabulary {case['vocabulary']:,}; attention of {compared}:"
    )


def _case(title: str, rows: list[Row]) -> str:
    header = ["step", "ms", "× padded", "× no distillation", "real tokens", "memory", *PARTS]
    lines = [header, ["---"] * len(header), *(_line(row) for row in rows)]
    markdown = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    memory = [_memory(row) for row in rows if row["estimate"]]
    if "peak_rss" in rows[0]:
        memory.append(f"The process held at most {_bytes(rows[0]['peak_rss'])}.")
    return "\n\n".join([textwrap.fill(title, 130, break_on_hyphens=False), markdown, *memory])


def _line(row: Row) -> list[str]:
    q1, median, q3 = (_milliseconds(row["seconds"][key]) for key in ("q1", "median", "q3"))
    ratios = (_ratio(row[key]) for key in ("of_padded", "ratio"))
    whole = sum(row["parts"].values())
    shares = [f"{seconds / whole:.0%}" if seconds else "–" for seconds in (row["parts"][part] for part in PARTS)]
    return [
        row["contender"],
        f"{median} ({q1} to {q3})",
        *ratios,
        f"{row['real']:.0%}",
        _bytes(row["peak_memory"]),
        *shares,
    ]


def _ratio(ratio: dict[str, float] | None) -> str:
    return f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})" if ratio else "–"


def _memory(row: Row) -> str:
    total = row["held"] + row["peak_memory"]
    return (
        f"{row['contender']} with weights, moments and queue: {_bytes(total)}. `vlkd.training.budget` predicted "
        f"{_bytes(row['estimate'])}."
    )


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f}" if seconds >= 0.1 else f"{1000 * seconds:.3g}"


def _bytes(count: int) -> str:
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="as `make bench-step` writes them")
    print(table(parser.parse_args().files or stored()), end="")


if __name__ == "__main__":
    main()
