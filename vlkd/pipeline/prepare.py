"""The rendered world, before any training: detectors, paired regions of every picture, texts, tokenizer."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vlkd.data import (
    AnswerVocabulary,
    Corpus,
    RegionStore,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from vlkd.data.store import Role, finish_store, part_name, unfinished_folder, write_part
from vlkd.pipeline.prepared import Prepared
from vlkd.progress import track
from vlkd.recipes import Recipe
from vlkd.regions import (
    FasterRCNNWithAttributes,
    PairedRegions,
    Regions,
    ap50,
    extract,
    fit_detectors,
    load_detectors,
    load_packaged_detectors,
)
from vlkd.regions.identity import DetectorIdentity, detector_fingerprint
from vlkd.runs import Run
from vlkd.scenes import CLASSES, Picture, make_picture
from vlkd.training import StageData

SPLITS = ("train", "validation", "test")
_AP50_PICTURES = 100  # of the validation split, for the report
_PICTURES_A_PART = 240
_PARTS = "parts"  # what there is until all of it is there
_TEXTS = "texts.json"  # of a part


def detectors_of(recipe: Recipe, folder: Path) -> tuple[FasterRCNNWithAttributes, FasterRCNNWithAttributes]:
    """(student, teacher): the shipped ones, or the ones trained in ``folder/detectors``."""
    if recipe.detectors.weights == "packaged":
        return load_packaged_detectors(recipe.detectors)
    return load_detectors(folder / "detectors" / "weights", recipe.detectors)


def identities(
    recipe: Recipe, folder: Path, student: FasterRCNNWithAttributes, teacher: FasterRCNNWithAttributes
) -> dict[Role, DetectorIdentity]:
    """What the regions of a rendered world depend on: its detectors, which :func:`detectors_of` gave, and their limits."""
    settings, found = recipe.detectors, {}
    for role, detector in (("student", student), ("teacher", teacher)):
        trained = settings.weights == "train"
        found[role] = DetectorIdentity(
            name=f"demo-{role}" if not trained else f"{detector.settings.backbone}, trained for this run",
            fingerprint=detector_fingerprint(detector, CLASSES, standardised=True),
            score_threshold=settings.score_threshold,
            max_regions=settings.max_regions,
            weights=str((folder / "detectors" / "weights" / f"{role}.safetensors").absolute()) if trained else None,
        )
    return found


def prepare(recipe: Recipe, folder: Path) -> Prepared:
    """Do, or take up, everything that comes before training; all of it is found again by a second call.

    ``pixels`` are those of test pictures.
    """
    if not regions_run(recipe, folder).finished:
        for part in region_parts(recipe):
            extract_part(recipe, folder, part)
        finish_regions(recipe, folder)
    regions = regions_run(recipe, folder).results()
    store = RegionStore.open(folder / "regions" / "store")
    corpora = {split: Corpus.load(folder / "regions" / f"{split}.json") for split in SPLITS}
    data = StageData(store, corpora, load_tokenizer(folder / "tokenizer"), recipe.seed)

    def pixels(regions: Regions | PairedRegions) -> np.ndarray:
        index = corpora["test"].keys.index(regions.key)
        return make_picture(recipe.world.seed, "test", index, size=recipe.world.picture_size).pixels

    return Prepared(
        data,
        pixels,
        partial(_ap50, recipe, folder),
        regions["extraction_seconds"],
        regions["extraction_sessions"],
    )


def pictures(recipe: Recipe, split: str, indices: Iterable[int] | None = None) -> Iterator[Picture]:
    """The pictures of a split, or those of ``indices``, rendered as they are asked for."""
    for index in range(getattr(recipe.world, split)) if indices is None else indices:
        yield make_picture(recipe.world.seed, split, index, size=recipe.world.picture_size)


def _fit_detectors(recipe: Recipe, folder: Path) -> None:
    run = Run.begin(folder, {"seed": recipe.world.seed, **recipe.detectors.model_dump()})
    if not run.finished:
        fitted = fit_detectors(
            folder / "weights", recipe.detectors, recipe.world.seed, picture_size=recipe.world.picture_size
        )
        run.finish(**{role: {"ap50": one.ap50, "seconds": one.seconds} for role, one in fitted.items()})


@dataclass(frozen=True)
class RegionPart:
    """Pictures whose regions are extracted together, by one process.

    Attributes:
        number: of the part, from 0, in the order of the store.
        split: of its pictures.
        indices: of its pictures in the split.
    """

    number: int
    split: str
    indices: range


def region_parts(recipe: Recipe) -> list[RegionPart]:
    """All pictures of the world, in parts that do not depend on how many processes there are."""
    parts: list[RegionPart] = []
    for split in SPLITS:
        count = getattr(recipe.world, split)
        for first in range(0, count, _PICTURES_A_PART):
            parts.append(RegionPart(len(parts), split, range(first, min(first + _PICTURES_A_PART, count))))
    return parts


def regions_run(recipe: Recipe, folder: Path) -> Run:
    """The run folder of all regions, begun or taken up; detectors that a recipe trains are trained before."""
    if recipe.detectors.weights == "train":
        _fit_detectors(recipe, folder / "detectors")
    return Run.begin(folder / "regions", _region_settings(recipe))


def extract_part(recipe: Recipe, folder: Path, part: RegionPart) -> None:
    """Render the pictures of a part, and keep their regions and texts in the unfinished store."""
    run = Run.begin(_part_folder(folder, part), _region_settings(recipe))
    if run.finished:
        return
    run.note_time(at_once=True)
    student, teacher = detectors_of(recipe, folder)
    seen: list[Picture] = []

    def rendered() -> Iterator[Picture]:
        for picture in pictures(recipe, part.split, part.indices):
            seen.append(picture)
            run.note_time()
            yield picture

    records = extract(
        track(rendered(), "regions of both detectors", len(part.indices)),
        student,
        teacher,
        recipe.detectors.max_regions,
        recipe.detectors.score_threshold,
    )
    unfinished = unfinished_folder(folder / "regions" / "store")
    unfinished.mkdir(parents=True, exist_ok=True)
    write_part(unfinished / part_name(part.number), records, "float32")
    Corpus.of_pictures(part.split, seen).save(run.folder / _TEXTS)
    run.finish()


def measure_detector(recipe: Recipe, folder: Path, role: Role) -> float:
    """AP50 of one detector on pictures of the validation split, measured once."""
    run = Run.begin(folder / "ap50" / role, _region_settings(recipe))
    if not run.finished:
        run.note_time(at_once=True)
        detector = dict(zip(("student", "teacher"), detectors_of(recipe, folder), strict=True))[role]
        held_out = range(min(_AP50_PICTURES, recipe.world.validation))
        shown = track(list(pictures(recipe, "validation", held_out)), f"AP50 of the {role}'s detector")
        run.finish(ap50=ap50(detector, shown))
    return run.results()["ap50"]


def _ap50(recipe: Recipe, folder: Path) -> dict[str, float]:
    roles: tuple[Role, ...] = ("student", "teacher")
    return {role: measure_detector(recipe, folder, role) for role in roles}


def finish_regions(recipe: Recipe, folder: Path) -> None:
    """Make one store of all parts, a file of texts of each split, and from these the tokenizer and the answers."""
    run, parts = regions_run(recipe, folder), region_parts(recipe)
    if run.finished:
        return
    student, teacher = detectors_of(recipe, folder)
    store = folder / "regions" / "store"
    if not store.exists():  # else it was finished by a run that was stopped before it wrote what follows
        found = identities(recipe, folder, student, teacher)
        finish_store(store, _fingerprint(_region_settings(recipe)), found)
    texts = {split: [_part_folder(folder, part) / _TEXTS for part in parts if part.split == split] for split in SPLITS}
    corpora = {split: Corpus.joined(map(Corpus.load, files)) for split, files in texts.items()}
    for split, corpus in corpora.items():
        corpus.save(run.folder / f"{split}.json")
    save_tokenizer(train_tokenizer(corpora["train"].texts(), recipe.text.vocabulary), folder / "tokenizer")
    AnswerVocabulary.of_corpus(corpora["train"]).save(folder / "answers.json")
    results = [Run.open(_part_folder(folder, part)).results() for part in parts]
    run.finish(
        extraction_seconds=sum(of["seconds"] for of in results),
        extraction_sessions=max(of["sessions"] for of in results),
    )
    shutil.rmtree(run.folder / _PARTS)


def _region_settings(recipe: Recipe) -> dict:
    return {"world": recipe.world.model_dump(), "detectors": recipe.detectors.model_dump()}


def _part_folder(folder: Path, part: RegionPart) -> Path:
    return folder / "regions" / _PARTS / f"{part.number:05d}"


def _fingerprint(settings: dict) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
