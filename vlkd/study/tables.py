"""A study's tables: Markdown for the docs, CSV for programs, and one for the terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlkd.evaluation.bootstrap import Interval
from vlkd.evaluation.seeds import LEVEL, Estimate
from vlkd.report.tables import hundredfold
from vlkd.study.findings import METRICS, RowInfo, Study
from vlkd.study.statistics import Result, Summary, summarise

if TYPE_CHECKING:
    from rich.table import Table

ABSENT = "–"
PERCENT = f"{100 * LEVEL:.0f} %"
SHORT = {"cider": "CIDEr", "vqa": "VQA"}
_ESTIMATE = ("mean", "deviation", "low", "high", "seeds")
_RESULT_FIELDS = (
    "group", "row", "baseline", "metric", "parameters", *_ESTIMATE,
    *(f"difference_{name}" for name in _ESTIMATE),
    "pictures_low", "pictures_high", "pictures",
)  # fmt: skip


def signed(value: float) -> str:
    """A difference × 100 with its sign and one decimal; what was not measured prints as a dash."""
    return f"{round(100 * value, 1) + 0.0:+.1f}" if math.isfinite(value) else ABSENT  # + 0.0: no "-0.0"


def spread(estimate: Estimate) -> str:
    """``mean ± sample standard deviation``, × 100; one seed prints its score alone."""
    if math.isnan(estimate.deviation):
        return hundredfold(estimate.mean)
    return f"{hundredfold(estimate.mean)} ± {hundredfold(estimate.deviation)}"


def bounds(of: Estimate | Interval | None, *, sign: bool = True) -> str:
    """``[low, high]`` × 100, or a dash where there is no interval."""
    if of is None or math.isnan(of.low):
        return ABSENT
    write = signed if sign else hundredfold
    return f"[{write(of.low)}, {write(of.high)}]"


def change(difference: Estimate | None) -> str:
    """``difference [low, high]``, × 100, the interval over seeds; one seed prints its difference alone."""
    if difference is None:
        return ABSENT
    if math.isnan(difference.low):
        return signed(difference.mean)
    return f"{signed(difference.mean)} {bounds(difference)}"


def millions(summary: Summary, row: str) -> str:
    """Parameters of a row in millions; a dash before its first outcome."""
    outcomes = summary.study.of(row)
    return f"{next(iter(outcomes.values())).parameters / 1e6:.2f} M" if outcomes else ABSENT


def scored_on(study: Study) -> str:
    """How many pictures of which split."""
    return f"{len(study.pictures) or 'the'} {study.split} pictures"


def explanation(study: Study) -> list[str]:
    """What the table's numbers are, as plain sentences: scores, seeds, both kinds of interval."""
    counts = {len(study.of(row.name)) for row in study.rows}
    seeds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(max(counts, default=0))
    return [
        f"Scores are × 100, on {scored_on(study)}. Each row was trained with {seeds} "
        f"{'seed' if seeds == '1' else 'seeds'}; a row gives its mean ± the standard deviation of the sample.",
        f"[low, high] behind a score or a difference is Student's t interval over seeds, {PERCENT}. Differences are to "
        "the row named, paired over the seeds that both have. A single seed has no interval.",
        f"Bootstrap is the {PERCENT} interval of the same difference when the {study.split} pictures are drawn again, "
        "scores averaged over the seeds: it is about the pictures and not about seeds.",
        "The intervals are not corrected for the number of rows: of twenty rows without any effect, one is expected to "
        "exclude 0.",
    ]


def markdown(study: Study) -> str:
    """One Markdown table, the rows under the headings of their groups, with what the intervals are below it."""
    summary = summarise(study)
    headings = ["row", "parameters", "seeds", "compared to"]
    for metric in summary.compared:
        short = SHORT[metric]
        headings += [f"{short} [{PERCENT} t]", f"Δ {short} [{PERCENT} t, seeds]", f"Δ {short} [bootstrap, pictures]"]
    numbers = len(headings) - 4
    lines = [markdown_line(headings), "|" + "|".join(["---", "---:", "---:", "---"] + ["---:"] * numbers) + "|"]
    for group, rows in study.groups().items():
        lines.append(markdown_line([f"**{plain(group)}**"] + [""] * (len(headings) - 1)))
        lines += [markdown_line(_markdown_cells(summary, row)) for row in rows]
    return "\n".join([*lines, "", " ".join(explanation(study))]) + "\n"


def _markdown_cells(summary: Summary, row: RowInfo) -> list[str]:
    seeds = len(summary.study.of(row.name))
    cells = [plain(row.name), millions(summary, row.name), str(seeds), plain(row.baseline or ABSENT)]
    for metric in summary.compared:
        result = summary.of(row.name, metric)
        score = spread(result.score)
        if not math.isnan(result.score.low):
            score += f" {bounds(result.score, sign=False)}"
        cells += [score, change(result.difference), bounds(result.over_test_items)]
    return cells


def markdown_line(cells: Iterable[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def plain(text: str) -> str:
    """Text that can neither end a cell nor be read as HTML."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def table_csv(study: Study) -> str:
    """One line a row and metric, further metrics too, unrounded and in the scores' own scale; unknown is empty."""
    summary = summarise(study)
    lines = [
        {
            "group": row.group,
            "row": row.name,
            "baseline": row.baseline or "",
            "metric": METRICS.get(metric, metric),
            "parameters": next((each.parameters for each in study.of(row.name).values()), ""),
            **_result_fields(summary.of(row.name, metric)),
        }
        for row in study.rows
        for metric in summary.metrics
    ]
    return _csv(_RESULT_FIELDS, lines)


def _result_fields(result: Result) -> dict[str, Any]:
    found = {name: getattr(result.score, name) for name in _ESTIMATE}
    if result.difference is not None:
        found |= {f"difference_{name}": getattr(result.difference, name) for name in _ESTIMATE}
    if (items := result.over_test_items) is not None:
        found |= {"pictures_low": items.low, "pictures_high": items.high, "pictures": items.pictures}
    return found


def runs_csv(study: Study) -> str:
    """One line a row and seed: every score as measured, in its own scale; unknown is empty."""
    names = {metric: METRICS.get(metric, metric) for metric in study.metrics()}
    lines = [
        {"row": row.name, "seed": seed, "parameters": outcome.parameters, "seconds": outcome.seconds}
        | {name: outcome.score(metric) for metric, name in names.items()}
        for row in study.rows
        for seed, outcome in study.of(row.name).items()
    ]
    return _csv(("row", "seed", "parameters", "seconds", *names.values()), lines)


def _csv(header: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    for line in lines:
        unknown = {name: "" for name, value in line.items() if isinstance(value, float) and math.isnan(value)}
        writer.writerow({**line, **unknown})
    return text.getvalue()


def terminal_table(study: Study) -> Table:
    """Scores and differences over seeds for a rich console of 100 columns; the page has all."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    summary = summarise(study)
    table = Table(
        title=Text(study.title),
        title_style="bold",
        title_justify="left",
        caption=f"× 100, mean ± standard deviation; Δ to the baseline, paired by seed, [{PERCENT} t interval over seeds]",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("row", overflow="fold", min_width=18)
    table.add_column("seeds", justify="right", no_wrap=True)
    for metric in summary.compared:
        table.add_column(SHORT[metric], justify="right", no_wrap=True)
        table.add_column(f"Δ {SHORT[metric]}", justify="right", no_wrap=True)
    for group, rows in study.groups().items():
        table.add_section()
        table.add_row(Text(group, style="bold"))
        for row in rows:
            results = [summary.of(row.name, metric) for metric in summary.compared]
            cells = [text for result in results for text in (spread(result.score), change(result.difference))]
            table.add_row(Text(row.name), str(len(study.of(row.name))), *cells)
    return table
