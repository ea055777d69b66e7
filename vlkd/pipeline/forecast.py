"""How long a run of a packaged recipe will take on this machine, before it begins.

``reference.json`` beside this file has the seconds of every stage as a finished run had them, and how long a step of a small, fixed
model took on that machine. ``python -m vlkd.pipeline.forecast RUN`` writes it anew from a finished run of this machine.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlkd.pipeline.examine import SPLITS, candidates, exam_folder
from vlkd.pipeline.method import plan_method
from vlkd.pipeline.prepare import SPLITS as PICTURES
from vlkd.pipeline.workers import Work, default_workers, few_threads
from vlkd.pipeline.workshop import Workshop
from vlkd.recipes import Recipe, load_recipe
from vlkd.runs import Run, write_atomically

REFERENCE = "reference.json"
_LOW, _HIGH = 0.9, 1.35  # of what is computed: machines differ in more than one figure says
_DETECTORS = 3600.0  # seconds that training both takes
_WARM_UP, _STEPS = 5, 15


def forecast(recipe: Recipe, folder: Path, jobs: int | None = None) -> str:
    """One line: how many minutes, how many stages side by side, and which. What ``folder`` has finished takes no more time.

    Of a recipe whose name has no figures it says no time.
    """
    known, workers = _reference(), jobs or default_workers()
    stages = f"{workers} at a time: {_stages(recipe)}."
    if recipe.name not in known["recipes"]:
        return stages
    works = _works(recipe, folder)
    seconds, done = _seconds(recipe, works, known["recipes"][recipe.name]), _finished(folder, works)
    left = {name: 0.0 if name in done else taken for name, taken in seconds.items()}
    total = left.pop("regions") / workers + makespan(works, left, workers) + seconds["around"]
    rest = "The rest takes about" if done else "About"
    return f"{rest} {_minutes(total * step_seconds() / known['step_seconds'])} on this machine, {stages}"


def makespan(works: Sequence[Work], seconds: Mapping[str, float], workers: int) -> float:
    """Seconds until all works are done, taken in the order in which :func:`~vlkd.pipeline.workers.do_all` takes them."""
    waiting, running, ended, now = list(works), {}, set[str](), 0.0
    while waiting or running:
        for work in [work for work in waiting if ended.issuperset(work.after)][: workers - len(running)]:
            waiting.remove(work)
            running[work.name] = now + seconds[work.name]
        name = min(running, key=running.__getitem__)
        now = running.pop(name)
        ended.add(name)
    return now


def step_seconds() -> float:
    """Of a training step of a small transformer, the same for all time, where the run's models will be trained."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    with torch.random.fork_rng(), few_threads():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).to(device).train()
        optimizer = torch.optim.AdamW(model.parameters())
        inputs = torch.randn(16, 32, 128, device=device)
        taken = []
        for _ in range(_WARM_UP + _STEPS):
            began = time.perf_counter()
            model(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if device is not None and device.type != "cpu":
                torch.accelerator.synchronize()
            taken.append(time.perf_counter() - began)
    return statistics.median(taken[_WARM_UP:])


def _reference() -> dict[str, Any]:
    return json.loads((resources.files("vlkd.pipeline") / REFERENCE).read_text(encoding="utf-8"))


def _works(recipe: Recipe, folder: Path) -> list[Work]:
    """All of a run's works in their order; here they do nothing."""
    plan = plan_method(recipe, folder)
    works = [Work(job.name, _nothing, plan.makers(job.stage.start, job.stage.teacher)) for job in plan.jobs]
    for split in SPLITS:
        for row in candidates(plan.models):
            works.append(Work(f"{split}: {row.name}", _nothing, plan.makers(*row.trained.folders.values())))
    return works


def _nothing(_: Workshop) -> None: ...


def _seconds(recipe: Recipe, works: Sequence[Work], known: Mapping[str, float]) -> dict[str, float]:
    """Of all works, ``regions`` and what is ``around`` them, on the reference machine, by how much more there is to do than usual."""
    usual = load_recipe(recipe.name)
    schedules, found = {job.name: job.stage.schedule for job in plan_method(recipe, Path()).jobs}, {}
    for job in plan_method(usual, Path()).jobs:
        one, other = schedules[job.name], job.stage.schedule
        found[job.name] = known[job.name] * (one.steps * one.batch) / (other.steps * other.batch)
    exams = [work.name for work in works if work.name not in found]
    found |= dict.fromkeys(
        exams, known["evaluation"] / len(exams) * _pictures(recipe, SPLITS) / _pictures(usual, SPLITS)
    )
    found["regions"] = known["regions"] * _pictures(recipe, PICTURES) / _pictures(usual, PICTURES)
    if recipe.detectors.weights == "train":
        found["regions"] += _DETECTORS
    return found | {"around": known["around"]}


def _pictures(recipe: Recipe, splits: Sequence[str]) -> int:
    return sum(getattr(recipe.world, split) for split in splits)


def _finished(folder: Path, works: Sequence[Work]) -> set[str]:
    """Names of the works that are done, and ``regions``."""
    places = {"regions": folder / "regions"}
    for work in works:
        split, colon, row = work.name.partition(": ")
        places[work.name] = exam_folder(folder, split, row) if colon else folder / work.name
    return {name for name, place in places.items() if Run(place).finished}


def _minutes(seconds: float) -> str:
    low = max(1, round(seconds * _LOW / 60))
    return f"{low} to {max(low + 1, round(seconds * _HIGH / 60))} minutes"


def _stages(recipe: Recipe) -> str:
    detectors = "both detectors, " if recipe.detectors.weights == "train" else ""
    models: dict[str, list[str]] = {}
    for job in plan_method(recipe, Path()).jobs:
        models.setdefault(job.model, []).append(job.folder.name)
    trained = ", ".join(f"{model} ({', '.join(names)})" for model, names in models.items())
    return f"{detectors}regions of {_pictures(recipe, PICTURES)} pictures, {trained}, evaluation, page"


def _record(folder: Path) -> None:
    """Take a finished run's seconds into ``reference.json``."""
    run = Run.open(folder)
    stages = {stage["name"]: stage["seconds"] for stage in run.results()["stages"]}
    known, name = _reference(), run.settings()["name"]
    known["recipes"][name] = known["recipes"].get(name, {}) | {key: round(value, 1) for key, value in stages.items()}
    known["step_seconds"] = round(step_seconds(), 5)
    write_atomically(Path(str(resources.files("vlkd.pipeline") / REFERENCE)), json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    _record(Path(sys.argv[1]))
