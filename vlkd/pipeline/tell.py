"""From what a run left behind to the page's data: scores, differences, sample pictures, attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vlkd.data import AnswerVocabulary, VQASet
from vlkd.evaluation import paired_bootstrap
from vlkd.models import VLForVQA, load_model
from vlkd.pipeline.examine import Candidate
from vlkd.pipeline.method import Job
from vlkd.pipeline.prepare import Prepared
from vlkd.recipes import Recipe
from vlkd.regions import Regions
from vlkd.report.attention import attention_example
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
from vlkd.scenes import make_picture

_SAMPLES = 6  # the first test pictures, whatever came out
_QUESTIONS = 4  # shown of each
_ATTENTION = 3
_COMPARED = (
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
) -> ReportData:
    """Everything the page shows, of the test split; sample pictures are its first, not chosen ones."""
    test = found["test"]
    corpus = prepared.data.corpora["test"]
    first = test[rows[0].name]
    return ReportData(
        title=f"Distilling a visual-linguistic student: {recipe.name}, seed {recipe.seed}",
        rows=tuple(_row(row, test[row.name]) for row in rows),
        validation=tuple(_row(row, found["validation"][row.name]) for row in rows),
        detectors=prepared.ap50,
        test_pictures=len(corpus),
        test_questions=sum(len(questions) for questions in corpus.questions),
        seed=recipe.seed,
        comparisons=tuple(
            comparison
            for first_name, second_name in _COMPARED
            for comparison in _compare(test, first_name, second_name)
        ),
        stages=tuple(_stages(prepared, jobs, found)),
        samples=tuple(_samples(recipe, prepared, rows, test)),
        attention=tuple(_attention(recipe, prepared, rows)),
        unavailable=first["captioning"]["picture"]["unavailable"],
        tokenisation=first["captioning"]["picture"]["tokenisation"],
        settings=recipe.model_dump(),
        versions=versions(),
        command=command,
    )


def _row(row: Candidate, examined: dict[str, Any]) -> ModelRow:
    scores = {
        task: {condition: result["scores"] for condition, result in examined[task].items()}
        for task in ("captioning", "vqa")
    }
    return ModelRow(row.name, examined["parameters"], scores["captioning"], scores["vqa"], row.note)


def _compare(test: dict[str, Any], first: str, second: str) -> list[Comparison]:
    captions = [test[name]["captioning"]["picture"]["cider_per_picture"] for name in (first, second)]
    answers = [test[name]["vqa"]["picture"]["accuracy_per_picture"] for name in (first, second)]
    asked = test[first]["vqa"]["picture"]["questions_per_picture"]
    return [
        Comparison("CIDEr", first, second, paired_bootstrap(captions[0], captions[1])),
        Comparison("VQA accuracy", first, second, paired_bootstrap(answers[0], answers[1], asked)),
    ]


def _stages(prepared: Prepared, jobs: Sequence[Job], found: dict[str, dict[str, Any]]) -> list[StageRecord]:
    ap50 = prepared.ap50
    regions = f"AP50 {100 * ap50['student']:.1f} (student) and {100 * ap50['teacher']:.1f} (teacher)"
    names = {"adapted": "adapted teacher", "distilled": "distilled student"}
    records = [StageRecord("regions", "regions", "both detectors", prepared.seconds, result=regions)]
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
            )
        )
    seconds = sum(examined["seconds"] for rows in found.values() for examined in rows.values())
    records.append(StageRecord("evaluation", "evaluation", "all models", seconds))
    return records


def _samples(recipe: Recipe, prepared: Prepared, rows: list[Candidate], test: dict[str, Any]) -> list[Sample]:
    corpus = prepared.data.corpora["test"]
    keys = corpus.keys[:_SAMPLES]
    samples = []
    for index, regions in enumerate(prepared.data.store.read(keys, "paired")):
        questions = tuple(
            AnsweredQuestion(
                question.kind,
                question.text,
                question.answer,
                {row.name: test[row.name]["vqa"]["picture"]["answers"][regions.key][number] for row in rows},
            )
            for number, question in enumerate(corpus.questions[index][:_QUESTIONS])
        )
        samples.append(
            Sample(
                regions.key,
                make_picture(recipe.seed, "test", index, size=recipe.world.picture_size).pixels,
                regions.boxes,
                regions.tags,
                corpus.captions[index],
                {row.name: test[row.name]["captioning"]["picture"]["captions"][regions.key] for row in rows},
                questions,
            )
        )
    return samples


def _attention(recipe: Recipe, prepared: Prepared, rows: list[Candidate]) -> list[AttentionExample]:
    """One colour question about each of the first test pictures that has one, through the answering models."""
    data = prepared.data
    shown = [row for row in rows if row.trained.view == "paired" and row.name != "teacher, not adapted"]
    models = {
        row.name: (load_model(VLForVQA, Path(row.trained.folders["vqa"])), f"{row.trained.role}_regions")
        for row in shown
    }
    answers = AnswerVocabulary.of_corpus(data.corpora["train"])
    view: Literal["paired"] = "paired"
    dataset = VQASet(data.corpora["test"], data.store, data.tokenizer, recipe.text, view, answers=answers)
    examples, seen = [], set()
    for number, (key, question) in enumerate(zip(dataset.keys, dataset.questions, strict=True)):
        if key in seen or question.kind != "colour":
            continue
        seen.add(key)
        (regions,) = data.store.read([key], view)
        assert not isinstance(regions, Regions)
        pixels = make_picture(recipe.seed, "test", data.corpora["test"].keys.index(key), size=recipe.world.picture_size)
        batch = dataset.collator([dataset[number]])
        examples.append(
            attention_example(models, batch, data.tokenizer, key=key, pixels=pixels.pixels, boxes=regions.boxes)
        )
        if len(examples) == _ATTENTION:
            break
    return examples
