"""Every stage of the method in one folder, then the table and the page."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from vlkd.errors import VlkdError
from vlkd.locks import locked
from vlkd.models import Layout, read_card
from vlkd.models.card import check_is, check_start
from vlkd.pipeline.examine import SPLITS, Candidate, candidates, examine
from vlkd.pipeline.forecast import forecast
from vlkd.pipeline.imported import check_images
from vlkd.pipeline.method import TASKS, TEXTS, Job, Plan, Task, plan_method
from vlkd.pipeline.preparation import PREPARED, measuring, preparation
from vlkd.pipeline.tell import report_data
from vlkd.pipeline.workers import Work, do_all
from vlkd.pipeline.workshop import Workshop
from vlkd.recipes import CHANGES_NO_NUMBER, Recipe
from vlkd.report.page import write_page
from vlkd.report.repetition import known_repetition
from vlkd.report.results import write_results
from vlkd.report.tables import terminal_table
from vlkd.runs import Run
from vlkd.training import StageData, train_stage
from vlkd.training.arguments import process_state
from vlkd.training.cards import check_shape
from vlkd.training.run import weights_hash


def run_method(
    recipe: Recipe,
    folder: Path,
    command: str = "vlkd demo",
    jobs: int | None = None,
    *,
    imported: Path | None = None,
    images: Path | None = None,
    start: Path | None = None,
) -> Path:
    """Run, or take up, the whole method and return the path of its page.

    With imported data, the tasks are those that both the training and the test texts are for, and under ``torchrun`` every
    stage is trained by all processes; the first one evaluates.

    Args:
        recipe: everything that is to be done.
        folder: where; made if it is not there.
        command: what the page says it was made by.
        jobs: stages that run side by side, as in :func:`~vlkd.pipeline.workers.do_all`; results do not depend on it.
        imported: folder that ``vlkd data import`` or ``vlkd regions`` filled; without one, the recipe's world is rendered.
        images: folder of the imported data's pictures, which the page then shows.
        start: folder of a pre-trained teacher, whose pre-training is then not done.

    Raises:
        VlkdError: ``folder`` holds a run of other settings, or something that is no run; the data lack a test split; ``images``
            holds none of the data's pictures; another process is at work in ``folder``.
        OSError: ``folder`` cannot be written, or its disk is full.
    """
    state = process_state()
    if imported is None and state.num_processes > 1:
        raise VlkdError(
            "The rendered world is small: run it in one process; --jobs trains several stages side by side."
        )
    workshop = Workshop(recipe, folder, imported, images)
    settings, fingerprint = recipe.settings(), ""
    unfinished = not Run(folder).finished
    if start is not None:
        if unfinished:
            check_is(read_card(start), start, task="pretraining", role="teacher")
        settings["start_weights"] = weights_hash(start)
    if imported is not None:
        fingerprint = workshop.data.fingerprint
        _tasks(workshop.data)  # data that lack something are refused before a folder is made
        if images is not None:
            check_images(images, workshop.data)
        if start is not None and unfinished:
            layout = Layout.of(recipe.text)
            card = read_card(start)
            check_start(card, start, "pretraining", "teacher", workshop.data.identity, layout)
            check_shape(start, "teacher", recipe)
            check_is(card, start, view="own" if "own" in workshop.data.store.views else None)
    with locked(folder) if state.is_main_process else nullcontext():
        with state.main_process_first():
            run = Run(folder)
            if state.is_main_process:
                run = Run.begin(folder, settings, fingerprint, CHANGES_NO_NUMBER)
        return _run_all(run, workshop, command, jobs, start)


def _run_all(run: Run, workshop: Workshop, command: str, jobs: int | None, start: Path | None) -> Path:
    """What :func:`run_method` does in a folder that is its own."""
    state, recipe, folder, imported = process_state(), workshop.recipe, workshop.folder, workshop.imported
    if imported is None:  # every text and every region is there once it is rendered
        if not run.finished:
            Console(stderr=True, soft_wrap=True).print(forecast(recipe, folder, jobs), highlight=False)
        first, tasks, own, splits = preparation(recipe, folder), TASKS, True, SPLITS
    else:
        data, first = workshop.data, []
        tasks, own = _tasks(data), "own" in data.store.views
        splits = [split for split in SPLITS if split in data.corpora and all(_has(data, split, task) for task in tasks)]
        cut = [] if run.finished else [note for task in tasks for note in data.cut(recipe, task)]
        notes = [*_untested(data), *filter(None, map(data.left_out, tasks)), *dict.fromkeys(cut)]
        for note in notes if state.is_main_process else ():
            Console().print(note, highlight=False)
    plan = plan_method(recipe, folder, tasks, own, start)
    rows = candidates(plan.models)
    works = [*first, *_trainings(plan, (PREPARED,) if first else ())]
    if state.is_main_process:
        works += _examinations(plan, rows, splits)
        works += measuring() if imported is None else []
    results = do_all(works, replace(workshop), jobs if state.num_processes == 1 else 1)
    if not state.is_main_process:
        return folder / "report.html"
    found = {split: {row.name: results[_exam_name(row, split)] for row in rows} for split in splits}
    repetition = known_repetition(recipe) if imported is None and start is None else None
    story = report_data(recipe, workshop.prepared, plan.jobs, rows, found, command, repetition)
    page = write_page(folder, story)
    Console().print(terminal_table(story))
    for hint in story.hints:
        Console().print(hint, highlight=False)
    if not run.finished:
        write_results(folder, story)
    return page


def _tasks(data: StageData) -> tuple[Task, ...]:
    """What both the training texts and the test texts are for; questions count where they have answers."""
    if "test" not in data.corpora:
        raise VlkdError(
            "The data have no test split, which all models are compared on: add one with `vlkd data texts … --split test`."
        )
    tasks: list[Task] = [task for task in TASKS if _has(data, "train", task) and _has(data, "test", task)]
    if not tasks:
        raise VlkdError(
            "The training and the test texts share no task: give both captions, or both questions with answers."
        )
    for task in tasks:
        if len(data.corpora["test"].with_texts(TEXTS[task])) < 2:
            raise VlkdError(
                f"The test texts for {task} are about one picture, but all models are compared with another's too: add texts of a "
                "second one with `vlkd data texts … --split test`."
            )
    return tuple(tasks)


def _untested(data: StageData) -> list[str]:
    """A sentence about each task that is left out because the test texts are not for it."""
    lacking = {"captioning": "captions", "vqa": "questions with answers"}
    left_out = [task for task in TASKS if _has(data, "train", task) and not _has(data, "test", task)]
    return [f"Left out: {task}, for the test texts have no {lacking[task]}." for task in left_out]


def _has(data: StageData, split: str, task: Task) -> bool:
    corpus = data.corpora[split]
    unanswered = corpus.unanswered() if task == "vqa" else 0
    return sum(map(len, getattr(corpus, TEXTS[task]))) > unanswered


def _trainings(plan: Plan, first: tuple[str, ...]) -> list[Work]:
    """Each after ``first`` and those whose weights it reads."""
    return [
        Work(job.name, partial(_train, job=job), (*first, *plan.makers(job.stage.start, job.stage.teacher)))
        for job in plan.jobs
    ]


def _examinations(plan: Plan, rows: list[Candidate], splits: Sequence[str]) -> list[Work]:
    """Of every row on every split, after the trainings of its model."""
    return [
        Work(_exam_name(row, split), partial(examine, row=row, split=split), plan.makers(*row.trained.folders.values()))
        for split in splits
        for row in rows
    ]


def _train(workshop: Workshop, job: Job) -> Any:
    return train_stage(job.folder, workshop.recipe, job.stage, workshop.data)


def _exam_name(row: Candidate, split: str) -> str:
    return f"{split}: {row.name}"
