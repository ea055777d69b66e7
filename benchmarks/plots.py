"""Draws stored measurements: how close to the machine's roofs, how much memory, and how a step grows with its sizes.

python -m benchmarks.plots [FILE ...]        every file of benchmarks/results/ if none is named; SVGs go to docs/figures/
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.table import RESULTS

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
COLOURS = {
    "vlkd": "#0b6e99",
    "vlkd cuda": "#3fa7c8",
    "eager": "#c05621",
    "torch.compile": "#8a6d3b",
    "FlexAttention": "#7b5ea7",
    "lightly": "#5f8f3a",
    "attention + attention_mse": "#8a6d3b",
    "attention alone": "#999999",
}
MEANING = {"N": "tokens", "K": "queue rows", "E": "width"}
OPEN = ("torch.compile", "attention + attention_mse")  # rings, which show what they cover
MARKERS = {"float32": "o", "bfloat16": "s", "float16": "^"}
Rows = list[dict[str, Any]]


def roofline(axes: Axes, rows: Rows, ceilings: dict[str, Any]) -> None:
    """Operations a second against operations a byte: each contender's time on the work that the operator needs at least."""
    least = {(r["shape"], r["dtype"]): r["work"] for r in rows if r["contender"] == "vlkd"}
    for name in COLOURS:
        for dtype in MARKERS:
            points = [
                r for r in rows if r["contender"] == name and r["dtype"] == dtype and (r["shape"], dtype) in least
            ]
            works = [least[r["shape"], dtype] for r in points]
            _points(
                axes, name, dtype,
                [work["operations"] / work["bytes"] for work in works],
                [work["operations"] / r["seconds"]["median"] / 1e9 for work, r in zip(works, points, strict=True)],
            )  # fmt: skip
    intensities = [work["operations"] / work["bytes"] for work in least.values()]
    x = low, high = min(intensities) / 4, max(intensities) * 2
    axes.plot(x, [ceilings["bytes_per_second"] * i / 1e9 for i in x], "-", color="black", linewidth=0.8)
    axes.annotate("memory", (low, ceilings["bytes_per_second"] * low / 1e9), ha="left", va="bottom", fontsize=7)
    for dtype in sorted({r["dtype"] for r in rows}):
        roof = ceilings["operations_per_second"][dtype] / 1e9
        axes.plot(x, [roof, roof], "-", color="black", linewidth=0.8)
        axes.annotate(f"products, {dtype}", (high, roof), ha="right", va="bottom", fontsize=7)
    exponential = sorted({work["operations"] / work["exponentials"] for work in least.values() if work["exponentials"]})
    for operations in exponential:
        roof = operations * ceilings["exponentials_per_second"] / 1e9
        axes.plot(x, [roof, roof], ":", color="black", linewidth=0.8)
        axes.annotate(
            f"exponentials ({operations:.0f} operations each)", (high, roof), ha="right", va="bottom", fontsize=7
        )
    axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="operations a byte", ylabel="G operations a second")
    axes.set_title(f"{rows[0]['op']}, forward and backward: points under the roofs", fontsize=9)
    axes.legend(fontsize=7)


def memory(axes: Axes, rows: Rows) -> None:
    """The most that a step holds beyond its inputs, in multiples of them."""
    for name in COLOURS:
        for dtype in MARKERS:
            of_name = [r for r in rows if r["contender"] == name and r["dtype"] == dtype]
            _points(
                axes, name, dtype, [r["length"] for r in of_name], [r["peak_memory"] / r["inputs"] for r in of_name]
            )
    axes.set(xscale="log", yscale="log", xlabel="length", ylabel="times the inputs")
    lengths = sorted({r["length"] for r in rows})
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set_title("most memory held beside the inputs", fontsize=9)
    axes.legend(fontsize=7)


def growth(axes: Axes, rows: Rows, size: str) -> None:
    """Time against one size, the others as they are."""
    of_size = [row for row in rows if row["growing"] == size]
    for name in COLOURS:
        points = sorted((_sizes(row)[size], row["seconds"]) for row in of_size if row["contender"] == name)
        if points:
            x, seconds = zip(*points, strict=True)
            low, median, high = ([1000 * s[key] for s in seconds] for key in ("q1", "median", "q3"))
            axes.plot(x, median, "o-", color=COLOURS[name], label=name, linewidth=1.2, markersize=4)
            axes.fill_between(x, low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
    ticks = sorted({_sizes(row)[size] for row in of_size})
    fixed = ", ".join(f"{key} {value:,}" for key, value in _sizes(of_size[0]).items() if key != size)
    axes.set(xscale="log", yscale="log", xlabel=f"{MEANING[size]}, {size}", ylabel="milliseconds")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=7)
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title(fixed, fontsize=9)
    axes.legend(fontsize=7)


def _sizes(row: dict[str, Any]) -> dict[str, int]:
    return {part.split()[0]: int(part.split()[1]) for part in row["shape"].split(", ")}


def _points(axes: Axes, name: str, dtype: str, x: list[float], y: list[float]) -> None:
    ring: dict[str, Any] = {"markerfacecolor": "none", "markersize": 9} if name in OPEN else {"markersize": 5}
    if x:
        axes.plot(x, y, MARKERS[dtype], color=COLOURS[name], label=f"{name}, {dtype}", **ring)


def draw(path: Path, figures: Path = FIGURES) -> list[Path]:
    """One figure for each operator of a file."""
    run = json.loads(path.read_text())
    measured = [row for row in run["benchmarks"] if "failed" not in row]
    machine, written = run["machine_info"], []
    matplotlib.rcParams["svg.hashsalt"] = "vlkd"  # the same file for the same numbers
    place = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
    conditions = f"{place}; torch {machine['torch']}; {run['datetime'][:10]}"

    def finish(figure: Figure, name: str, about: str = "") -> None:
        figure.suptitle(about + conditions, fontsize=8, color="#555555")
        figures.mkdir(parents=True, exist_ok=True)
        written.append(figures / f"{name}-{path.stem}.svg")
        figure.savefig(written[-1], metadata={"Date": None})
        pyplot.close(figure)

    for op in dict.fromkeys(row["op"] for row in measured):
        of_op = [row for row in measured if row["op"] == op and row["phase"] == "both"]
        rows, growing = [row for row in of_op if "growing" not in row], [row for row in of_op if "growing" in row]
        if rows:
            figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
            roofline(left, rows, machine["ceilings"])
            memory(right, rows)
            finish(figure, op)
        if growing:
            sizes = list(dict.fromkeys(row["growing"] for row in growing))
            figure, panels = pyplot.subplots(
                1, len(sizes), figsize=(4.2 * len(sizes), 3.8), layout="constrained", squeeze=False
            )
            for axes, size in zip(panels[0], sizes, strict=True):
                growth(axes, growing, size)
            finish(figure, f"{op}-sizes", f"{op}, forward and backward, {growing[0]['dtype']}; ")
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="as `make bench` writes them")
    for path in parser.parse_args().files or sorted(RESULTS.glob("*.json")):
        for figure in draw(path):
            print(figure)


if __name__ == "__main__":
    main()
