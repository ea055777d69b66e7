"""The table of results, for the terminal and for the page, from one list of columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from vlkd.report.story import CONDITIONS, ModelRow, ReportData
from vlkd.report.style import model_colours

if TYPE_CHECKING:
    from rich.table import Table

METRICS = ("BLEU-1", "BLEU-4", "ROUGE-L", "METEOR", "CIDEr", "SPICE")
_WIDEST_SCORE = 5  # "100.0"
_TERMINAL = ("BLEU-4", "CIDEr", "VQA")
_ABSENT = "–"
_READS = {"picture": "own picture", "none": "no picture", "other": "another picture"}


@dataclass(frozen=True)
class Column:
    """One column: its heading and what it prints of a row; ``score`` columns mark their best value."""

    heading: str
    value: Callable[[ModelRow], float | str]
    score: bool = True

    def cell(self, row: ModelRow) -> str:
        value = self.value(row)
        return value if isinstance(value, str) else hundredfold(value)


def hundredfold(score: float) -> str:
    """Scores print × 100 with one decimal; what was not measured prints as a dash."""
    return f"{100 * score:.1f}" if math.isfinite(score) else _ABSENT


def score_columns(rows: Sequence[ModelRow]) -> list[Column]:
    """Parameters, the caption metrics that were computed, and VQA accuracy, all with the picture."""
    computed = {metric for row in rows for metric in row.captioning.get("picture", {})}
    columns = [Column("parameters", lambda row: f"{row.parameters / 1e6:.2f} M", score=False)]
    columns += [Column(metric, _captioning("picture", metric)) for metric in METRICS if metric in computed]
    if any(row.vqa for row in rows):
        columns.append(Column("VQA", _vqa("picture", "all")))
    return columns


def control_columns(rows: Sequence[ModelRow]) -> list[Column]:
    """CIDEr and VQA accuracy under every condition that was tried; empty without any control."""
    tried = [c for c in CONDITIONS if any(c in row.captioning or c in row.vqa for row in rows)]
    if tried in ([], ["picture"]):
        return []
    columns = []
    if any(row.captioning for row in rows):
        columns += [Column(f"CIDEr, {_READS[c]}", _captioning(c, "CIDEr"), score=False) for c in tried]
    if any(row.vqa for row in rows):
        columns += [Column(f"VQA, {_READS[c]}", _vqa(c, "all"), score=False) for c in tried]
    return columns


def kind_columns(rows: Sequence[ModelRow]) -> list[Column]:
    """VQA accuracy over all questions and for each kind."""
    kinds = dict.fromkeys(kind for row in rows for kind in row.vqa.get("picture", {}))
    return [Column(kind, _vqa("picture", kind)) for kind in kinds]


def _captioning(condition: str, metric: str) -> Callable[[ModelRow], float]:
    return lambda row: row.captioning.get(condition, {}).get(metric, math.nan)


def _vqa(condition: str, kind: str) -> Callable[[ModelRow], float]:
    return lambda row: row.vqa.get(condition, {}).get(kind, math.nan)


def terminal_table(story: ReportData) -> Table:
    """The scores that fit a terminal of 80 columns, for a rich console; the page has all."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = [column for column in score_columns(story.rows) if column.heading in _TERMINAL]
    columns += [column for column in control_columns(story.rows) if _READS["picture"] not in column.heading]
    table = Table(
        title=story.title,
        title_style="bold",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model", overflow="fold", min_width=18)
    for column in columns:
        longest_word = max(map(len, column.heading.split()))
        table.add_column(column.heading, justify="right", width=max(longest_word, _WIDEST_SCORE))
    for row in story.rows:
        table.add_row(Text(row.name), *(column.cell(row) for column in columns))
    return table


def html_table(rows: Sequence[ModelRow], columns: Sequence[Column], *, notes: bool = False) -> str:
    """``<table>``: one line a model in its plots' colour, with its note if asked; the best scores are bold."""
    colours = model_colours([row.name for row in rows])
    best = [_best(rows, column) for column in columns]
    head = "".join(f"<th>{escape(column.heading).replace(', ', ', <br>')}</th>" for column in columns)
    lines = [f"<table><thead><tr><th>model</th>{head}</tr></thead><tbody>"]
    for row in rows:
        cells = (column.cell(row) for column in columns)
        marked = "".join(
            f'<td class="best">{escape(cell)}</td>' if cell == top else f"<td>{escape(cell)}</td>"
            for cell, top in zip(cells, best, strict=True)
        )
        note = f"<small>{escape(row.note)}</small>" if notes and row.note else ""
        lines.append(f"<tr><th>{swatch(colours[row.name])}{escape(row.name)}{note}</th>{marked}</tr>")
    lines.append("</tbody></table>")
    return "".join(lines)


def swatch(colour: str | None) -> str:
    """A small square of a model's colour before its name; nothing for None."""
    return f'<span class="swatch" style="background:{colour}"></span>' if colour else ""


def _best(rows: Sequence[ModelRow], column: Column) -> str | None:
    """What the best cell of a score column prints; None for other columns."""
    values = [value for row in rows if isinstance(value := column.value(row), float) and math.isfinite(value)]
    return hundredfold(max(values)) if column.score and values else None
