"""report.html: one page without any outside file. It says what was compared and what came out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from pathlib import Path

from vlkd.data.vqa_v2 import normalized_answer
from vlkd.evaluation.seeds import LEVEL
from vlkd.report.attention import attention_figure
from vlkd.report.curves import TASK_TITLES, loss_curves
from vlkd.report.document import document, figure_html, folded_settings, image_html
from vlkd.report.pictures import picture_with_boxes
from vlkd.report.plots import difference_intervals, question_kind_names, question_kinds, score_bars
from vlkd.report.repetition import RepeatedDifference
from vlkd.report.story import AttentionExample, Comparison, ReportData, Sample, StageRecord
from vlkd.report.style import model_colours
from vlkd.report.tables import Column, control_columns, html_table, hundredfold, kind_columns, score_columns, swatch
from vlkd.runs import write_atomically

_RESUMED = (
    " The run was stopped and taken up again: times are those of all sessions, with what was done twice; of a session that was "
    "killed, the last moments are not known."
)


def write_page(folder: Path, story: ReportData) -> Path:
    """Write the self-contained ``report.html`` into ``folder`` and return its path."""
    path = Path(folder) / "report.html"
    write_atomically(path, page(story))
    return path


def page(story: ReportData) -> str:
    """The whole page as HTML: style inside, pictures as base64, no link and no script."""
    sections = (
        _header(story),
        _headline(story),
        _results(story),
        _controls(story),
        _kinds(story),
        _detectors(story),
        _training(story),
        _attention(story),
        _samples(story),
        _repeat(story),
    )
    return document(story.title, sections)


def _header(story: ReportData) -> str:
    seen = "which no model saw in training"
    if story.test_seen:
        seen = f"<b>{story.test_seen} of which the models saw in training</b>: scores on those say little"
    questions = f" and <b>{story.test_questions}</b> questions about them" if story.test_questions else ""
    return (
        '<header><p class="eyebrow">vlkd run report</p>'
        f"<h1>{escape(story.title)}</h1>"
        '<p class="lead">A large model that reads pictures and text (the teacher) trains a small one (the student). '
        "Does the student learn more than it does alone?</p>"
        "<p>Teacher and student look at a picture through two different object detectors, so by themselves they see "
        "different regions and cannot be compared token by token. The teacher is therefore first <em>adapted</em>: "
        "it is trained further on its own features of the <em>student’s</em> boxes. Then both read the same tokens, "
        "and the student is trained to copy the teacher’s attention maps and hidden states besides doing its task. "
        "The student it is compared with is the same in everything else: same data, same number of steps, no "
        "teacher. The method is DistillVLM’s (arXiv 2104.02096).</p>"
        f"<p>All numbers below are measured on <b>{story.test_pictures}</b> test pictures{questions}, "
        f"{seen}. Scores are printed × 100.</p></header>"
    )


def _headline(story: ReportData) -> str:
    if not story.comparisons:
        return ""
    pair = (story.comparisons[0].first, story.comparisons[0].second)
    cards = "".join(_comparison_card(each) for each in story.comparisons if (each.first, each.second) == pair)
    image = _captioned(
        difference_intervals(story),
        "Dot: the difference measured. Bar: its bootstrap interval, found by drawing the test pictures again, "
        "both models always on the same pictures.",
    )
    return f'<h2>What distillation changed</h2><div class="cards">{cards}</div>{image}{_certainty(story)}'


def _certainty(story: ReportData) -> str:
    """What the intervals mean, and what other trainings gave where that is known."""
    once = (
        "<h3>How sure is that?</h3><p>The intervals say how much of a difference could be due to <em>which test pictures</em> "
        f"were drawn. They say nothing about other trainings: every model here was trained once, with seed {story.seed}, and "
    )
    known = story.repetition
    if known is None:
        return f"{once}another seed can move the scores by as much as such a difference. One seed is one seed.</p>"
    pairs = [(each, known.of(each.metric, each.first, each.second)) for each in story.comparisons]
    lines = "".join(_repeated_line(here, repeated) for here, repeated in pairs if repeated is not None)
    seeds = known.differences[0].estimate.seeds
    return (
        f"{once}one seed is one seed. The same settings were therefore trained with {seeds} seeds in another world of the same "
        f"kind and compared on its {known.pictures} test pictures:</p>"
        '<div class="scroll"><table><thead><tr><th>difference</th><th style="text-align:left">metric</th><th>this run</th>'
        f"<th>mean of {seeds} trainings</th><th>{100 * LEVEL:.0f} % interval<br>of that mean</th><th>standard deviation<br>of one training</th>"
        f"</tr></thead><tbody>{lines}</tbody></table></div>"
        '<p class="quiet">The interval is Student’s t over seeds, each difference paired by seed; it is about other trainings in that '
        "world, and other pictures move a difference too. "
        f"<code>{escape(known.command)}</code> at commit {escape(known.commit[:10])}.</p>"
    )


def _repeated_line(here: Comparison, repeated: RepeatedDifference) -> str:
    found = repeated.estimate
    mark = ' class="best"' if found.excludes_zero else ""
    return (
        f'<tr><th>{escape(here.first)} minus {escape(here.second)}</th><td class="text">{escape(here.metric)}</td>'
        f"<td>{100 * here.interval.difference:+.1f}</td><td{mark}>{100 * found.mean:+.1f}</td>"
        f"<td>{100 * found.low:+.1f} to {100 * found.high:+.1f}</td><td>{100 * found.deviation:.1f}</td></tr>"
    )


def _comparison_card(comparison: Comparison) -> str:
    interval = comparison.interval
    direction = "up" if interval.low > 0 else "down" if interval.high < 0 else ""
    reading = (
        "Clear on these pictures: the interval excludes 0."
        if interval.excludes_zero
        else "Not told apart from no difference: the interval includes 0."
    )
    return (
        f'<div class="card"><span class="label">{escape(comparison.metric)}</span>'
        f'<b class="{direction}">{100 * interval.difference:+.1f}</b>'
        f"<span>{escape(comparison.first)} minus {escape(comparison.second)}</span>"
        f"<span>{100 * interval.level:.0f} % interval {100 * interval.low:+.1f} to {100 * interval.high:+.1f}, "
        f"{interval.pictures} pictures. {reading}</span></div>"
    )


def _results(story: ReportData) -> str:
    absent = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in story.unavailable.items())
    notes = f'<p class="quiet">Caption metrics are pycocoevalcap’s. Tokenisation: {escape(story.tokenisation)}.</p>'
    notes += "".join(f'<p class="quiet">{escape(hint)}</p>' for hint in story.hints)
    if absent:
        notes += f'<p class="quiet">Not computed:</p><ul class="quiet">{absent}</ul>'
    return (
        f"<h2>Results</h2>{_table(story, score_columns(story.rows), notes=True)}"
        + _captioned(
            score_bars(story.rows), "Every model with its picture (thick bar) and under the two controls (thin bars)."
        )
        + notes
    )


def _controls(story: ReportData) -> str:
    columns = control_columns(story.rows)
    if not columns:
        return ""
    return (
        "<h2>Do the models look at the picture?</h2>"
        "<p>Sentence patterns and likely answers can score without looking. So each model is tested again with its "
        "visual input changed: once no regions and no tags at all, and once those of another picture. "
        "What remains is what language alone earns; the distance to the score with its own picture is what seeing "
        "adds.</p>" + _table(story, columns)
    )


def _kinds(story: ReportData) -> str:
    if not question_kind_names(story.rows):
        return ""
    return (
        "<h2>Kinds of question</h2>"
        + _captioned(question_kinds(story.rows), "Accuracy on each kind; the grey band spans the models.")
        + _table(story, kind_columns(story.rows))
    )


def _detectors(story: ReportData) -> str:
    if not story.detectors:
        return ""
    cards = "".join(
        f'<div class="card"><span class="label">{escape(name)}’s detector</span><b>{hundredfold(value)}</b>'
        "<span>AP50 × 100 on validation pictures</span></div>"
        for name, value in story.detectors.items()
    )
    return (
        "<h2>Detectors</h2><p>Average precision at an overlap of 0.5 (COCO’s definition). The student’s detector is "
        "the smaller one and reads smaller pictures; its boxes and tags are what both models read.</p>"
        f'<div class="cards">{cards}</div>'
    )


def _training(story: ReportData) -> str:
    if not story.stages:
        return ""
    names = [row.name for row in story.rows]
    parts = ["<h2>Training, stage by stage</h2>"]
    for task, title in TASK_TITLES.items():
        image = loss_curves([stage for stage in story.stages if stage.task == task], names)
        if image:
            parts.append(_captioned(image, f"{title}: losses as logged in training."))
    parts.append(_stage_table(story.stages))
    return "".join(parts)


def _stage_table(stages: Iterable[StageRecord]) -> str:
    stages = list(stages)
    lines = "".join(
        f'<tr><th>{escape(stage.name)}</th><td class="text">{escape(stage.model)}</td>'
        f'<td class="text">{escape(stage.result)}</td><td>{_time_of(stage)}</td></tr>'
        for stage in stages
    )
    total = _duration(sum(stage.seconds for stage in stages))
    return (
        '<div class="scroll"><table><thead><tr><th>stage</th><th style="text-align:left">model</th>'
        '<th style="text-align:left">outcome</th><th>time</th></tr></thead>'
        f"<tbody>{lines}<tr><th>all stages, added up</th><td></td><td></td><td>{total}</td></tr></tbody></table></div>"
        "<p>Stages that do not wait for each other run side by side, so the whole took less time than its parts."
        f"{_RESUMED if any(stage.sessions > 1 for stage in stages) else ''}</p>"
    )


def _time_of(stage: StageRecord) -> str:
    sessions = f"<br>in {stage.sessions} sessions" if stage.sessions > 1 else ""
    return f"{_duration(stage.seconds)}{sessions}"


def _attention(story: ReportData) -> str:
    if not story.attention:
        return ""
    figures = "".join(
        f"<figure>{image_html(attention_figure(example), f'attention of one word, picture {example.key}')}"
        f"<figcaption>{escape(example.key)}: “{_sentence(example)}”</figcaption></figure>"
        for example in story.attention
    )
    return (
        "<h2>Where teacher and student look</h2><p>Attention of one word over the regions in the last layer, mean over "
        "heads. The brighter a region is lit, the larger its share of the attention that regions get; the two largest "
        "shares are written on them. The word is the one with which the teacher looks hardest at a single region, "
        f"chosen without regard to the student.</p>{figures}"
    )


def _sentence(example: AttentionExample) -> str:
    """The words as text, special tokens left out, the chosen one bold."""
    text = ""
    for place, word in enumerate(example.words):
        if word.startswith("[") and word.endswith("]"):
            continue
        shown = escape(word.removeprefix("##"))
        gap = "" if word.startswith("##") or word in ",.;:?!" or not text else " "
        text += gap + (f"<b>{shown}</b>" if place == example.word else shown)
    return text


def _samples(story: ReportData) -> str:
    if not story.samples:
        return ""
    colours = model_colours([row.name for row in story.rows])
    return (
        "<h2>Sample pictures</h2><p>Boxes and tags are the student detector’s. "
        'Answers are marked <span class="right">✓ right</span> or <span class="wrong">✗ wrong</span>.</p>'
        + "".join(_sample(sample, colours) for sample in story.samples)
    )


def _sample(sample: Sample, colours: dict[str, str]) -> str:
    if isinstance(sample.pixels, str):
        seen = f"The student’s detector saw: {', '.join(sample.tags)}." if sample.tags else ""
        image = f'<p class="quiet">{escape(f"{sample.pixels} {seen}".strip())}</p>'
    else:
        drawn = picture_with_boxes(sample.pixels, sample.boxes, sample.tags)
        image = image_html(drawn, f"picture {sample.key} with boxes")
    captions = "".join(
        f"<tr><th>{swatch(colours.get(model))}{escape(model)}</th><td>{_text(caption)}</td></tr>"
        for model, caption in sample.captions.items()
    )
    reference = (
        f"one of {len(sample.references)} references: {_text(sample.references[0])}" if sample.references else ""
    )
    return (
        f'<div class="sample"><div>{image}</div><div><h3>{escape(sample.key)}</h3>'
        f'<div class="quiet">{reference}</div>'
        f'<div class="scroll"><table><tbody>{captions}</tbody></table></div></div>{_questions(sample)}</div>'
    )


def _questions(sample: Sample) -> str:
    if not sample.questions:
        return ""
    models = list(dict.fromkeys(model for question in sample.questions for model in question.answers))
    head = "".join(f"<th>{escape(model)}</th>" for model in models)
    lines = "".join(
        f"<tr><td>{_text(question.question)} <b>{escape(question.truth)}</b></td>"
        + "".join(_answer(question.answers.get(model), question.truth) for model in models)
        + "</tr>"
        for question in sample.questions
    )
    return (
        '<div class="questions scroll"><table><thead>'
        f"<tr><th>question, true answer</th>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _text(sentence: str) -> str:
    """A tokenised sentence as HTML, without the blanks that tokenisation put before punctuation."""
    return escape(re.sub(r"\s+([,.;:?!])", r"\1", sentence))


def _answer(answer: str | None, truth: str) -> str:
    if answer is None:
        return "<td>–</td>"
    right = normalized_answer(answer) == normalized_answer(truth)
    mark, name = ("✓", "right") if right else ("✗", "wrong")
    return f'<td class="{name}">{mark} {escape(answer)}</td>'


def _repeat(story: ReportData) -> str:
    versions = " · ".join(f"{escape(name)} {escape(version)}" for name, version in story.versions.items())
    return (
        f"<h2>Repeat it</h2><pre>{escape(story.command)}</pre>"
        f"<p>Seed {story.seed}. The same numbers are in <code>results.json</code> beside this page.</p>"
        f'<p class="quiet">{versions}</p>'
        f"{folded_settings(story.settings)}"
    )


def _table(story: ReportData, columns: list[Column], *, notes: bool = False) -> str:
    return f'<div class="scroll">{html_table(story.rows, columns, notes=notes)}</div>'


def _captioned(png: bytes, caption: str) -> str:
    return figure_html(png, caption, caption)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
