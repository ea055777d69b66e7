"""Folders appear whole or not at all; whatever a library makes of a full disk is an OSError that names the path."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from vlkd import disk
from vlkd.disk import blamed_on, whole_folder
from vlkd.errors import VlkdError


@pytest.mark.parametrize(
    ("error", "number"),
    [
        # as safetensors 0.8, tokenizers 0.23, pyarrow 26, PIL and torch 2.14 say it on a full disk
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (RuntimeError("Error while serializing: IoError(Os { code: 30, kind: ReadOnlyFilesystem })"), errno.EROFS),
        (Exception("No space left on device (os error 28)"), errno.ENOSPC),
        (OSError(28, "Error writing bytes to file. Detail: [errno 28] No space left on device"), errno.ENOSPC),
        (OSError(28, "No space left on device"), errno.ENOSPC),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), errno.ENOSPC),
        (RuntimeError("basic_ios::clear: iostream error"), errno.ENOSPC),
    ],
)
def test_a_failed_write_names_the_path(error: Exception, number: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(disk, "_FULL", 1 << 62)  # the disk is full, as far as can be seen
    with pytest.raises(OSError) as caught, blamed_on(tmp_path / "not yet" / "model"):
        raise error
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "not yet" / "model"))


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), VlkdError("os error 28"), RuntimeError("shape"), OSError("no number"), KeyError(28)]
)
def test_any_other_error_stays_as_it_is(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, blamed_on(tmp_path):
        raise error
    assert caught.value is error


def test_an_error_of_the_system_keeps_its_own_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, blamed_on(tmp_path):
        (tmp_path / "none").read_text()
    assert caught.value.filename == str(tmp_path / "none")


def test_a_folder_appears_whole_and_replaces_only_if_told(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    for content in ("first", "second"):
        with whole_folder(folder, replace=True) as unfinished:
            (unfinished / "weights").write_text(content)
            assert not folder.exists() or (folder / "weights").read_text() == "first"
        assert (folder / "weights").read_text() == content
    with pytest.raises(OSError) as caught, whole_folder(folder):
        pass
    assert caught.value.errno in (errno.ENOTEMPTY, errno.EEXIST)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [RuntimeError("no room (os error 28)"), KeyboardInterrupt(), VlkdError("no")])
def test_a_failed_block_leaves_nothing_new_and_what_was_there(error: BaseException, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    (tmp_path / ".model.partial").mkdir()  # of a process that was killed
    with pytest.raises((OSError, KeyboardInterrupt, VlkdError)), whole_folder(folder, replace=True) as unfinished:
        (unfinished / "half").touch()
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and (folder / "old").exists()


def test_a_folder_that_cannot_be_made_is_named_as_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as caught, whole_folder(tmp_path / "file" / "model"):
        pass
    assert caught.value.filename == str(tmp_path / "file" / "model")
