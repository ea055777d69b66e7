"""`make bench-gpu`, rehearsed without a GPU: one deadline, groups that die whole, and files that are whole whenever it is cut off."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import plots
from benchmarks.conditions import conditions
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import build, drive, evidence, measure
from benchmarks.gpu.running import Deadline, Part, Running, failed, skipped
from benchmarks.table import table

ROOT = Path(__file__).resolve().parent.parent
NOT_THERE = ("pydantic", "orjson", "pybase64", "lmdb", "lightly")  # on a machine that is lent for its GPU
WELL = [sys.executable, "-c", ""]


class Clock:
    """Seconds that pass only when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(plan: list[Part], out: Path, seconds: float = 60.0, clock: Clock | None = None) -> dict[str, str]:
    deadline = Deadline(seconds, clock) if clock else Deadline(seconds)
    return {result["part"]: result["ended"] for result in gpu.run(plan, out, deadline)}


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pid: int) -> bool:
    end = time.monotonic() + 10
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_it_wants_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"torch finds no GPU here.*--rehearse"):
        gpu.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_order_is_that_of_the_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/bin/{name}")
    names = [part.name for part in gpu.parts(tmp_path)]
    assert names[:6] == ["build", "ceilings", "tests of Triton", "tests of CUDA", "headline", "queue"]
    assert names[6:] == ["memcheck", "racecheck", "synccheck", "counters", "other sizes", "step"]
    assert next(part for part in gpu.parts(tmp_path) if part.name == "tests of CUDA").needs == "build"
    assert sum(part.most for part in gpu.parts(tmp_path)[1:6]) <= gpu.SECONDS  # what counts most always has its time


def test_a_part_whose_program_is_missing_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    missing = {part.name: part.missing for part in gpu.parts(tmp_path) if part.missing}
    assert missing["racecheck"] == "there is no compute-sanitizer" and missing["counters"] == "there is no ncu"
    assert run([Part("racecheck", WELL, 5, missing="there is no such thing")], tmp_path) == {
        "racecheck": "not run: there is no such thing"
    }


def test_all_parts_share_one_deadline(tmp_path: Path) -> None:
    clock = Clock()
    results = gpu.run([Part(name, WELL, 60) for name in ("first", "second", "third")], tmp_path, Deadline(100, clock))
    assert next(results)["ended"] == "exit status 0"
    clock.now = 85.0
    assert next(results)["ended"] == "exit status 0"
    clock.now = 95.0
    assert next(results)["ended"] == "not run: 5 s were left"


def test_what_takes_too_long_is_killed_with_all_it_started(tmp_path: Path) -> None:
    """The child ignores the request to end and keeps the output open, as a sanitizer's does."""
    child = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(600)"
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"]
    began = time.monotonic()
    (result,) = gpu.run([Part("slow", command, 3, least=1)], tmp_path, Deadline(60))
    assert result["ended"] == "ended after 3 s" and time.monotonic() - began < 30
    assert gone(int(result["output"].split()[-1]))


def test_what_a_part_leaves_behind_is_killed_when_it_ends(tmp_path: Path) -> None:
    command = ["sh", "-c", "sleep 600 & echo $!"]
    (result,) = gpu.run([Part("careless", command, 20)], tmp_path, Deadline(60))
    assert result["ended"] == "exit status 0" and gone(int(result["output"].split()[-1]))


def test_the_build_goes_on_beside_what_does_not_need_it(tmp_path: Path) -> None:
    mark = tmp_path / "built"
    waits = f"import pathlib, time\nwhile not pathlib.Path({str(mark)!r}).exists(): time.sleep(0.05)"
    plan = [
        Part("build", [sys.executable, "-c", waits], 30),
        Part("beside", [sys.executable, "-c", f"open({str(mark)!r}, 'w')"], 30),
        Part("after", WELL, 30, needs="build"),
    ]
    assert list(run(plan, tmp_path).items()) == [
        ("beside", "exit status 0"),
        ("build", "exit status 0"),
        ("after", "exit status 0"),
    ]


def test_without_a_build_what_needs_it_is_left_out(tmp_path: Path) -> None:
    plan = [Part("build", [sys.executable, "-c", "raise SystemExit(3)"], 30), Part("after", WELL, 30, needs="build")]
    plan.append(Part("other", WELL, 30))
    assert run(plan, tmp_path) == {
        "build": "exit status 3",
        "after": "not run: build did not end well",
        "other": "exit status 0",
    }


def test_a_program_that_cannot_be_started_is_a_result(tmp_path: Path) -> None:
    result = Running(Part("none", [str(tmp_path / "none")], 5), tmp_path / "log", tmp_path, 5).wait()
    assert result["ended"].startswith("could not be started") and failed(result)
    assert not failed(skipped(Part("left", WELL, 5), "5 s were left"))


def test_a_file_is_whole_whenever_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    evidence.write(path, {"rows": [1]})

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evidence.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        evidence.write(path, {"rows": [1, 2]})
    assert evidence.read(path) == {"rows": [1]} and evidence.read(tmp_path / "none") == {}


def test_a_contender_that_fails_is_a_row_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = measure.contender

    def broken(op: str, name: str) -> Any:
        if name == "eager":
            raise torch.OutOfMemoryError("too large")
        if name == "torch.compile":
            return lambda **tensors: (tensors["h_s"].sum() * 0 + 7,)
        return real(op, name)

    monkeypatch.setattr(measure, "contender", broken)
    rows = list(measure.rows(measure.Plan(measure.SMALL[:1], ("both",)), "cpu", set()))
    told = {row["contender"]: row.get("failed", "measured") for row in rows}
    assert told["vlkd"] == "measured" and told["eager"] == "out of memory"
    assert told["torch.compile"].startswith("AssertionError: output 0 is off by")
    path, best = (
        tmp_path / "run.json",
        {"bytes_per_second": 1.0, "operations_per_second": {"float32": 1.0, "bfloat16": 1.0}},
    )
    found = conditions()
    found["machine_info"]["ceilings"] = best | {"exponentials_per_second": 1.0}
    evidence.write(path, found | {"benchmarks": rows})
    assert "| out of memory | AssertionError |" in table([path])
    assert [figure.name for figure in plots.draw(path, tmp_path)] == ["token_nce-run.svg"]


def test_a_drive_without_a_backend_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "available_backends", lambda *_, **__: ("reference",))
    with pytest.raises(AssertionError, match="nothing but the reference runs here"):
        drive.main(["--device", "cpu"])


def test_rows_that_are_there_are_not_measured_again() -> None:
    plan = measure.Plan(queues=measure.SMALL_QUEUE)
    rows = list(measure.rows(plan, "cpu", set()))
    assert [row["contender"] for row in rows] == ["vlkd", "copy", "MoCo"]
    assert list(measure.rows(plan, "cpu", {measure.key(row) for row in rows})) == []


def test_the_build_is_for_the_present_gpu_alone() -> None:
    made = build.environment((9, 0), 16)
    assert made == {"TORCH_CUDA_ARCH_LIST": "9.0", "FORCE_CUDA": "1", "MAX_JOBS": "12"}
    assert build.environment((10, 0), 2)["MAX_JOBS"] == "1"


@pytest.fixture
def lacking(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables of a process in which some packages are not there."""
    folder = tmp_path / "lacking"
    folder.mkdir()
    for name in NOT_THERE:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name={name!r})\n")
    yield os.environ | {"PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}


def assert_whole(out: Path) -> None:
    """What is there can be read; of the measurements there are only whole rows."""
    for path in out.glob("*.json"):
        content = json.loads(path.read_text())
        assert content["machine_info"]["torch"] == torch.__version__ and "commit_info" in content
        for row in content.get("benchmarks", ()):
            assert row["seconds"]["median"] > 0
    assert len(list(out.iterdir())) <= 8


@pytest.mark.slow
def test_the_rehearsal_ends_well_and_leaves_whole_files_at_every_moment(
    tmp_path: Path, lacking: dict[str, str]
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--out", str(out)]
    with (tmp_path / "told").open("w") as told:
        process = subprocess.Popen(command, cwd=ROOT, env=lacking, stdout=told, stderr=told)
        moments = 0
        while process.poll() is None:  # a copy is what a kill at this moment would leave
            time.sleep(1.0)
            if out.exists():
                moment = tmp_path / f"moment-{moments}"
                shutil.copytree(out, moment, ignore=shutil.ignore_patterns(".*"))
                assert_whole(moment)
                moments += 1
    assert process.returncode == 0, (tmp_path / "told").read_text()
    assert moments > 5
    ended = {part["part"]: part["ended"] for part in evidence.read(out / "run.json")["parts"]}
    assert [name for name, how in ended.items() if how == "exit status 0"] == [
        "ceilings",
        "tests of Triton",
        "build",
        "headline",
        "queue",
        "memcheck",
    ]
    assert all(how.startswith("not run: ") for how in ended.values() if how != "exit status 0")
    measured = evidence.read(out / "measurements.json")
    assert {row["op"] for row in measured["benchmarks"]} == {
        "attention_mse",
        "distill_attention",
        "token_nce",
        "ring_queue",
    }
    assert not [row for row in measured["benchmarks"] if "failed" in row]
    printed = table([out / "measurements.json"])
    assert "| N 48, K 32, E 16 | bfloat16 |" in printed and "GPU: not yet measured." in printed


@pytest.mark.slow
def test_one_that_is_killed_takes_its_parts_along(tmp_path: Path, lacking: dict[str, str]) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, env=lacking, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "log.txt").exists():
        time.sleep(0.1)
    time.sleep(1.0)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert children and all(gone(int(pid)) for pid in children)
    assert_whole(out)
