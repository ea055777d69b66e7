"""`vlkd demo`: every stage of the method in one folder, then the table and the page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from vlkd.pipeline.examine import SPLITS, Candidate, candidates, examine
from vlkd.pipeline.method import Job, Plan, plan_method
from vlkd.pipeline.prepare import prepare
from vlkd.pipeline.tell import report_data
from vlkd.pipeline.workers import Work, do_all
from vlkd.pipeline.workshop import Workshop
from vlkd.recipes import Recipe
from vlkd.report.page import write_page
from vlkd.report.results import write_results
from vlkd.report.tables import terminal_table
from vlkd.runs import Run
from vlkd.training import train_stage


def run_method(recipe: Recipe, folder: Path, command: str = "vlkd demo", jobs: int | None = None) -> Path:
    """Run, or take up, the whole method and return the path of its page.

    Args:
        recipe: everything that is to be done.
        folder: where; made if it is not there.
        command: what the page says it was made by.
        jobs: stages that run side by side, as in :func:`~vlkd.pipeline.workers.do_all`; results do not depend on it.

    Raises:
        VlkdError: ``folder`` holds a run of other settings, or something that is no run.
    """
    run = Run.begin(folder, recipe.settings())
    prepared = prepare(recipe, folder)
    plan = plan_method(recipe, folder)
    rows = candidates(plan.models)
    results = do_all(_works(plan, rows), recipe, folder, jobs)
    found = {split: {row.name: results[_exam_name(row, split)] for row in rows} for split in SPLITS}
    story = report_data(recipe, prepared, plan.jobs, rows, found, command)
    page = write_page(folder, story)
    Console().print(terminal_table(story))
    if not run.finished:
        write_results(folder, story)
    return page


def _works(plan: Plan, rows: list[Candidate]) -> list[Work]:
    """Every training and every examination, each after the trainings whose weights it reads."""
    works = []
    for job in plan.jobs:
        needed = [weights for weights in (job.stage.start, job.stage.teacher) if weights is not None]
        works.append(Work(job.name, partial(_train, job=job), tuple(plan.maker(weights).name for weights in needed)))
    for split in SPLITS:
        for row in rows:
            after = tuple(plan.maker(weights).name for weights in row.trained.folders.values())
            works.append(Work(_exam_name(row, split), partial(examine, row=row, split=split), after))
    return works


def _train(workshop: Workshop, job: Job) -> Any:
    return train_stage(job.folder, workshop.recipe, job.stage, workshop.data)


def _exam_name(row: Candidate, split: str) -> str:
    return f"{split}: {row.name}"
