"""page.html: one page without any outside file. Does distillation help, how sure is it, and what of it helps?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from vlkd.evaluation.bootstrap import Interval
from vlkd.evaluation.seeds import Estimate
from vlkd.report.document import document, figure_html, folded_settings
from vlkd.runs import write_atomically
from vlkd.study.claims import found_of
from vlkd.study.findings import METRICS, RowInfo, Study
from vlkd.study.plots import claims, data_shares, differences, queue_sizes, seed_strips
from vlkd.study.statistics import Result, Summary, summarise
from vlkd.study.tables import ABSENT, PERCENT, SHORT, bounds, explanation, millions, scored_on, signed, spread

_CSS = """
.study th, .study td { padding:9px; }
.study tbody th { white-space:normal; min-width:200px; }
.study tbody th small { margin-left:0; }
.study td { white-space:nowrap; }
.study td small { display:block; font-weight:400; font-size:.8rem; }
.study tr.group th { color:var(--accent); padding-top:20px; }
"""


_HOW_DRAWN = (
    "Dot: the mean difference. Thick bar: Student’s t interval over seeds. Thin line: bootstrap interval over pictures. Green and "
    "red: the interval over seeds excludes 0."
)


def write_page(folder: Path, study: Study) -> Path:
    """Write the self-contained ``page.html`` into ``folder`` and return its path."""
    path = Path(folder) / "page.html"
    write_atomically(path, page(study))
    return path


def page(study: Study) -> str:
    """The whole page as HTML: style inside, pictures as base64, no link and no script."""
    summary = summarise(study)
    sections = (
        _header(summary),
        _headline(summary),
        _table(summary),
        _claims(summary),
        _forests(summary),
        _seeds(summary),
        _queue(summary),
        _data(summary),
        _repeat(summary),
    )
    return document(study.title, sections, _CSS)


def _header(summary: Summary) -> str:
    study = summary.study
    chosen = ""
    if study.split == "validation":
        chosen = " Settings are chosen on these pictures, so the scores are no test of them."
    return (
        '<header><p class="eyebrow">vlkd study</p>'
        f"<h1>{escape(study.title)}</h1>"
        f'<p class="lead">{_count(len(study.rows), "row")}, {_count(len(study.outcomes), "training")}, scored on '
        f"{scored_on(study)}.{chosen}</p></header>"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _headline(summary: Summary) -> str:
    row = summary.study.row(summary.study.headline)
    if row is None or row.baseline is None or summary.study.row(row.baseline) is None:
        return ""
    results = {metric: summary.of(row.name, metric) for metric in summary.compared}
    cards = "".join(_card(row, METRICS[metric], result) for metric, result in results.items())
    verdicts = " ".join(_verdict(METRICS[metric], result.difference) for metric, result in results.items())
    return f'<h2>Does distillation help?</h2><p class="lead">{verdicts}</p><div class="cards">{cards}</div>'


def _verdict(metric: str, difference: Estimate | None) -> str:
    """The answer in one sentence; without an interval over seeds there is none."""
    if difference is None or difference.seeds == 0:
        return f"{metric}: not measured."
    if difference.seeds == 1:
        return f"{metric}: one seed cannot tell."
    if not difference.excludes_zero:
        return f"{metric}: not resolved, the interval over {difference.seeds} seeds includes 0."
    answer = "yes" if difference.low > 0 else "no, it hurts"
    return f"{metric}: {answer}, the interval over {difference.seeds} seeds excludes 0."


def _card(row: RowInfo, metric: str, result: Result) -> str:
    difference, items = result.difference, result.over_test_items
    if difference is None or math.isnan(difference.mean):
        return ""
    direction = "up" if difference.low > 0 else "down" if difference.high < 0 else ""
    number = _count(difference.seeds, "seed")
    seeds = f"Over {number}: no interval."
    if difference.seeds > 1:
        seeds = f"{PERCENT} t interval over {number}: {_from_to(difference)}, {_zero(difference)}."
    pictures = ""
    if items is not None:
        pictures = f"<span>Bootstrap over {items.pictures} pictures: {_from_to(items)}, {_zero(items)}.</span>"
    return (
        f'<div class="card"><span class="label">{metric}</span><b class="{direction}">{signed(difference.mean)}</b>'
        f"<span>{escape(row.name)} minus {escape(row.baseline or '')}</span><span>{seeds}</span>{pictures}</div>"
    )


def _from_to(interval: Estimate | Interval) -> str:
    return f"{signed(interval.low)} to {signed(interval.high)}"


def _zero(interval: Estimate | Interval) -> str:
    return "excludes 0" if interval.excludes_zero else "includes 0"


def _table(summary: Summary) -> str:
    head = "".join(f"<th>{SHORT[metric]}</th><th>Δ {SHORT[metric]}</th>" for metric in summary.compared)
    width = 3 + 2 * len(summary.compared)
    lines = []
    for group, rows in summary.study.groups().items():
        lines.append(f'<tr class="group"><th colspan="{width}">{escape(group)}</th></tr>')
        lines += [_table_line(summary, row) for row in rows]
    sentences = [*explanation(summary.study), "Bold: the interval over seeds excludes 0."]
    notes = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return (
        '<h2>All rows</h2><div class="scroll study"><table>'
        f"<thead><tr><th>row</th><th>parameters</th><th>seeds</th>{head}</tr></thead>"
        f'<tbody>{"".join(lines)}</tbody></table></div><ul class="quiet">{notes}</ul>'
    )


def _table_line(summary: Summary, row: RowInfo) -> str:
    notes = [f"{row.note.rstrip('.')}."] if row.note else []
    if row.baseline is not None:
        notes.append(f"Compared to: {row.baseline}.")
    note = f"<small>{escape(' '.join(notes))}</small>" if notes else ""
    cells = [millions(summary, row.name), str(len(summary.study.of(row.name)))]
    marked = "".join(f"<td>{cell}</td>" for cell in cells)
    for metric in summary.compared:
        marked += _result_cells(summary.of(row.name, metric))
    return f"<tr><th>{escape(row.name)}{note}</th>{marked}</tr>"


def _result_cells(result: Result) -> str:
    score = f"<td>{spread(result.score)}{_small(bounds(result.score, sign=False))}</td>"
    difference = result.difference
    if difference is None:
        return f"{score}<td>{ABSENT}</td>"
    mark = ' class="best"' if difference.excludes_zero else ""
    seeds, pictures = bounds(difference), bounds(result.over_test_items)
    return f"{score}<td{mark}>{signed(difference.mean)}{_small(seeds, 'seeds ')}{_small(pictures, 'bootstrap ')}</td>"


def _small(text: str, before: str = "") -> str:
    return "" if text == ABSENT else f"<small>{before}{text}</small>"


def _claims(summary: Summary) -> str:
    lines = "".join(
        f"<tr><th>{escape(one.claim.text)}<small>{escape(f'{one.claim.first} minus {one.claim.second}.')} "
        f"{escape(f'The paper: {one.claim.paper}.' if one.claim.paper else '')}</small></th><td>{SHORT[one.metric]}</td>"
        f"<td>{signed(one.difference.mean)}{_small(bounds(one.difference), 'seeds ')}"
        f"{_small(bounds(one.over_test_items), 'bootstrap ')}</td><td>{one.verdict}</td></tr>"
        for one in found_of(summary.study)
    )
    image = claims(summary)
    if image is None:
        return ""
    return (
        "<h2>The paper’s claims</h2><p>Each says that one row is better than another. The verdict is that of the interval over "
        'seeds; what includes 0 is not resolved at this size.</p><div class="scroll study"><table><thead><tr><th>claim</th>'
        f"<th>metric</th><th>difference</th><th>verdict</th></tr></thead><tbody>{lines}</tbody></table></div>"
        + figure_html(image, "Claims", _HOW_DRAWN)
    )


def _forests(summary: Summary) -> str:
    figures = []
    for group, rows in summary.study.groups().items():
        image = differences(summary, rows)
        if image is not None:
            figures.append(f"<h3>{escape(group)}</h3>{figure_html(image, f'Differences: {group}', _compared_to(rows))}")
    if not figures:
        return ""
    return f"<h2>Differences to the baseline</h2><p>{_HOW_DRAWN} Every group has its own scale.</p>{''.join(figures)}"


def _compared_to(rows: Sequence[RowInfo]) -> str:
    """Which row is subtracted from which, in one sentence."""
    by_baseline: dict[str, list[str]] = {}
    for row in rows:
        if row.baseline is not None:
            by_baseline.setdefault(row.baseline, []).append(row.name)
    if len(by_baseline) == 1:
        return f"Minus: {next(iter(by_baseline))}."
    return "; ".join(f"{' and '.join(names)} minus {baseline}" for baseline, names in by_baseline.items()) + "."


def _seeds(summary: Summary) -> str:
    text = "Every dot is one training; dots at the same height within their rows share a seed. The bar is the mean."
    return _section("Seed by seed", text, seed_strips(summary))


def _queue(summary: Summary) -> str:
    text = "Dots are seeds; the line joins the means."
    return _section("Size of the queue", text, queue_sizes(summary))


def _data(summary: Summary) -> str:
    text = "Both students of a share read the same pictures. Dots are seeds; the lines join the means."
    return _section("Share of the data", text, data_shares(summary))


def _section(title: str, text: str, image: bytes | None) -> str:
    return "" if image is None else f"<h2>{title}</h2><p>{text}</p>{figure_html(image, title)}"


def _repeat(summary: Summary) -> str:
    study = summary.study
    facts: Sequence[tuple[str, str]] = (
        ("commit", study.commit),
        ("hardware", study.hardware),
        ("all stages, added up", f"{study.seconds / 3600:.2f} h" if study.seconds else ""),
        ("versions", " · ".join(f"{name} {version}" for name, version in study.versions.items())),
    )
    listed = "".join(f"<li>{name}: {escape(value)}</li>" for name, value in facts if value)
    return (
        f"<h2>Repeat it</h2><pre>{escape(study.command)}</pre>"
        f'<ul class="quiet">{listed}</ul>'
        f"{folded_settings(study.settings)}"
    )
