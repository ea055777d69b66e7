"""Works in their order, side by side or not; what happens when one fails."""

from __future__ import annotations

import os
import shutil
import signal
import time
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlkd.errors import VlkdError
from vlkd.pipeline import workers
from vlkd.pipeline.method import plan_method
from vlkd.pipeline.workers import Work, do_all
from vlkd.pipeline.workshop import Workshop
from vlkd.recipes import load_recipe
from vlkd.training import train_stage

pytestmark = pytest.mark.slow


def note(workshop, name: str) -> int:
    """Leave a file of this name, which works that come after may ask for."""
    (workshop.folder / name).touch()
    return os.getpid()


def note_after(workshop, name: str, needed: tuple[str, ...]) -> int:
    missing = [one for one in needed if not (workshop.folder / one).exists()]
    assert not missing, missing
    time.sleep(0.05)
    return note(workshop, name)


def fail(workshop, error: Exception) -> None:
    raise error


def die(workshop) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(workshop) -> None:
    time.sleep(600)


def train(workshop, job) -> None:
    train_stage(job.folder, workshop.recipe, job.stage, workshop.data)


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("quick", [])


@pytest.mark.parametrize("workers", [1, 2])
def test_every_work_comes_after_what_it_needs(recipe, tmp_path: Path, workers: int) -> None:
    needs = {"a": (), "b": (), "c": ("a",), "d": ("a", "b"), "e": ("c", "d"), "f": ()}
    works = [Work(name, partial(note_after, name=name, needed=after), after) for name, after in needs.items()]
    pids = do_all(works, Workshop(recipe, tmp_path), workers)
    assert set(pids) == set(needs)
    assert (os.getpid() in pids.values()) == (workers == 1)
    assert len(set(pids.values())) <= workers
    assert not active_children()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_users_mistake_comes_back_as_itself_and_ends_the_rest(recipe, tmp_path: Path, workers: int) -> None:
    works = [
        Work("bad", partial(fail, error=VlkdError("the sentence for the user"))),
        Work("long", sleep),
        Work("never", partial(note, name="never"), ("bad",)),
    ]
    with pytest.raises(VlkdError, match=r"^the sentence for the user$"):
        do_all(works, Workshop(recipe, tmp_path), workers)
    assert not (tmp_path / "never").exists()
    assert not active_children()


def test_any_other_failure_names_the_work_and_shows_where(recipe, tmp_path: Path) -> None:
    works = [Work("broken", partial(fail, error=ZeroDivisionError("inside"))), Work("other", partial(note, name="x"))]
    with pytest.raises(RuntimeError, match=r"broken failed:(.|\n)*in fail(.|\n)*ZeroDivisionError: inside"):
        do_all(works, Workshop(recipe, tmp_path), 2)


def test_a_process_that_dies_is_reported_not_waited_for(recipe, tmp_path: Path) -> None:
    with pytest.raises(VlkdError, match=r"worked on doomed died \(exit status -9.*takes up where it was"):
        do_all([Work("doomed", die), Work("long", sleep)], Workshop(recipe, tmp_path), 2)
    assert not active_children()


def test_an_os_error_comes_back_as_itself(recipe, tmp_path: Path) -> None:
    error = OSError(28, "No space left on device", "/data/run")
    works = [Work("full", partial(fail, error=error)), Work("other", partial(note, name="x"))]
    with pytest.raises(OSError, match="No space left") as caught:
        do_all(works, Workshop(recipe, tmp_path), 2)
    assert (caught.value.errno, caught.value.filename) == (28, "/data/run")


def test_a_worker_ends_with_its_parent() -> None:
    """A killed parent's end of a pipe closes; here the pipe stands for the parent."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        workers._end_with(SimpleNamespace(sentinel=reading))  # type: ignore[arg-type]
        os._exit(77)  # not reached
    os.close(reading)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_a_plan_names_nothing_before_what_it_needs(recipe, tmp_path: Path) -> None:
    plan = plan_method(recipe, tmp_path)
    seen: set[Path] = set()
    for job in plan.jobs:
        assert {job.stage.start, job.stage.teacher} - {None} <= seen, job.name
        seen.add(job.weights)
    assert {weights for model in plan.models.values() for weights in model.folders.values()} <= seen
    assert len({job.name for job in plan.jobs}) == len(plan.jobs) == 12


def test_the_stage_with_the_longest_way_behind_it_comes_first(tmp_path: Path) -> None:
    """The teacher's adaptation, its questions and then the student's are the longest way of the demo."""
    names = [job.name for job in plan_method(load_recipe("demo", []), tmp_path).jobs]
    way = ["teacher/pretrain", "adapted/adapt", "adapted/vqa", "distilled/distill", "distilled/vqa"]
    assert [name for name in names if name in way] == way
    assert names.index("adapted/vqa") < names.index("teacher/vqa") < names.index("student/captioning")


@pytest.mark.slow
def test_trained_bits_do_not_depend_on_the_number_of_processes(quick_run, recipe, tmp_path: Path) -> None:
    """The shared quick run used as many processes as there are cores; here is one."""
    for name in ("regions", "tokenizer"):
        shutil.copytree(quick_run.folder / name, tmp_path / name)
    jobs = {job.name: job for job in plan_method(recipe, tmp_path).jobs}
    works = [
        Work(name, partial(train, job=jobs[name]), after)
        for name, after in (("teacher/pretrain", ()), ("adapted/adapt", ("teacher/pretrain",)))
    ]
    do_all(works, Workshop(recipe, tmp_path), 1)
    for name in ("teacher/pretrain", "adapted/adapt"):
        weights = Path(name) / "model" / "model.safetensors"
        assert (tmp_path / weights).read_bytes() == (quick_run.folder / weights).read_bytes(), name
