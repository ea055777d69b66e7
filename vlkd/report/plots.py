"""The figures of the page: scores, question kinds, detectors, loss curves. Each returns PNG bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vlkd.report.story import ModelRow, ReportData
from vlkd.report.style import CONTROLS, FAINT, INK, MUTED, drawing, model_colours, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CONTROL_LABELS = {"none": "no picture", "other": "another picture"}


def score_bars(rows: Sequence[ModelRow]) -> bytes:
    """CIDEr, VQA accuracy or both, of every model, with the two controls as thin grey bars below each."""
    colours = model_colours([row.name for row in rows])
    captioning = [{c: s.get("CIDEr", math.nan) for c, s in row.captioning.items()} for row in rows]
    answering = [{c: s.get("all", math.nan) for c, s in row.vqa.items()} for row in rows]
    panels = {"Captioning: CIDEr × 100": captioning, "Question answering: accuracy, %": answering}
    panels = {title: scores for title, scores in panels.items() if any(scores)}
    with drawing(10, 0.75 + 0.74 * len(rows), columns=len(panels)) as (figure, panel):
        for axes, (title, scores) in zip(panel, panels.items(), strict=True):
            _bars(axes, rows, scores, colours, title)
            if axes is not panel[0]:
                axes.set_yticklabels([])
        handles = _control_handles({c for row in rows for c in (*row.captioning, *row.vqa)})
        if handles:
            figure.legend(handles=handles, loc="outside lower right", ncols=2, fontsize=8.5, labelcolor=MUTED)
        return png(figure)


def _bars(
    axes: Axes,
    rows: Sequence[ModelRow],
    scores: Sequence[Mapping[str, float]],
    colours: Mapping[str, str],
    title: str,
) -> None:
    """One thick bar a model; its controls as thin bars underneath."""
    for place, (row, score) in enumerate(zip(rows, scores, strict=True)):
        main = 100 * score.get("picture", math.nan)
        axes.barh(place - 0.14, main, height=0.42, color=colours[row.name])
        if math.isfinite(main):
            axes.text(main, place - 0.14, f" {main:.1f}", va="center", fontsize=9, fontweight="bold", color=INK)
        for control, offset in (("none", 0.16), ("other", 0.29)):
            if control in score:
                axes.barh(place + offset, 100 * score[control], height=0.11, color=CONTROLS[control])
    axes.set_title(title)
    axes.set_yticks(range(len(rows)), [row.name for row in rows], color=INK)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.1)


def _control_handles(conditions: set[str]) -> list:
    from matplotlib.patches import Patch

    return [Patch(color=CONTROLS[c], label=_CONTROL_LABELS[c]) for c in CONTROLS if c in conditions]


def question_kinds(rows: Sequence[ModelRow]) -> bytes:
    """Accuracy per question kind: one dot a model on each kind's line, a little apart so that equal ones all show."""
    colours = model_colours([row.name for row in rows])
    kinds = question_kind_names(rows)
    with drawing(10, 1.15 + 0.42 * len(kinds)) as (figure, (axes,)):
        for place, kind in enumerate(kinds):
            found = [100 * row.vqa["picture"][kind] for row in rows if kind in row.vqa.get("picture", {})]
            axes.plot([min(found), max(found)], [place, place], color=FAINT, linewidth=9, zorder=1)
        for number, row in enumerate(rows):
            apart = 0.11 * (number - (len(rows) - 1) / 2)
            points = [(100 * s, kinds.index(k) + apart) for k, s in row.vqa.get("picture", {}).items() if k in kinds]
            axes.scatter(
                *zip(*points, strict=True), s=46, color=colours[row.name], label=row.name, zorder=2,
                edgecolor="white", linewidth=1.1,
            )  # fmt: skip
        axes.set_yticks(range(len(kinds)), kinds, color=INK)
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_title("Accuracy by kind of question, %")
        figure.legend(loc="outside lower center", ncols=3, fontsize=8.5)
        return png(figure)


def question_kind_names(rows: Sequence[ModelRow]) -> list[str]:
    """The kinds that any model was scored on, in alphabetical order."""
    return sorted({kind for row in rows for kind in row.vqa.get("picture", {}) if kind != "all"})


def difference_intervals(story: ReportData) -> bytes:
    """Each comparison's difference with its bootstrap interval, in points; the zero line is no difference."""
    compared = story.comparisons
    with drawing(10, 0.9 + 0.5 * len(compared)) as (figure, (axes,)):
        axes.axvline(0, color=MUTED, linewidth=1)
        for place, comparison in enumerate(compared):
            low, mid, high = (
                100 * v for v in (comparison.interval.low, comparison.interval.difference, comparison.interval.high)
            )
            colour = "#5b8c5a" if low > 0 else "#d1435b" if high < 0 else MUTED
            axes.plot([low, high], [place, place], color=colour, linewidth=5, alpha=0.35)
            axes.plot([mid], [place], "o", color=colour, markersize=8)
            axes.annotate(
                f"{mid:+.1f}  [{low:+.1f}, {high:+.1f}]", (high, place), xytext=(8, 0), va="center",
                textcoords="offset points", fontsize=9,
            )  # fmt: skip
        labels = [f"{c.metric}: {c.first}\nminus {c.second}" for c in compared]
        axes.set_yticks(range(len(compared)), labels, color=INK, fontsize=8.5)
        axes.set_ylim(len(compared) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.25)
        level = compared[0].interval.level
        axes.set_title(f"Differences in points, with {100 * level:.0f} % bootstrap intervals over test pictures")
        return png(figure)
