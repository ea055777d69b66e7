import json
import os

import pytest
import torch
from safetensors.torch import save_file

from vlkd.data import save_tokenizer, train_tokenizer
from vlkd.errors import VlkdError
from vlkd.runs import Run, permit_as_umask, truncate_jsonl, write_atomically

SETTINGS = {"seed": 0, "student": {"width": 64, "layers": 3}}


def test_a_new_run_records_settings_and_versions(tmp_path):
    run = Run.begin(tmp_path / "run", SETTINGS, fingerprint="abc")
    assert not run.finished
    assert run.settings() == {**SETTINGS, "data_fingerprint": "abc"}
    assert "torch" in json.loads((run.folder / "versions.json").read_text())


def test_the_same_settings_resume_and_a_finished_run_says_so(tmp_path):
    Run.begin(tmp_path, SETTINGS)
    run = Run.begin(tmp_path, SETTINGS)
    assert not run.finished
    run.finish(cider=1.5)
    again = Run.begin(tmp_path, SETTINGS)
    assert again.finished
    assert again.results()["cider"] == 1.5


@pytest.mark.parametrize(
    ("change", "fingerprint", "key", "old", "new"),
    [
        ({"seed": 1}, "", "seed", "0", "1"),
        ({"student": {"width": 32, "layers": 3}}, "", "student.width", "64", "32"),
        ({}, "other data", "data_fingerprint", "''", "'other data'"),
    ],
)
def test_other_settings_are_refused_with_the_first_key_that_differs(tmp_path, change, fingerprint, key, old, new):
    Run.begin(tmp_path, SETTINGS)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(VlkdError, match=rf"{key} = {old}, but this one has {key} = {new}"):
        Run.begin(tmp_path, {**SETTINGS, **change}, fingerprint)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "left", [["versions.json"], [".settings.yaml.0a1b2c3d", "versions.json"], ["lost+found/"], [".lock"]]
)
def test_a_kill_between_two_writes_and_a_new_disk_leave_a_folder_that_can_be_begun(tmp_path, left):
    for name in left:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("half")
    run = Run.begin(tmp_path, SETTINGS)
    assert run.settings()["seed"] == 0 and json.loads((tmp_path / "versions.json").read_text())["python"]


def test_what_changes_no_number_may_differ_and_is_recorded(tmp_path):
    first = {"schedule": {"steps": 4, "save_every": 100}, "schedules": {"student": {"save_every": 1}}}
    other = {"schedule": {"steps": 4, "save_every": 2, "log_every": 5}, "schedules": {"student": {"save_every": 3}}}
    Run.begin(tmp_path, first)
    with pytest.raises(VlkdError, match=r"schedule\.save_every = 100, but this one has schedule\.save_every = 2"):
        Run.begin(tmp_path, other)
    free = ("save_every", "log_every")
    with pytest.raises(VlkdError, match=r"schedule\.steps = 4"):
        Run.begin(tmp_path, {**other, "schedule": {"steps": 5}}, free=free)
    assert Run.begin(tmp_path, first).settings()["schedule"]["save_every"] == 100
    run = Run.begin(tmp_path, other, free=free)
    assert run.settings() == {**other, "data_fingerprint": ""}
    run.finish()
    Run.begin(tmp_path, first, free=free)
    assert run.settings()["schedule"]["save_every"] == 2  # of a finished run, what it was finished with


def test_seconds_are_those_of_all_sessions(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("vlkd.runs.time.monotonic", lambda: now[0])
    run = Run.begin(tmp_path, SETTINGS)
    run.note_time(at_once=True)
    now[0] += 60
    run.note_time()
    now[0] += 0.5
    run.note_time()  # not a second later: it is killed here, and what came after 60 is not known
    now[0] = 5000.0
    run = Run.begin(tmp_path, SETTINGS)
    now[0] += 10
    assert (run.seconds, run.sessions) == (70.0, 2)
    run.finish(cider=1.0)
    assert run.results() == {"cider": 1.0, "seconds": 70.0, "sessions": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "settings.yaml", "versions.json"]


def test_a_time_that_a_power_cut_emptied_is_counted_anew(tmp_path):
    Run.begin(tmp_path, SETTINGS).note_time(at_once=True)
    (tmp_path / "time.json").write_text("")
    assert Run.begin(tmp_path, SETTINGS).sessions == 1


def test_a_file_that_cannot_be_written_is_named_itself(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vlkd.runs.os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(tmp_path / "a.json", "{}")
    assert caught.value.filename == str(tmp_path / "a.json") and not any(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "nowhere" / "a.json", "{}")
    assert caught.value.filename == str(tmp_path / "nowhere" / "a.json")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(VlkdError, match="holds no run"):
        Run.begin(tmp_path, SETTINGS)


def test_opening_a_missing_or_unfinished_run_says_what_to_do(tmp_path):
    with pytest.raises(VlkdError, match="no run folder"):
        Run.open(tmp_path / "nowhere")
    Run.begin(tmp_path, SETTINGS)
    with pytest.raises(VlkdError, match="has not finished"):
        Run.open(tmp_path)


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "results.json"
    write_atomically(target, "old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_metrics_are_cut_back_to_a_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    truncate_jsonl(path, "step", 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_have_the_permissions_that_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "results.json", "{}")
        (tmp_path / "model").mkdir()
        save_file({"weight": torch.zeros(1)}, tmp_path / "model" / "model.safetensors")
        permit_as_umask(tmp_path / "model")
        save_tokenizer(train_tokenizer(["a red star"], 64), tmp_path / "tokenizer")
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path
