"""From what a run left behind to the page's data: scores, differences, sample pictures, attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vlkd.data import VQASet
from vlkd.evaluation import paired_bootstrap, score_notes
from vlkd.models import VLForVQA, load_model
from vlkd.pipeline.examine import Candidate
from vlkd.pipeline.method import TASKS, Job
from vlkd.pipeline.prepared import Prepared
from vlkd.recipes import Recipe
from vlkd.report.attention import attention_example
from vlkd.report.repetition import Repetition
from vlkd.report.story import (
    AnsweredQuestion,
    AttentionExample,
    Comparison,
    ModelRow,
    ReportData,
    Sample,
    StageRecord,
)
from vlkd.runs import Run, versions

_SAMPLES = 6  # the first test pictures, whatever came out
_QUESTIONS = 4  # shown of each
_ATTENTION = 3
#: Pairs of rows whose difference the page shows, first minus second.
COMPARED = (
    ("distilled student", "student"),
    ("adapted teacher", "student"),
    ("adapted teacher", "teacher, not adapted"),
)


def report_data(
    recipe: Recipe,
    prepared: Prepared,
    jobs: Sequence[Job],
    rows: list[Candidate],
    found: dict[str, dict[str, Any]],
    command: str,
    repetition: Repetition | None = None,
) -> ReportData:
    """Everything the page shows, of the test split; sample pictures are its first, not chosen ones.

    ``repetition`` is what several trainings like this one gave, where it is known.
    """
    test = found["test"]
    corpus = prepared.data.corpora["test"]
    captioned = test[rows[0].name].get("captioning", {}).get("picture", {})
    return ReportData(
        title=f"Distilling a visual-linguistic student: {recipe.name}, seed {recipe.seed}",
        rows=tuple(_row(row, test[row.name]) for row in rows),
        validation=tuple(_row(row, found["validation"][row.name]) for row in rows if "validation" in found),
        detectors=prepared.ap50(),
        test_pictures=len(corpus),
        test_questions=sum(map(len, corpus.questions)) - corpus.unanswered(),
        seed=recipe.seed,
        test_seen=len(set(corpus.keys) & set(prepared.data.corpora["train"].keys)),
        comparisons=tuple(
            comparison
            for first, second in COMPARED
            if {first, second} <= test.keys()
            for comparison in _compare(test[first], test[second], first, second)
        ),
        repetition=repetition,
        stages=tuple(_stages(prepared, jobs, found)),
        samples=tuple(_samples(prepared, rows, test)),
        attention=tuple(_attention(recipe, prepared, rows)),
        unavailable=captioned.get("unavailable", {}),
        tokenisation=captioned.get("tokenisation", ""),
        hints=tuple(
            note
            for task in TASKS
            if task in test[rows[0].name]
            for note in score_notes(test[rows[0].name][task]["picture"], task)
        ),
        settings=recipe.model_dump(),
        versions=versions(),
        command=command,
    )


def _row(row: Candidate, examined: dict[str, Any]) -> ModelRow:
    scores = {
        task: {condition: result["scores"] for condition, result in examined.get(task, {}).items()} for task in TASKS
    }
    return ModelRow(row.name, examined["parameters"], scores["captioning"], scores["vqa"], row.note)


def _compare(one: dict[str, Any], other: dict[str, Any], first: str, second: str) -> list[Comparison]:
    comparisons = []
    if "captioning" in one:
        captions = [examined["captioning"]["picture"]["cider_per_picture"] for examined in (one, other)]
        comparisons.append(Comparison("CIDEr", first, second, paired_bootstrap(*captions)))
    if "vqa" in one:
        ours, theirs = (examined["vqa"]["picture"]["accuracy_per_picture"] for examined in (one, other))
        interval = paired_bootstrap(ours, theirs, one["vqa"]["picture"]["questions_per_picture"])
        comparisons.append(Comparison("VQA accuracy", first, second, interval))
    return comparisons


def _stages(prepared: Prepared, jobs: Sequence[Job], found: dict[str, dict[str, Any]]) -> list[StageRecord]:
    names = {"adapted": "adapted teacher", "distilled": "distilled student"}
    records = []
    if prepared.seconds is not None:
        scores = " and ".join(f"{100 * score:.1f} ({role})" for role, score in prepared.ap50().items())
        records.append(
            StageRecord(
                "regions", "regions", "both detectors", prepared.seconds,
                result=f"AP50 {scores}", sessions=prepared.sessions,
            )
        )  # fmt: skip
    for job in jobs:
        results = Run.open(job.folder).results()
        records.append(
            StageRecord(
                job.name,
                job.stage.task,
                names.get(job.model, job.model),
                results["seconds"],
                metrics=job.folder / "metrics.jsonl",
                result=f"{job.stage.schedule.steps} steps of {job.stage.schedule.batch} samples",
                sessions=results.get("sessions", 1),
            )
        )
    exams = [examined for rows in found.values() for examined in rows.values()]
    seconds, sessions = sum(exam["seconds"] for exam in exams), max(exam.get("sessions", 1) for exam in exams)
    records.append(StageRecord("evaluation", "evaluation", "all models", seconds, sessions=sessions))
    return records


def _samples(prepared: Prepared, rows: list[Candidate], test: dict[str, Any]) -> list[Sample]:
    corpus = prepared.data.corpora["test"]
    captioned, answered = (
        {row.name: test[row.name].get(task, {"picture": {what: {}}})["picture"][what] for row in rows}
        for task, what in (("captioning", "captions"), ("vqa", "answers"))
    )
    keys = corpus.keys[:_SAMPLES]
    samples = []
    for index, regions in enumerate(prepared.data.store.read(keys, "paired")):
        questions = tuple(
            AnsweredQuestion(
                question.kind,
                question.text,
                question.answer,
                {name: answers[regions.key][number] for name, answers in answered.items() if regions.key in answers},
            )
            for number, question in enumerate(corpus.questions[index][:_QUESTIONS])
        )
        samples.append(
            Sample(
                regions.key,
                prepared.pixels(regions),
                regions.boxes,
                regions.tags,
                corpus.captions[index],
                {name: captions[regions.key] for name, captions in captioned.items() if regions.key in captions},
                questions,
            )
        )
    return samples


def _attention(recipe: Recipe, prepared: Prepared, rows: list[Candidate]) -> list[AttentionExample]:
    """One question, about a colour where there is one, about each of the first test pictures, through the answering models."""
    data = prepared.data
    if "vqa" not in rows[0].trained.folders:
        return []
    shown = [row for row in rows if row.trained.view == "paired" and row.name != "teacher, not adapted"]
    models = {
        row.name: (load_model(VLForVQA, Path(row.trained.folders["vqa"])), f"{row.trained.role}_regions")
        for row in shown
    }
    view: Literal["paired"] = "paired"
    dataset = VQASet(
        data.corpora["test"], data.store, data.tokenizer, recipe.text, view, answers=data.answer_vocabulary()
    )
    colours = any(question.kind == "colour" for question in dataset.questions)
    examples, seen = [], set()
    for number, (key, question) in enumerate(zip(dataset.keys, dataset.questions, strict=True)):
        if key in seen or (colours and question.kind != "colour"):
            continue
        seen.add(key)
        (regions,) = data.store.read([key], view)
        pixels = prepared.pixels(regions)
        if isinstance(pixels, str):
            continue
        batch = dataset.collator([dataset[number]])
        examples.append(attention_example(models, batch, data.tokenizer, key=key, pixels=pixels, boxes=regions.boxes))
        if len(examples) == _ATTENTION:
            break
    return examples
