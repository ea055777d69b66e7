"""A folder of one's own pictures into a feature store: resumable after a kill, shared among processes, extended later.

``OUT/store`` appears when all is done. Until then its parts are in ``OUT/.store.unfinished``, and ``OUT/.regions`` holds what was
asked for, what is done of the parts in work, and each part's broken pictures. A process takes the parts whose number is its
rank modulo the number of processes; files are all they share, so they need no process group. Pictures that come to the
folder later make a further round, whose parts join the store's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from vlkd.data.store import (
    FeatureType,
    RegionStore,
    Role,
    check_half,
    extend_store,
    finish_store,
    part_name,
    write_part,
)
from vlkd.errors import VlkdError
from vlkd.pipeline.ledger import Ledger, Round, Stamp, stamp
from vlkd.pipeline.pieces import Pieces
from vlkd.pipeline.rounds import Places, take_up, writing
from vlkd.pipeline.shards import ONE_PROCESS, Shard
from vlkd.pipeline.two_detectors import Broken, TwoDetectors
from vlkd.progress import report_to, track
from vlkd.regions.identity import DetectorIdentity
from vlkd.regions.paired import RegionRecord
from vlkd.regions.photographs import printable
from vlkd.regions.picture_folder import PictureFile, PictureFolder, read_ahead
from vlkd.runs import write_atomically

PICTURES_A_PART = 256
SECONDS_A_PIECE = 20.0
BROKEN = "broken.txt"
_POLL = 0.2  # seconds between looks for other processes' parts
_ENOUGH = 16  # pictures, none of whose features can be stored, that are a detector's fault


@dataclass(frozen=True)
class Extracted:
    """What an extraction wrote.

    Attributes:
        store: the features of all pictures but the broken ones.
        broken: the list of broken pictures; None if there is none.
        broken_count: pictures in it.
        computed: pictures that this round was about; fewer than the store has where it was extended.
        gone: names of pictures that the store has and the folder has no more.
        waiting: pictures that came to the folder during this round: the next call's.
    """

    store: RegionStore
    broken: Path | None
    broken_count: int
    computed: int = 0
    gone: tuple[str, ...] = ()
    waiting: int = 0


def extract_pictures(
    found: PictureFolder,
    out: Path,
    detectors: TwoDetectors,
    *,
    precision: str = "fp32",
    dtype: FeatureType = "float16",
    workers: int = 4,
    shard: Shard = ONE_PROCESS,
    pictures_a_part: int = PICTURES_A_PART,
    seconds_a_piece: float = SECONDS_A_PIECE,
) -> Extracted | None:
    """Write ``out/store`` and, if there are broken pictures, ``out/broken.txt`` with path and reason.

    Stopped at any moment, the same call goes on; the store's bytes do not depend on that. A finished store of the same detectors
    and settings gets the pictures that have come to the folder since, and broken ones whose files have changed; what it
    has stays, also of pictures that are gone. A picture whose features are not finite, or beyond ``dtype``, is a broken one.

    Args:
        found: the pictures.
        out: folder of the store.
        detectors: both, with what they are asked for.
        precision: what ``detectors`` was given; device and batch, unlike it, may change when an extraction goes on.
        dtype: of the features in the store.
        workers: threads that decode pictures.
        shard: which parts are this process's; the first one finishes the store when all parts are there.
        pictures_a_part: how many files make a part of the store.
        seconds_a_piece: what a kill loses at most, in seconds of work.

    Returns:
        None in all processes but the first.

    Raises:
        VlkdError: no picture gives regions, none of the first sixteen can be stored, or ``out`` holds a store or an unfinished
            one of other detectors or settings, or of pictures that have changed since.
        OSError: ``out`` cannot be written to; what is done is kept.
    """
    identities = detectors.identities()
    places, settings = Places(out), _settings(identities, precision, dtype)
    now = {file.name: stamp(file) for file in found.files}
    before = Ledger.read(places.store)
    with writing(out):
        round_ = take_up(places, before, settings, found, now, pictures_a_part)
    if round_ is None:
        assert before is not None
        return _extracted(places, _without_gone(places, before, now), now) if shard.rank == 0 else None
    blocks = round_.blocks(found.folder)
    mine = {
        number: block
        for number, block in blocks.items()
        if number % shard.world == shard.rank and not places.has(number)
    }
    with report_to(lambda *_: None) if shard.rank else nullcontext():
        _do(places, mine, detectors, dtype, workers, seconds_a_piece)
    if shard.rank:
        return None
    for number in track(list(blocks), "parts of all processes") if shard.world > 1 else ():
        while not places.has(number):
            time.sleep(_POLL)
    with writing(out):
        ledger = _finish(places, (before or Ledger(settings)).present(now), round_, identities)
    extracted = _extracted(places, ledger, now, len(round_.pictures))
    if not extracted.waiting or shard.world > 1:
        return extracted
    options = {"precision": precision, "dtype": dtype, "workers": workers, "seconds_a_piece": seconds_a_piece}
    more = extract_pictures(found, out, detectors, pictures_a_part=pictures_a_part, **options)  # type: ignore[arg-type]
    return replace(more, computed=more.computed + extracted.computed) if more else None


def _settings(identities: Mapping[Role, DetectorIdentity], precision: str, dtype: FeatureType) -> dict[str, Any]:
    """All that decides what the regions of a picture are, by the name under which a difference is told."""
    return {
        "student detector": identities["student"].fingerprint,
        "teacher detector": identities["teacher"].fingerprint,
        "max-regions": identities["student"].max_regions,
        "score-threshold": identities["student"].score_threshold,
        "precision": precision,
        "dtype": dtype,
    }


def _do(
    places: Places,
    mine: dict[int, list[PictureFile]],
    detectors: TwoDetectors,
    dtype: FeatureType,
    workers: int,
    seconds_a_piece: float,
) -> None:
    """Write the parts ``mine``."""
    rest, pieces = {}, {number: Pieces(places.notes, number) for number in mine}
    for number, block in mine.items():
        done = pieces[number].keys()
        rest[number] = [file for file in block if file.key not in done]
    pictures = read_ahead(track(list(chain.from_iterable(rest.values())), "pictures"), workers)
    hopeless = _Hopeless(places)
    for number, block in mine.items():
        results, fresh, since = pieces[number].read(), list[RegionRecord | Broken](), time.monotonic()
        names = {file.key: file.name for file in block}
        for result in hopeless.watch(detectors.records(islice(pictures, len(rest[number]))), names, dtype):
            fresh.append(result)
            if time.monotonic() - since >= seconds_a_piece:
                with writing(places.out):
                    pieces[number].write(fresh)
                results, fresh, since = results + fresh, [], time.monotonic()
        order = {file.key: place for place, file in enumerate(block)}
        with writing(places.out):
            _write(places, number, sorted(results + fresh, key=lambda one: order[one.key]), dtype)
            pieces[number].remove()


class _Hopeless:
    """Ends an extraction by detectors whose features no store can hold, after some pictures instead of after all."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._sound, self._unsound = places.store.exists(), 0

    def watch(
        self, results: Iterable[RegionRecord | Broken], names: dict[str, str], dtype: FeatureType
    ) -> Iterator[RegionRecord | Broken]:
        """The results; a record that cannot be stored has become a broken picture.

        Raises:
            VlkdError: all of the first ones have.
        """
        for result in results:
            problem = _problem(result, dtype) if isinstance(result, RegionRecord) else ""
            if problem:
                self._unsound += 1
                result = Broken(result.key, names[result.key], problem)
            elif isinstance(result, RegionRecord):
                self._sound = True
            if self._unsound == _ENOUGH and not self._sound:
                if not any(self._places.parts.glob("part-*")):
                    self._places.forget()  # nothing is lost, and another command may begin
                raise VlkdError(f"None of the first {_ENOUGH} pictures' features can be stored: {problem}")
            yield result


def _problem(record: RegionRecord, dtype: FeatureType) -> str:
    try:
        record.check()
        if dtype == "float16":
            check_half(record)
    except VlkdError as error:
        return str(error)
    return ""


def _write(places: Places, number: int, results: list[RegionRecord | Broken], dtype: FeatureType) -> None:
    """A part and, before it, its broken pictures; both in the order of the files."""
    broken = {one.name: " ".join(one.reason.split()) for one in results if isinstance(one, Broken)}
    write_atomically(places.broken(number), json.dumps(broken))
    places.parts.mkdir(parents=True, exist_ok=True)
    write_part(places.parts / part_name(number), (one for one in results if isinstance(one, RegionRecord)), dtype)


def _finish(places: Places, before: Ledger, done: Round, identities: Mapping[Role, DetectorIdentity]) -> Ledger:
    """All parts are there: list what is broken, then make the store, or extend it."""
    broken: dict[str, str] = {}
    for number in done.blocks(Path()):
        broken |= json.loads(places.broken(number).read_text(encoding="utf-8"))
    ledger = before.and_then(done, broken)
    _list_broken(places.out / BROKEN, ledger)
    if len(ledger.broken) == len(ledger.pictures):
        places.forget()
        reason = next(iter(ledger.broken.values()))
        raise VlkdError(
            f"None of {len(ledger.pictures)} pictures gave regions: '{places.out / BROKEN}' says why of each; of the first: {reason}"
        )
    for stray in places.parts.glob(".*"):  # half-written files of a process that was killed
        stray.unlink()
    if places.store.exists():
        extend_store(places.store, places.parts, ledger.fingerprint())
        ledger.write(places.store)
    else:
        ledger.write(places.parts)
        finish_store(places.store, ledger.fingerprint(), identities)
    places.forget()
    return ledger


def _list_broken(path: Path, ledger: Ledger) -> None:
    lines = [f"{printable(name)}\t{reason}\n" for name, reason in ledger.broken.items()]
    if lines:
        write_atomically(path, "".join(lines))
    else:
        path.unlink(missing_ok=True)


def _without_gone(places: Places, ledger: Ledger, now: dict[str, Stamp]) -> Ledger:
    """Broken pictures that were taken out of the folder are no longer told."""
    present = ledger.present(now)
    if present != ledger:
        with writing(places.out):
            present.write(places.store)
            _list_broken(places.out / BROKEN, present)
    return present


def _extracted(places: Places, ledger: Ledger, now: dict[str, Stamp], computed: int = 0) -> Extracted:
    """What a finished store is."""
    sound = [name for name in ledger.pictures if name not in ledger.broken]
    return Extracted(
        RegionStore.open(places.store),
        places.out / BROKEN if ledger.broken else None,
        len(ledger.broken),
        computed,
        tuple(name for name in sound if name not in now),
        sum(name not in ledger.pictures for name in now),
    )
