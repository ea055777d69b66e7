"""One process at a time writes a folder; a killed one leaves nothing behind that is in the way."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vlkd import locks
from vlkd.errors import VlkdError
from vlkd.locks import LOCK, locked

HOLD = "import sys, time; from vlkd.locks import locked\nwith locked(sys.argv[1]): print('held', flush=True); time.sleep(600)"


@pytest.fixture
def holder(tmp_path: Path):
    """A process that holds ``tmp_path / "run"``."""
    path = os.pathsep.join((str(Path(locks.__file__).parents[1]), os.environ.get("PYTHONPATH", "")))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_process_is_told_who_the_first_is(holder: subprocess.Popen, tmp_path: Path) -> None:
    told = rf"run' is being written by process {holder.pid} on .*: wait until"
    with pytest.raises(VlkdError, match=told), locked(tmp_path / "run"):
        raise AssertionError("both write")
    assert (tmp_path / "run" / LOCK).exists()


def test_a_killed_process_holds_nothing(holder: subprocess.Popen, tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / LOCK).read_text()
    assert not (tmp_path / "run").is_dir() or not any((tmp_path / "run").iterdir())


def test_a_lock_goes_with_its_block_and_an_empty_folder_too(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        with locked(folder), pytest.raises(VlkdError, match=str(os.getpid())), locked(folder):
            pass
        assert not (tmp_path / "a").exists()
    with pytest.raises(KeyboardInterrupt), locked(folder):
        (folder / "kept").touch()
        raise KeyboardInterrupt
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass
    assert tmp_path.is_dir() and not any(tmp_path.iterdir())


def test_a_lock_that_its_holder_takes_away_meanwhile_is_taken_anew(tmp_path: Path, monkeypatch) -> None:
    """Between opening the file and locking it, the holder ended and another process made its own."""
    lock, others = locks._lock, []

    def late(handle: int, path: Path) -> None:
        if not others:
            others.append(path)
            path.unlink()
        lock(handle, path)

    monkeypatch.setattr(locks, "_lock", late)
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()
        with pytest.raises(VlkdError), locked(tmp_path):
            pass


def test_a_file_in_the_way_is_an_os_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileExistsError) as caught, locked(tmp_path / "file"):
        pass
    assert caught.value.filename == str(tmp_path / "file")
    with pytest.raises(NotADirectoryError), locked(tmp_path / "file" / "run"):
        pass
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_work_goes_on_with_a_word(number: int, tmp_path: Path, monkeypatch, caplog) -> None:
    def lacking(*_) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", lacking)
    with caplog.at_level(logging.WARNING), locked(tmp_path):
        pass
    assert "without locks" in caplog.text
    monkeypatch.setattr(locks, "fcntl", None)  # Windows
    with locked(tmp_path):
        pass


def test_a_full_disk_is_noticed_at_once(tmp_path: Path, monkeypatch) -> None:
    def full(*_) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(locks.os, "write", full)
    with pytest.raises(OSError, match="No space left") as caught, locked(tmp_path / "run"):
        pass
    assert caught.value.filename == str(tmp_path / "run" / LOCK)
    assert not any(tmp_path.iterdir())
