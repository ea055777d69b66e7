"""A folder of one's own pictures into a feature store: in parts, resumable after a kill, shared among processes.

``OUT/store`` appears when all is done. Until then its parts are in ``OUT/.store.unfinished``, and ``OUT/.regions``
holds what was asked for and each part's broken pictures. A process takes the parts whose number
is its rank modulo the number of processes; files are all they share, so they need no process group.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from vlkd.data.store import FeatureType, RegionStore, finish_store, part_name, unfinished_folder, write_part
from vlkd.errors import VlkdError
from vlkd.pipeline.shards import ONE_PROCESS, Shard
from vlkd.pipeline.two_detectors import Broken, TwoDetectors
from vlkd.progress import report_to, track
from vlkd.regions.paired import RegionRecord
from vlkd.regions.picture_folder import PictureFile, find_pictures, read_ahead
from vlkd.runs import write_atomically

PICTURES_A_PART = 256
BROKEN = "broken.txt"
_MARK = "settings.json"
_POLL = 0.2  # seconds between looks for other processes' parts


@dataclass(frozen=True)
class Extracted:
    """What an extraction wrote.

    Attributes:
        store: the features of all pictures but the broken ones.
        broken: the list of broken pictures; None if there is none.
        broken_count: pictures in it.
    """

    store: RegionStore
    broken: Path | None
    broken_count: int


def extract_pictures(
    images: Path,
    out: Path,
    detectors: TwoDetectors,
    *,
    precision: str = "fp32",
    dtype: FeatureType = "float16",
    workers: int = 4,
    shard: Shard = ONE_PROCESS,
    pictures_a_part: int = PICTURES_A_PART,
) -> Extracted | None:
    """Write ``out/store`` and, if there are broken pictures, ``out/broken.txt`` with path and reason.

    Stopped at any moment, the same call goes on: finished parts are kept. A finished store of the same call is returned
    as it is.

    Args:
        images: folder of pictures, with subfolders.
        out: folder of the store.
        detectors: both, with what they are asked for.
        precision: what ``detectors`` was given; device and batch, unlike it, may change when an extraction goes on.
        dtype: of the features in the store.
        workers: threads that decode pictures.
        shard: which parts are this process's; the first one finishes the store when all parts are there.
        pictures_a_part: how many files make a part; what a kill loses is less than that.

    Returns:
        None in all processes but the first.

    Raises:
        VlkdError: no picture, two of the same key, none that can be read, a feature beyond float16, or ``out`` holds a
            store or an unfinished one of other pictures or settings.
    """
    files = find_pictures(images).files
    wanted = _settings(files, detectors, precision, dtype, pictures_a_part)
    fingerprint = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:16]
    store, notes = out / "store", out / ".regions"
    if store.exists():
        return _finished(store, notes, fingerprint) if shard.rank == 0 else None
    parts = unfinished_folder(store)
    blocks = [files[first : first + pictures_a_part] for first in range(0, len(files), pictures_a_part)]
    mine = [
        (number, block)
        for number, block in enumerate(blocks)
        if number % shard.world == shard.rank and not (parts / part_name(number)).exists()
    ]
    if shard.rank and not mine:
        return None
    _begin(parts, notes, wanted, out)
    with _drawn_by_the_first(shard):
        pictures = read_ahead(track(list(chain.from_iterable(block for _, block in mine)), "pictures"), workers)
        for number, block in mine:
            results = list(detectors.records(islice(pictures, len(block))))
            order = {file.key: place for place, file in enumerate(block)}
            _write(parts, notes, number, sorted(results, key=lambda one: order[one.key]), dtype)
    if shard.rank:
        return None
    for number in track(range(len(blocks)), "parts of all processes") if shard.world > 1 else ():
        while not (parts / part_name(number)).exists():
            time.sleep(_POLL)
    return _finish(store, parts, notes, fingerprint, len(blocks), detectors)


def _settings(
    files: list[PictureFile], detectors: TwoDetectors, precision: str, dtype: FeatureType, pictures_a_part: int
) -> dict[str, Any]:
    """All that decides what is in the store, by the name under which a difference is told."""
    stats = [(file.name, stat.st_size, stat.st_mtime_ns) for file in files for stat in (file.path.stat(),)]
    return {
        "pictures": len(files),
        "student detector": detectors.student.fingerprint(),
        "teacher detector": detectors.teacher.fingerprint(),
        "max-regions": detectors.max_regions,
        "score-threshold": detectors.score_threshold,
        "precision": precision,
        "dtype": dtype,
        "pictures a part": pictures_a_part,
        "names, sizes and times of pictures": hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16],
    }


def _begin(parts: Path, notes: Path, wanted: dict[str, Any], out: Path) -> None:
    """Create the folders, or take up those that are there; processes may do so at the same time."""
    parts.mkdir(parents=True, exist_ok=True)
    notes.mkdir(exist_ok=True)
    mark = notes / _MARK
    if not mark.exists():
        write_atomically(mark, json.dumps(wanted, indent=2) + "\n")
    found = json.loads(mark.read_text(encoding="utf-8"))
    for name, value in wanted.items():
        if found.get(name) != value:
            raise VlkdError(
                f"'{out}' holds an unfinished extraction with {name} = {found.get(name)}, but this one has {value}: "
                f"finish that one, choose another folder, or delete '{parts}' and '{notes}'."
            )


def _finished(store: Path, notes: Path, fingerprint: str) -> Extracted:
    opened = RegionStore.open(store)
    if opened.fingerprint != fingerprint:
        raise VlkdError(
            f"'{store}' holds the regions of other pictures, detectors or settings: choose another folder, or delete "
            "that one."
        )
    shutil.rmtree(notes, ignore_errors=True)  # a kill may have left it
    broken = store.parent / BROKEN
    if not broken.exists():
        return Extracted(opened, None, 0)
    return Extracted(opened, broken, len(broken.read_text(encoding="utf-8").splitlines()))


def _drawn_by_the_first(shard: Shard) -> AbstractContextManager[None]:
    return report_to(lambda *_: None) if shard.rank else nullcontext()


def _write(parts: Path, notes: Path, number: int, results: list[RegionRecord | Broken], dtype: FeatureType) -> None:
    """A part and, before it, the list of its broken pictures; both in the order of the files."""
    broken = [result for result in results if isinstance(result, Broken)]
    lines = [f"{one.name}\t{' '.join(one.reason.split())}\n" for one in broken]
    write_atomically(_note(notes, number), "".join(lines))
    records = [result for result in results if isinstance(result, RegionRecord)]
    write_part(parts / part_name(number), records, dtype)


def _finish(store: Path, parts: Path, notes: Path, fingerprint: str, count: int, detectors: TwoDetectors) -> Extracted:
    """All ``count`` parts are there: list what is broken, then make the store."""
    lines = [line for number in range(count) for line in _note(notes, number).read_text("utf-8").splitlines(True)]
    broken = store.parent / BROKEN
    broken.unlink(missing_ok=True)
    if lines:
        write_atomically(broken, "".join(lines))
    if len(lines) == json.loads((notes / _MARK).read_text("utf-8"))["pictures"]:
        shutil.rmtree(parts)
        shutil.rmtree(notes)
        raise VlkdError(f"None of {len(lines)} pictures could be read: '{broken}' says why of each.")
    for stray in parts.glob(".*"):  # half-written files of a process that was killed
        stray.unlink()
    opened = finish_store(store, fingerprint, detectors.identities())
    shutil.rmtree(notes)
    return Extracted(opened, broken if lines else None, len(lines))


def _note(notes: Path, number: int) -> Path:
    return notes / f"broken-{number:05d}.txt"
