"""Loss curves of the stages, from their metrics.jsonl: rows of ``step``, ``loss``, ``raw/term``, ``share/term``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlkd.errors import VlkdError
from vlkd.report.story import StageRecord
from vlkd.report.style import MUTED, drawing, model_colours, png, term_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TASK_TITLES = {"pretraining": "Pre-training", "captioning": "Captioning", "vqa": "Question answering"}
_OWN_TERMS = ("language", "matching", "captioning", "answers")  # the task's losses; others are distillation's


@dataclass(frozen=True)
class Curve:
    """One stage's metrics as columns: ``columns[name]`` is a list of (step, value)."""

    model: str
    columns: dict[str, list[tuple[int, float]]]

    def terms(self, prefix: str) -> list[str]:
        return [name.removeprefix(prefix) for name in self.columns if name.startswith(prefix)]


def read_curve(stage: StageRecord) -> Curve | None:
    """The stage's metrics, or None when it has none."""
    if stage.metrics is None or not Path(stage.metrics).is_file():
        return None
    columns: dict[str, list[tuple[int, float]]] = {}
    for number, line in enumerate(Path(stage.metrics).read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise VlkdError(
                f"'{stage.metrics}' line {number} is no JSON object ({error.msg}): "
                "delete the stage's folder and run it again."
            ) from error
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                columns.setdefault(name, []).append((row["step"], value))
    return Curve(stage.model, columns) if columns else None


def loss_curves(stages: Sequence[StageRecord], models: Sequence[str]) -> bytes | None:
    """One figure for the stages of one task; None when none left metrics.

    Left: the task's own loss of every model. Then, where a stage distilled: its distillation terms (raw), and
    each term's share of the gradient at the input of the student's last layer.
    """
    curves = [curve for stage in stages if (curve := read_curve(stage))]
    if not curves:
        return None
    colours = model_colours([*models, *(c.model for c in curves if c.model not in models)])
    distilled = [curve for curve in curves if set(curve.terms("raw/")) - set(_OWN_TERMS)]
    columns = 3 if distilled else 1
    with drawing(10 if distilled else 5.4, 3.3, columns=columns) as (figure, axes):
        for curve in curves:
            points = _sum_of_own_terms(curve)
            axes[0].plot(*zip(*points, strict=True), color=colours[curve.model], label=curve.model)
        axes[0].set_title(f"{TASK_TITLES.get(stages[0].task, stages[0].task)}\n(the task's own loss)")
        axes[0].legend(fontsize=8)
        if distilled:
            _distillation_terms(axes[1], distilled[-1])
            _gradient_shares(axes[2], distilled[-1])
        for panel in axes:
            panel.set_xlabel("step")
        return png(figure)


def _sum_of_own_terms(curve: Curve) -> list[tuple[int, float]]:
    """Distillation terms left out, so that runs with and without them share one scale."""
    own = [term for term in curve.terms("raw/") if term in _OWN_TERMS]
    if not own:
        return curve.columns.get("loss", [])
    total: dict[int, float] = {}
    for term in own:
        for step, value in curve.columns[f"raw/{term}"]:
            total[step] = total.get(step, 0.0) + value
    return sorted(total.items())


def _distillation_terms(axes: Axes, curve: Curve) -> None:
    terms = [term for term in curve.terms("raw/") if term not in _OWN_TERMS]
    for place, term in enumerate(terms):
        points = [(step, value) for step, value in curve.columns[f"raw/{term}"] if value > 0]
        if points:
            axes.plot(*zip(*points, strict=True), color=term_colour(term, place), label=term)
    axes.set_yscale("log")
    axes.set_title(f"Distillation losses, raw\n({curve.model})")
    if axes.lines:
        axes.legend(fontsize=8)


def _gradient_shares(axes: Axes, curve: Curve) -> None:
    terms = curve.terms("share/")
    axes.set_title("Share of the gradient, %\n(input of the student's last layer)")
    axes.set_ylim(0, 100)
    if not terms:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=MUTED)
        return
    steps = sorted({step for term in terms for step, _ in curve.columns[f"share/{term}"]})
    columns = [dict(curve.columns[f"share/{term}"]) for term in terms]
    shares = [[100 * column.get(step, 0.0) for step in steps] for column in columns]
    axes.stackplot(
        steps, shares, labels=terms, colors=[term_colour(t, i) for i, t in enumerate(terms)], alpha=0.9,
        edgecolor="white", linewidth=0.6,
    )  # fmt: skip
    axes.margins(x=0)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
