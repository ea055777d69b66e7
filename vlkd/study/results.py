"""A study's folder of results: raw outcomes, tables, claims, figures and the page, all from the study alone."""

from __future__ import annotations

from pathlib import Path

from vlkd.pipeline.tell import COMPARED
from vlkd.report.repetition import RepeatedDifference, Repetition
from vlkd.runs import write_atomically
from vlkd.study import plots
from vlkd.study.claims import claims_markdown
from vlkd.study.findings import METRICS, Study
from vlkd.study.page import write_page
from vlkd.study.statistics import paired_difference, summarise
from vlkd.study.tables import markdown, runs_csv, table_csv

STUDY = "study.json"
REPETITION = "repetition.json"
FIGURES = {
    "claims.png": plots.claims,
    "seeds.png": plots.seed_strips,
    "queue.png": plots.queue_sizes,
    "data.png": plots.data_shares,
}


def write_results(folder: Path, study: Study) -> Path:
    """Write everything that is told of a study into ``folder`` and return the path of its page.

    ``study.json`` holds all the others are made from: ``write_results(folder, Study.load(folder / "study.json"))`` makes them
    again. What the study has nothing for is left out, and removed where another study left it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (REPETITION, *FIGURES):
        (folder / name).unlink(missing_ok=True)
    study.save(folder / STUDY)
    for name, text in texts(study).items():
        write_atomically(folder / name, text)
    summary = summarise(study)
    for name, draw in FIGURES.items():
        image = draw(summary)
        if image is not None:
            write_atomically(folder / name, image)
    return write_page(folder, study)


def texts(study: Study) -> dict[str, str]:
    """The files that programs and Markdown readers read, by name."""
    found = {
        "table.md": markdown(study),
        "claims.md": claims_markdown(study),
        "table.csv": table_csv(study),
        "runs.csv": runs_csv(study),
    }
    repeated = repetition(study)
    return found | ({REPETITION: repeated.to_json()} if repeated.differences and study.split == "test" else {})


def repetition(study: Study) -> Repetition:
    """What the study says about the differences that a single run's page shows."""
    return Repetition(
        differences=tuple(
            RepeatedDifference(METRICS[metric], first, second, found)
            for first, second in COMPARED
            for metric in METRICS
            if study.row(first) and study.row(second)
            and (found := paired_difference(study, first, second, metric)).seeds > 1
        ),
        settings=study.settings,
        pictures=len(study.pictures),
        command=study.command,
        commit=study.commit,
    )  # fmt: skip
