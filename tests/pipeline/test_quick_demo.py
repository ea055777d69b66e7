"""`vlkd demo --quick`: every stage's real output is there, and the command keeps its promises when given again."""

import json
import os
import re
import shutil
import signal
import time

import fresh_process
import pytest

from vlkd.evaluation.seeds import Estimate
from vlkd.pipeline import run_method
from vlkd.recipes import load_recipe
from vlkd.report.repetition import RepeatedDifference, Repetition

pytestmark = pytest.mark.slow

ROWS = ["teacher", "teacher, not adapted", "adapted teacher", "student", "distilled student"]


@pytest.fixture(scope="module")
def results(quick_run):
    return json.loads((quick_run.folder / "results.json").read_text())


def test_it_takes_two_minutes_of_two_cores_at_most(quick_run):
    """Processor time, so that a busy machine does not decide."""
    assert quick_run.processor_seconds <= 2 * 120


def test_it_warns_of_nothing(quick_run):
    """Neither Python nor a library tells the newcomer about code that is not theirs."""
    assert [
        line for line in quick_run.errors.splitlines() if "warn" in line.lower() or "deprecat" in line.lower()
    ] == []


def test_every_model_is_scored_on_both_tasks_under_every_condition(results):
    assert [row["model"] for row in results["rows"]] == ROWS
    for row in results["rows"]:
        for task, metric in (("captioning", "CIDEr"), ("vqa", "all")):
            assert set(row[task]) == {"picture", "none", "other"}
            assert all(0 <= scores[metric] <= 10 for scores in row[task].values())
    assert results["rows"][0]["parameters"] > results["rows"][-1]["parameters"]


def test_the_strong_detector_is_the_teachers(results):
    assert results["detectors_ap50"]["teacher"] > results["detectors_ap50"]["student"] > 0.2


def test_every_stage_left_its_metrics(quick_run):
    for stage in ("teacher/pretrain", "adapted/adapt", "student/pretrain", "distilled/distill", "distilled/vqa"):
        rows = [json.loads(line) for line in (quick_run.folder / stage / "metrics.jsonl").read_text().splitlines()]
        assert rows[-1]["step"] == rows[-1]["step"] and len(rows) >= 2
        assert all(0 <= row["loss"] < 100 for row in rows)
    terms = {name for name in rows[-1] if name.startswith("raw/")}
    assert terms == {"raw/answers", "raw/attention", "raw/hidden", "raw/classes"}


def test_the_page_stands_alone_and_shows_the_numbers_of_results_json(quick_run, results):
    page = (quick_run.folder / "report.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#|https://arxiv\.org)', page)
    assert page.count("data:image/png;base64,") >= 6
    for row in results["rows"]:
        assert f"{100 * row['vqa']['picture']['all']:.1f}" in page
        assert f"{100 * row['captioning']['picture']['CIDEr']:.1f}" in page


def test_the_terminal_shows_the_table(quick_run, results):
    assert "distilled student" in quick_run.output
    assert f"{100 * results['rows'][-1]['vqa']['picture']['all']:.1f}" in quick_run.output


def test_a_finished_run_is_reported_again_and_left_as_it_is(quick_run, vlkd):
    before = (quick_run.folder / "results.json").read_bytes()
    weights = quick_run.folder / "distilled" / "vqa" / "model" / "model.safetensors"
    modified = weights.stat().st_mtime_ns
    again = vlkd("demo", "--quick", "--out", quick_run.folder)
    assert again.returncode == 0 and "distilled student" in again.stdout
    assert (quick_run.folder / "results.json").read_bytes() == before
    assert weights.stat().st_mtime_ns == modified


def test_what_several_trainings_gave_is_told_where_it_is_known(quick_run, monkeypatch, tmp_path):
    folder = tmp_path / "quick"
    shutil.copytree(quick_run.folder, folder)
    pair = ("distilled student", "student")
    known = Repetition((RepeatedDifference("CIDEr", *pair, Estimate(0.5, 0.1, 0.4, 0.6, 7)),), {}, 240, "", "")
    monkeypatch.setattr("vlkd.pipeline.run.known_repetition", lambda recipe: known)
    page = run_method(load_recipe("quick", ["seed=0", "world.seed=0"]), folder, jobs=1).read_text()
    assert "trained with 7 seeds in another world" in page and "+40.0 to +60.0" in page
    assert "seeds in another world" not in (quick_run.folder / "report.html").read_text()


def test_a_run_that_is_stopped_says_how_to_go_on(tmp_path):
    small = ("world.train=16", "world.validation=4", "world.test=4")
    endless = "schedules.teacher.steps=100000"
    command = ("demo", "--quick", "--out", str(tmp_path / "run"), *small, endless)
    started = fresh_process.start(_in_a_terminal, *command)
    while "student/pretrain" not in started.stderr:  # the teacher is being trained meanwhile
        assert started.process.is_alive(), "ended before it was stopped"
        time.sleep(0.1)
    os.killpg(started.process.pid, signal.SIGINT)  # as Ctrl-C does, to all processes of the terminal
    try:
        stopped = started.end(timeout=60)
    except TimeoutError:
        os.killpg(started.process.pid, signal.SIGKILL)
        raise
    assert stopped.returncode == 130
    assert "vlkd: stopped; the same command takes up where it was." in stopped.stderr
    assert "Traceback" not in stopped.stderr


def _in_a_terminal(*arguments: str) -> None:
    """With interrupts, which tests that a shell started in the background ignore, and so would what they start."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fresh_process.vlkd(*arguments)


def test_another_recipe_in_the_same_folder_is_refused(quick_run, vlkd):
    refused = vlkd("demo", "--quick", "--out", quick_run.folder, "--seed", 5)
    assert refused.returncode == 2
    assert "seed = 0, but this one has seed = 5" in refused.stderr
    assert "Traceback" not in refused.stderr
