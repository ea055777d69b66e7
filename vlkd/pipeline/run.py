"""`vlkd demo`: every stage of the method in one folder, then the table and the page."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from vlkd.pipeline.examine import candidates, examine_all
from vlkd.pipeline.method import train_all
from vlkd.pipeline.prepare import prepare
from vlkd.pipeline.tell import report_data
from vlkd.recipes import Recipe
from vlkd.report.page import write_page
from vlkd.report.results import write_results
from vlkd.report.tables import terminal_table
from vlkd.runs import Run


def run_method(recipe: Recipe, folder: Path, command: str = "vlkd demo") -> Path:
    """Run, or take up, the whole method and return the path of its page.

    Raises:
        VlkdError: ``folder`` holds a run of other settings, or something that is no run.
    """
    run = Run.begin(folder, recipe.model_dump())
    prepared = prepare(recipe, folder)
    models, done = train_all(recipe, folder, prepared.data)
    rows = candidates(models)
    found = examine_all(recipe, folder, rows, prepared.data)
    story = report_data(recipe, prepared, done, rows, found, command)
    page = write_page(folder, story)
    Console().print(terminal_table(story))
    if not run.finished:
        write_results(folder, story)
    return page
