"""What `vlkd demo` says at its start: minutes and stages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vlkd.pipeline import forecast as module
from vlkd.pipeline.forecast import forecast, makespan
from vlkd.pipeline.method import plan_method
from vlkd.pipeline.workers import Work
from vlkd.recipes import load_recipe


@pytest.fixture(autouse=True)
def as_the_reference_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "step_seconds", lambda: module._reference()["step_seconds"])


def minutes(line: str) -> tuple[int, int]:
    found = re.search(r"bout (\d+) to (\d+) minutes on this machine, \d at a time", line)
    assert found is not None, line
    low, high = map(int, found.groups())
    assert 1 <= low < high <= 2 * low + 1
    return low, high


def test_works_side_by_side_end_when_the_last_one_does() -> None:
    def work(name: str, *after: str) -> Work:
        return Work(name, print, after)

    works = [work("a"), work("b"), work("c", "a"), work("d", "b", "c")]
    seconds = {"a": 3.0, "b": 1.0, "c": 2.0, "d": 4.0}
    assert makespan(works, seconds, 1) == 10.0
    assert makespan(works, seconds, 2) == 9.0  # b beside a; c and d wait
    assert makespan([work("a"), work("b"), work("c")], seconds, 2) == 3.0
    assert makespan([], {}, 2) == 0.0


def test_the_line_names_minutes_and_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = forecast(load_recipe("demo"), tmp_path, 2)
    assert "teacher (pretrain, vqa, captioning)" in line and "adapted (adapt, vqa, captioning)" in line
    assert "regions of 1640 pictures" in line and line.startswith("About ") and "\n" not in line
    two, alone = minutes(line), minutes(forecast(load_recipe("demo"), tmp_path, 1))
    assert 1.4 * two[0] < alone[0] < 2.2 * two[0]
    monkeypatch.setattr(module, "step_seconds", lambda: 3 * module._reference()["step_seconds"])
    assert 2.6 * two[0] < minutes(forecast(load_recipe("demo"), tmp_path, 2))[0] < 3.4 * two[0]


def test_more_to_do_takes_longer_and_what_is_done_takes_nothing(tmp_path: Path) -> None:
    usual = minutes(forecast(load_recipe("demo"), tmp_path, 1))
    longer = minutes(forecast(load_recipe("demo", ["schedules.teacher.steps=7200"]), tmp_path, 1))
    larger = minutes(forecast(load_recipe("demo", ["world.train=12000"]), tmp_path, 1))
    assert longer[1] > usual[1] and larger[1] > usual[1]
    trained = forecast(load_recipe("demo", ["detectors.weights=train"]), tmp_path, 1)
    assert "both detectors, regions" in trained and minutes(trained)[0] > usual[0] + 45
    for job in plan_method(load_recipe("demo"), tmp_path).jobs:
        job.folder.mkdir(parents=True)
        (job.folder / "results.json").touch()
    rest = forecast(load_recipe("demo"), tmp_path, 1)
    assert rest.startswith("The rest takes about ") and minutes(rest)[1] < usual[1] / 2


def test_a_recipe_without_figures_gets_its_stages_alone(tmp_path: Path) -> None:
    line = forecast(load_recipe("demo", ["name=mine"]), tmp_path, 3)
    assert line.startswith("3 at a time: regions of") and "minutes" not in line


def test_every_packaged_figure_is_of_a_work_that_there_is() -> None:
    for name, known in module._reference()["recipes"].items():
        jobs = {job.name for job in plan_method(load_recipe(name), Path()).jobs}
        assert known.keys() == jobs | {"regions", "evaluation", "around"}
        assert all(value > 0 for value in known.values())


def test_a_finished_run_gives_new_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    written = tmp_path / "package" / module.REFERENCE
    written.write_text(json.dumps(module._reference()))
    monkeypatch.setattr(module.resources, "files", lambda _: written.parent)
    (tmp_path / "settings.yaml").write_text("name: demo\n")
    stages = [{"name": "regions", "seconds": 12.34}, {"name": "teacher/pretrain", "seconds": 99.0}]
    (tmp_path / "results.json").write_text(json.dumps({"stages": stages}))
    before = json.loads(written.read_text())
    module._record(tmp_path)
    after = json.loads(written.read_text())
    assert after["recipes"]["demo"] == before["recipes"]["demo"] | {"regions": 12.3, "teacher/pretrain": 99.0}
    assert after["recipes"]["quick"] == before["recipes"]["quick"]


def test_a_step_is_measured_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1e-4 < module.step_seconds() < 5
