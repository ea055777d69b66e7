"""Run folders: what makes a run resumable, repeatable and never overwritten.

A folder holds ``settings.yaml`` (the resolved settings), ``versions.json`` (what ran it), ``time.json`` while it is not finished
(how long it has been worked on), and, once it is, ``results.json``. An unfinished folder of the same settings resumes; a
finished one is left as it is; a folder of other settings is refused. Whatever is written appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from vlkd.errors import VlkdError

_SETTINGS = "settings.yaml"
_VERSIONS = "versions.json"
_RESULTS = "results.json"
_TIME = "time.json"
_LOST = "lost+found"  # of a new disk
_TIME_EVERY = 1.0  # seconds between two writes of it
_FINGERPRINT = "data_fingerprint"
_RECORDED_PACKAGES = ("vlkd", "torch", "torchvision", "transformers", "accelerate", "pyarrow", "tokenizers", "numpy")


class Run:
    """One stage's folder. Use :meth:`begin`, do the work unless :attr:`finished`, then :meth:`finish`.

    Attributes:
        folder: of the run.
        sessions: how many times it was begun and taken up, this one counted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sessions = 1
        self._before = 0.0  # seconds of earlier sessions
        self._began = self._noted = time.monotonic()

    @classmethod
    def begin(
        cls, folder: Path | str, settings: Mapping[str, Any], fingerprint: str = "", free: Collection[str] = ()
    ) -> Run:
        """Create the folder, or take up the one that is there. Hidden files in it do not count.

        Args:
            settings: the resolved recipe of the stage: plain values that YAML can hold.
            fingerprint: names the data the stage reads, so that a run on other data is another run.
            free: last parts of the keys that may differ, because no number depends on them; what an unfinished run has been given
                last is recorded.

        Raises:
            VlkdError: the folder holds a run of other settings (the first key that differs is named), or something
                that is no run.
            OSError: it cannot be written.
        """
        run = cls(Path(folder))
        wanted = {**json.loads(json.dumps(settings)), _FINGERPRINT: fingerprint}
        run.folder.mkdir(parents=True, exist_ok=True)
        there = {path.name for path in run.folder.iterdir() if not path.name.startswith(".")}
        if there <= {_VERSIONS, _LOST}:  # a kill may have come between the two writes
            write_atomically(run.folder / _VERSIONS, json.dumps(versions(), indent=2) + "\n")
            write_atomically(run.folder / _SETTINGS, yaml.safe_dump(wanted, sort_keys=False))
            return run
        found = run.settings()
        difference = _first_difference(found, wanted, free)
        if difference is not None:
            key, old, new = difference
            raise VlkdError(
                f"'{run.folder}' holds a run with {key} = {old!r}, but this one has {key} = {new!r}: "
                "choose another folder, or delete that one if it is no longer wanted."
            )
        if not run.finished:
            if found != wanted:
                write_atomically(run.folder / _SETTINGS, yaml.safe_dump(wanted, sort_keys=False))
            run._take_up_time()
        return run

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """A finished run, for reading.

        Raises:
            VlkdError: there is no run in ``folder``, or it has not finished.
        """
        run = cls(Path(folder))
        if not run.folder.is_dir():
            raise VlkdError(f"There is no run folder '{run.folder}': run `vlkd demo --out {run.folder}` first.")
        run.settings()
        if not run.finished:
            raise VlkdError(f"The run in '{run.folder}' has not finished: give its command again and it resumes.")
        return run

    @property
    def finished(self) -> bool:
        return (self.folder / _RESULTS).is_file()

    def settings(self) -> dict[str, Any]:
        """The settings the run was begun with."""
        path = self.folder / _SETTINGS
        if not path.is_file():
            raise VlkdError(
                f"'{self.folder}' is not empty and holds no run (no {_SETTINGS}): choose an empty or a new folder."
            )
        return yaml.safe_load(path.read_text(encoding="utf-8"))

    def results(self) -> dict[str, Any]:
        """What :meth:`finish` was given."""
        return json.loads((self.folder / _RESULTS).read_text(encoding="utf-8"))

    @property
    def seconds(self) -> float:
        """How long it has been worked on, all sessions together, also where one was stopped and its last steps done again.

        Of a session that was killed, the time until the last :meth:`note_time` counts.
        """
        return self._before + time.monotonic() - self._began

    def note_time(self, at_once: bool = False) -> None:
        """Keep :attr:`seconds` for the next session, at most once a second unless ``at_once``."""
        now = time.monotonic()
        if at_once or now - self._noted >= _TIME_EVERY:
            self._noted = now
            text = json.dumps({"sessions": self.sessions, "seconds": self.seconds}) + "\n"
            write_atomically(self.folder / _TIME, text, flush=False)

    def finish(self, **results: Any) -> None:
        """Write ``results.json``, which marks the run as finished: ``results``, :attr:`seconds` and :attr:`sessions`."""
        results |= {"seconds": self.seconds, "sessions": self.sessions}
        write_atomically(self.folder / _RESULTS, json.dumps(results, indent=2) + "\n")
        (self.folder / _TIME).unlink(missing_ok=True)

    def _take_up_time(self) -> None:
        """Go on from what earlier sessions kept."""
        with suppress(FileNotFoundError, json.JSONDecodeError):  # none was kept; a power cut emptied it
            kept = json.loads((self.folder / _TIME).read_text(encoding="utf-8"))
            self.sessions, self._before = kept["sessions"] + 1, kept["seconds"]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _RECORDED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_atomically(path: Path, content: bytes | str, flush: bool = True) -> None:
    """Write ``content`` beside ``path`` and rename it into place, with the umask's permissions.

    Without ``flush`` to the disk before that, a power cut may leave the file empty.

    Raises:
        OSError: it cannot be written; the error names ``path``.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        # Not of tempfile, whose files only their owner may read.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                if flush:
                    os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def permit_as_umask(folder: Path) -> None:
    """Give the files of a folder that was just made the umask's permissions; safetensors lets only their owner read them."""
    readable = folder.stat().st_mode & 0o666
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(readable)


def truncate_jsonl(path: Path, key: str, last: int) -> None:
    """Keep the rows of a JSON-lines file whose ``row[key] <= last``; a torn last line goes too."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if row[key] <= last:
            kept.append(line + "\n")
    write_atomically(path, "".join(kept))


def _first_difference(old: Any, new: Any, free: Collection[str], key: str = "") -> tuple[str, Any, Any] | None:
    """The first key, in the new settings' order, at which the two differ; keys that end with one of ``free`` may."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return None if old == new else (key, old, new)
    for name in [*new, *(name for name in old if name not in new)]:
        if name in free:
            continue
        path = f"{key}.{name}" if key else name
        found = _first_difference(old.get(name), new.get(name), free, path)
        if found is not None:
            return found
    return None
