"""The figures of a study's page. Each returns PNG bytes, or None where the study lacks what it would show."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vlkd.report.style import INK, MODEL_COLOURS, MUTED, drawing, model_colours, png
from vlkd.study.claims import Found, found_of
from vlkd.study.findings import METRICS, RowInfo
from vlkd.study.statistics import Result, Summary
from vlkd.study.tables import change

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ALONE, _DISTILLED = MODEL_COLOURS[6], MODEL_COLOURS[2]
_UP, _DOWN = MODEL_COLOURS[5], MODEL_COLOURS[4]
_NAME_WIDTH = 30  # characters of a row's name before it breaks
_CLAIM_WIDTH = 36


def differences(summary: Summary, rows: Sequence[RowInfo]) -> bytes | None:
    """Forest plot: each row's difference to its baseline, thick with its t interval over seeds, thin with its
    bootstrap interval over pictures."""
    drawn = [row for row in rows if any(_compared(summary.of(row.name, metric)) for metric in summary.compared)]
    if not drawn:
        return None
    names = [_broken(row.name) for row in drawn]
    height = 0.75 + sum(0.26 + 0.15 * name.count("\n") for name in names)
    with drawing(10, height, columns=len(summary.compared)) as (figure, panel):
        for axes, metric in zip(panel, summary.compared, strict=True):
            axes.axvline(0, color=MUTED, linewidth=1)
            for place, row in enumerate(drawn):
                _difference(axes, place, summary.of(row.name, metric))
            axes.set_title(f"Δ {METRICS[metric]} × 100")
            _rows_as_lines(axes, names if axes is panel[0] else [""] * len(names))
        return png(figure)


def _compared(result: Result) -> bool:
    return result.difference is not None and math.isfinite(result.difference.mean)


def _difference(axes: Axes, place: int, result: Result | Found) -> None:
    difference, items = result.difference, result.over_test_items
    if difference is None or not math.isfinite(difference.mean):
        return
    colour = _UP if difference.low > 0 else _DOWN if difference.high < 0 else MUTED
    axes.plot([100 * difference.low, 100 * difference.high], [place, place], color=colour, linewidth=6, alpha=0.35)
    if items is not None:
        axes.plot([100 * items.low, 100 * items.high], [place, place], color=colour, linewidth=1.2)
    axes.plot([100 * difference.mean], [place], "o", color=colour, markersize=6)
    axes.text(1.02, place, change(difference), transform=axes.get_yaxis_transform(), va="center", fontsize=8)


def claims(summary: Summary) -> bytes | None:
    """Forest plot of the study's claims, drawn as :func:`differences` is."""
    found: dict[str, dict[str, Found]] = {}
    for one in found_of(summary.study):
        found.setdefault(one.claim.text, {})[one.metric] = one
    if not found:
        return None
    names = [textwrap.fill(_literal(text), _CLAIM_WIDTH) for text in found]
    with drawing(11, 0.75 + 0.42 * len(names), columns=len(summary.compared)) as (figure, panel):
        for axes, metric in zip(panel, summary.compared, strict=True):
            axes.axvline(0, color=MUTED, linewidth=1)
            for place, by_metric in enumerate(found.values()):
                _difference(axes, place, by_metric[metric])
            axes.set_title(f"Δ {METRICS[metric]} × 100")
            _rows_as_lines(axes, names if axes is panel[0] else [""] * len(names))
        return png(figure)


def seed_strips(summary: Summary) -> bytes | None:
    """Every seed of the main rows as a dot, at the same height in every row; the bar is the mean."""
    rows = [row for row in summary.study.rows if row.main and summary.study.of(row.name)]
    if not rows:
        return None
    colours = model_colours([row.name for row in rows])
    seeds = sorted({seed for row in rows for seed in summary.study.of(row.name)})
    names = [_broken(row.name) for row in rows]
    with drawing(10, 0.75 + 0.55 * len(rows), columns=len(summary.compared)) as (figure, panel):
        for axes, metric in zip(panel, summary.compared, strict=True):
            for place, row in enumerate(rows):
                mean = 100 * summary.of(row.name, metric).score.mean
                axes.plot([mean, mean], [place - 0.3, place + 0.3], color=colours[row.name], linewidth=2)
                scores = _scores(summary, row.name, metric)
                heights = [place + _apart(seeds.index(seed), len(seeds), 0.4) for seed, _ in scores]
                axes.scatter([score for _, score in scores], heights, s=24, color=colours[row.name], alpha=0.6)
            axes.set_title(f"{METRICS[metric]} × 100")
            _rows_as_lines(axes, names if axes is panel[0] else [""] * len(names))
        return png(figure)


def queue_sizes(summary: Summary) -> bytes | None:
    """Score against the size of the queue: dots are seeds, the line joins the means. Dashed: the headline's baseline."""
    rows = sorted(_placed(summary, "queue"), key=lambda row: row.queue or 0)
    sizes = list(dict.fromkeys(row.queue for row in rows))
    if len(sizes) < 2:
        return None
    places = [(sizes.index(row.queue), row) for row in rows]
    headline = summary.study.row(summary.study.headline)
    alone = summary.study.row(headline.baseline) if headline else None
    with drawing(10, 3.2, columns=len(summary.compared)) as (figure, panel):
        for axes, metric in zip(panel, summary.compared, strict=True):
            if alone is not None:
                mean = 100 * summary.of(alone.name, metric).score.mean
                axes.axhline(
                    mean, color=_ALONE, linewidth=1.2, linestyle=(0, (4, 3)), label=f"{_literal(alone.name)}, mean"
                )
            _line_of_rows(axes, summary, places, metric, _DISTILLED, "distilled")
            axes.set_xticks(range(len(sizes)), [f"{size:,}" if size else "0\n(in-batch)" for size in sizes])
            axes.set_xlabel("teacher states in the queue")
            axes.set_title(f"{METRICS[metric]} × 100")
        figure.legend(*panel[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8.5)
        return png(figure)


def data_shares(summary: Summary) -> bytes | None:
    """Score against the share of the pictures in pre-training, with and without distillation."""
    rows = sorted(_placed(summary, "share"), key=lambda row: row.share or 0)
    shares = list(dict.fromkeys(row.share for row in rows))
    if len(shares) < 2:
        return None
    lines = {
        "without distillation": (_ALONE, -0.06, [row for row in rows if row.baseline is None]),
        "distilled": (_DISTILLED, 0.06, [row for row in rows if row.baseline is not None]),
    }
    with drawing(10, 3.2, columns=len(summary.compared)) as (figure, panel):
        for axes, metric in zip(panel, summary.compared, strict=True):
            for label, (colour, aside, drawn) in lines.items():
                places = [(shares.index(row.share) + aside, row) for row in drawn]
                _line_of_rows(axes, summary, places, metric, colour, label)
            axes.set_xticks(range(len(shares)), [f"{100 * (share or 0):g} %" for share in shares])
            axes.set_xlim(-0.4, len(shares) - 0.6)
            axes.set_xlabel("share of the pictures in pre-training")
            axes.set_title(f"{METRICS[metric]} × 100")
        figure.legend(*panel[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5)
        return png(figure)


def _placed(summary: Summary, quantity: str) -> list[RowInfo]:
    """Rows that have a place on the axis of ``quantity``, and outcomes."""
    rows = summary.study.rows
    return [row for row in rows if getattr(row, quantity) is not None and summary.study.of(row.name)]


def _line_of_rows(
    axes: Axes,
    summary: Summary,
    places: Iterable[tuple[float, RowInfo]],
    metric: str,
    colour: str,
    label: str,
) -> None:
    places = list(places)
    if not places:
        return
    means = [100 * summary.of(row.name, metric).score.mean for _, row in places]
    axes.plot([place for place, _ in places], means, color=colour, label=label, marker="_", markersize=13)
    dots = [(place, score) for place, row in places for _, score in _scores(summary, row.name, metric)]
    axes.scatter([x for x, _ in dots], [y for _, y in dots], s=24, color=colour, alpha=0.5, zorder=3)
    axes.margins(x=0.12)


def _scores(summary: Summary, row: str, metric: str) -> list[tuple[int, float]]:
    """Seed and score × 100 of every seed that was measured."""
    found = ((seed, 100 * outcome.score(metric)) for seed, outcome in summary.study.of(row).items())
    return [(seed, score) for seed, score in found if math.isfinite(score)]


def _apart(place: int, count: int, width: float) -> float:
    """Places spread evenly over ``width`` about 0."""
    return width * (place / (count - 1) - 0.5) if count > 1 else 0.0


def _broken(name: str) -> str:
    return textwrap.fill(_literal(name), _NAME_WIDTH)


def _literal(name: str) -> str:
    """A name in which matplotlib reads no mathematics."""
    return name.replace("$", r"\$")


def _rows_as_lines(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names, color=INK, fontsize=8.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
