"""The rendered world, before any training: detectors, paired regions of every picture, texts, tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vlkd.data import (
    AnswerVocabulary,
    Corpus,
    RegionStore,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
    write_store,
)
from vlkd.data.store import Role
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
    if recipe.detectors.weights == "train":
        _fit_detectors(recipe, folder / "detectors")
    regions = _extract_regions(recipe, folder)
    store = RegionStore.open(folder / "regions" / "store")
    corpora = {split: Corpus.load(folder / "regions" / f"{split}.json") for split in SPLITS}
    if not (folder / "tokenizer").is_dir():
        save_tokenizer(train_tokenizer(corpora["train"].texts(), recipe.text.vocabulary), folder / "tokenizer")
    if not (folder / "answers.json").is_file():
        AnswerVocabulary.of_corpus(corpora["train"]).save(folder / "answers.json")
    data = StageData(store, corpora, load_tokenizer(folder / "tokenizer"), recipe.seed)

    def pixels(regions: Regions | PairedRegions) -> np.ndarray:
        index = corpora["test"].keys.index(regions.key)
        return make_picture(recipe.world.seed, "test", index, size=recipe.world.picture_size).pixels

    return Prepared(data, pixels, regions["ap50"], regions["seconds"], regions.get("sessions", 1))


def pictures(recipe: Recipe, split: str, count: int | None = None) -> Iterator[Picture]:
    """The pictures of a split, rendered as they are asked for."""
    for index in range(getattr(recipe.world, split) if count is None else count):
        yield make_picture(recipe.world.seed, split, index, size=recipe.world.picture_size)


def _fit_detectors(recipe: Recipe, folder: Path) -> None:
    run = Run.begin(folder, {"seed": recipe.world.seed, **recipe.detectors.model_dump()})
    if not run.finished:
        fitted = fit_detectors(
            folder / "weights", recipe.detectors, recipe.world.seed, picture_size=recipe.world.picture_size
        )
        run.finish(**{role: {"ap50": one.ap50, "seconds": one.seconds} for role, one in fitted.items()})


def _extract_regions(recipe: Recipe, folder: Path) -> dict:
    """Render every picture once, keep its regions and its texts; returns what the run's results.json holds."""
    settings = {"world": recipe.world.model_dump(), "detectors": recipe.detectors.model_dump()}
    run = Run.begin(folder / "regions", settings)
    if run.finished:
        return run.results()
    run.note_time(at_once=True)
    student, teacher = detectors_of(recipe, folder)
    texts: dict[str, list[Picture]] = {split: [] for split in SPLITS}

    def rendered() -> Iterator[Picture]:
        for split in SPLITS:
            for picture in pictures(recipe, split):
                texts[split].append(picture)
                run.note_time()
                yield picture

    store = folder / "regions" / "store"
    if store.exists():  # written by a run that was stopped before it wrote the texts
        for split in SPLITS:
            texts[split].extend(pictures(recipe, split))
    else:
        total = sum(getattr(recipe.world, split) for split in SPLITS)
        records = extract(
            track(rendered(), "regions of both detectors", total),
            student,
            teacher,
            recipe.detectors.max_regions,
            recipe.detectors.score_threshold,
        )
        write_store(store, records, _fingerprint(settings), detectors=identities(recipe, folder, student, teacher))
    for split in SPLITS:
        Corpus.of_pictures(split, texts[split]).save(run.folder / f"{split}.json")
    held_out = texts["validation"][:_AP50_PICTURES]
    scores = {
        role: ap50(detector, track(held_out, f"AP50 of the {role}'s detector"))
        for role, detector in (("student", student), ("teacher", teacher))
    }
    run.finish(ap50=scores)
    return run.results()


def _fingerprint(settings: dict) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
