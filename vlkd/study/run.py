"""Train and examine all rows of a study with all their seeds, and write what came out."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from vlkd.data import Condition
from vlkd.evaluation import Exam as Examination
from vlkd.evaluation import examine_answerer, examine_captioner
from vlkd.locks import locked
from vlkd.models import VLForCaptioning, VLForVQA, load_model
from vlkd.pipeline.preparation import PREPARED, preparation
from vlkd.pipeline.workers import Work, do_all
from vlkd.pipeline.workshop import Workshop
from vlkd.recipes import Recipe, load_recipe
from vlkd.runs import Run, versions
from vlkd.study.findings import Claim, Outcome, RowInfo, Study
from vlkd.study.plan import Exam, SeededJob, StudyPlan
from vlkd.study.results import write_results
from vlkd.study.rows import Row, StudySpec
from vlkd.study.tables import terminal_table
from vlkd.training import train_stage

Split = Literal["validation", "test"]
_CONDITIONS: tuple[Condition, ...] = ("picture",)


def run_study(
    spec: StudySpec,
    folder: Path,
    results: Path,
    *,
    rows: Sequence[str] = (),
    seeds: int | None = None,
    changes: Sequence[str] = (),
    split: Split = "test",
    jobs: int | None = None,
    command: str = "vlkd study ablations",
) -> Path:
    """Run, or take up, a study and return the path of its page.

    Args:
        spec: what is compared.
        folder: where stages and examinations go; what is there already is not done again.
        results: folder that gets what :func:`~vlkd.study.results.write_results` writes.
        rows: names; those that they are compared with are taken too. All without any.
        seeds: at most so many of each row.
        changes: key=value settings of the recipe, for all rows, over those of ``spec``.
        split: what is examined on; settings are chosen on ``validation``.
        jobs: stages side by side; results do not depend on it.
        command: what repeats it.

    Raises:
        VlkdError: no such row, ``folder`` holds a run of other data, or another process is at work in a folder.
        OSError: a folder cannot be written.
    """
    changes = [*spec.changes, *changes]
    recipe = load_recipe(spec.recipe, changes)
    plan = StudyPlan(folder)
    chosen = spec.only(list(rows))
    for row in chosen:
        for seed in spec.seeds_of(row, seeds):
            plan.add(row, load_recipe(spec.recipe, [*changes, *row.changes, f"seed={seed}"]), seed)
    # Both are known to be writable before hours of training.
    with locked(folder), locked(results) if results.resolve() != folder.resolve() else nullcontext():
        works = [*preparation(recipe, folder), *_works(plan, split)]
        found = do_all(works, Workshop(recipe, folder), jobs)
        study = Study(
            title=f"{spec.name}: {recipe.name}",
            split=split,
            rows=tuple(_info(row, load_recipe(spec.recipe, [*changes, *row.changes])) for row in chosen),
            outcomes=tuple(_outcome(exam, found) for exam in plan.exams),
            settings=recipe.model_dump(mode="json"),
            versions=versions(),
            hardware=_hardware(),
            commit=_commit(),
            command=command,
            seconds=sum(found[name] for name in plan.jobs) + sum(found[exam.name]["seconds"] for exam in plan.exams),
            claims=tuple(Claim(**claim.model_dump()) for claim in spec.claims),
            headline=next((row.name for row in chosen if row.main and row.model == "distilled"), ""),
        )
        Console(width=100).print(terminal_table(study))
        return write_results(results, study)


def _works(plan: StudyPlan, split: Split) -> list[Work]:
    """Exams as soon as they can be, so that a stopped study has whole rows."""
    works, placed = [], set[str]()
    for exam in plan.exams:
        for name in _needed(plan, exam.after):
            if name not in placed:
                placed.add(name)
                job = plan.jobs[name]
                works.append(Work(name, partial(_train, job=job), (PREPARED, *job.after)))
        works.append(Work(exam.name, partial(_examine, exam=exam, split=split), exam.after))
    return works


def _needed(plan: StudyPlan, names: Sequence[str]) -> list[str]:
    """Jobs and what they come after, the latter first."""
    found: list[str] = []
    for name in names:
        found += [one for one in [*_needed(plan, plan.jobs[name].after), name] if one not in found]
    return found


def _train(workshop: Workshop, job: SeededJob) -> float:
    """Returns the seconds that it took."""
    train_stage(job.job.folder, job.recipe, job.job.stage, replace(workshop.data, seed=job.seed))
    return Run.open(job.job.folder).results()["seconds"]


def _examine(workshop: Workshop, exam: Exam, split: Split) -> dict[str, Any]:
    data, recipe = workshop.data, exam.recipe
    folder = workshop.folder / "exams" / split / _exam_folder(exam)
    settings = {
        "view": exam.trained.view, "evaluation": recipe.evaluation.model_dump(), "text": recipe.text.model_dump()
    }  # fmt: skip
    digest = hashlib.sha256(data.fingerprint.encode())
    for weights in exam.trained.folders.values():
        digest.update((weights / "model.safetensors").read_bytes())
    run = Run.begin(folder, settings, digest.hexdigest()[:16])
    if not run.finished:
        exam.trained.check(recipe, data)
        run.note_time(at_once=True)
        examination = Examination(recipe, data.corpora[split], data.store, data.tokenizer, data.answer_vocabulary())
        looks = (exam.trained.role, exam.trained.view, examination)
        captioner = load_model(VLForCaptioning, exam.trained.folders["captioning"])
        captions = examine_captioner(captioner, *looks, conditions=_CONDITIONS)["picture"]
        answerer = load_model(VLForVQA, exam.trained.folders["vqa"])
        answers = examine_answerer(answerer, *looks, conditions=_CONDITIONS)["picture"]
        run.finish(parameters=captioner.num_parameters(), captions=captions, answers=answers)
    return run.results()


def _outcome(exam: Exam, found: dict[str, Any]) -> Outcome:
    examined = found[exam.name]
    captions, answers = examined["captions"], examined["answers"]
    kinds = {f"VQA, {kind}": value for kind, value in answers["scores"].items() if kind != "all"}
    return Outcome(
        row=exam.row.name,
        seed=exam.seed,
        parameters=examined["parameters"],
        cider=captions["scores"]["CIDEr"],
        vqa=answers["scores"]["all"],
        seconds=sum(found[name] for name in exam.after) + examined["seconds"],
        scores={name: value for name, value in captions["scores"].items() if name != "CIDEr"} | kinds,
        cider_per_picture=captions["cider_per_picture"],
        accuracy_per_picture=answers["accuracy_per_picture"],
        questions_per_picture=answers["questions_per_picture"],
    )


def _info(row: Row, recipe: Recipe) -> RowInfo:
    queue = recipe.distillation.queue_size if row.group == "Queue" or (row.main and row.model == "distilled") else None
    share = row.share if row.share != 1 or (row.main and row.model in ("student", "distilled")) else None
    return RowInfo(row.name, row.group, row.note, row.baseline, queue, share, row.main)


def _exam_folder(exam: Exam) -> str:
    """Of one model: the same row under other settings has another."""
    kept = "".join(character if character.isalnum() else " " for character in exam.name)
    told = (exam.after, exam.trained.view, exam.recipe.evaluation)
    digest = hashlib.sha256(repr(told).encode()).hexdigest()[:8]
    return f"{'-'.join(kept.split())}-{digest}"


def _hardware() -> str:
    cpu = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
        if cpu.is_file()
        else []
    )
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()


def _commit() -> str:
    """The commit that the package's folder is at, with a + where files differ; empty outside of a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "HEAD")
    return f"{commit}+" if commit and git("status", "--porcelain", "--untracked-files=no") else commit
